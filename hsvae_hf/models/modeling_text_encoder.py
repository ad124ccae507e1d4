"""Dense features without a latent: the paper's simple classifier (end to end) and plain BERT (frozen)."""

from huggingface_hub.dataclasses import strict
from torch import Tensor

from .configuration_text_vae import TextVAEConfig, at_least
from .modeling_classification import TextVAEForSequenceClassification
from .modeling_latent import LatentHead
from .modeling_text_vae import TextVAEForPreTraining, TextVAEModel
from .outputs import TextVAEModelOutput


@strict
class TextEncoderConfig(TextVAEConfig):
    """Configuration of the plain text encoder; its `latent_size` is the width of the encoder's features.

    Args:
        latent_size: width of the features; 0 fills it in.
        freeze_encoder: False trains the classifier end to end, the default here; True on a pretrained encoder is the
            paper's plain BERT.
    """

    model_type = "text-encoder"

    latent_size: int = at_least(0, "leave it out")(default=0)
    freeze_encoder: bool = False

    def __post_init__(self, **kwargs: object) -> None:
        """Fill in the width of the features."""
        super().__post_init__(**kwargs)
        self.latent_size = self.latent_size or self.feature_size

    def validate_identity(self) -> None:
        """The code is the features, as they are."""
        if self.feature_std:
            self.refuse("feature_std", "0 for a plain text encoder", "its code is the features as they are")
        if self.latent_size != self.feature_size:
            self.refuse("latent_size", f"the width of the encoder's features ({self.feature_size})", "leave it out")


class TextEncoderHead(LatentHead[TextVAEModelOutput]):
    """`z = h`: the encoder's features as they are (Prokhorov et al. 2021, section 4.2)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()

    def forward(self, features: Tensor) -> TextVAEModelOutput:
        """The features, `(batch, feature_size)`, dense."""
        return TextVAEModelOutput(latent=features, features=features)


class TextEncoderModel(TextVAEModel):
    """The encoder alone."""

    config: TextEncoderConfig
    latent_head_class = TextEncoderHead


class TextEncoderForPreTraining(TextVAEForPreTraining):
    """A plain autoencoder: the decoder reads the features."""

    config: TextEncoderConfig
    model_class = TextEncoderModel


class TextEncoderForSequenceClassification(TextVAEForSequenceClassification):
    """The simple classifier."""

    config: TextEncoderConfig
    model_class = TextEncoderModel
