"""Sparsemax autoencoder (Trifonov et al. 2018): a deterministic code on the probability simplex."""

from huggingface_hub.dataclasses import strict
from torch import Tensor

from .configuration_text_vae import TextVAEConfig
from .distributions import sparsemax
from .modeling_classification import TextVAEForSequenceClassification
from .modeling_latent import Float32Linear, LatentHead
from .modeling_text_vae import TextVAEForPreTraining, TextVAEModel
from .outputs import TextVAEModelOutput


@strict
class SparsemaxAEConfig(TextVAEConfig):
    """Configuration of the sparsemax autoencoder; the weights of the KLs have nothing to weigh."""

    model_type = "sparsemax-ae"


class SparsemaxAEHead(LatentHead[TextVAEModelOutput]):
    """`z = sparsemax(W h + b)`: not negative, sums to 1, exact zeros; trained by reconstruction alone."""

    def __init__(self, config: SparsemaxAEConfig) -> None:
        super().__init__()
        self.scores = Float32Linear(config.feature_size, config.latent_size)

    def forward(self, features: Tensor) -> TextVAEModelOutput:
        """The code of `features`, `(batch, feature_size)`."""
        return TextVAEModelOutput(latent=sparsemax(self.scores(features)), features=features)


class SparsemaxAEModel(TextVAEModel):
    """Encoder and sparsemax code."""

    config: SparsemaxAEConfig
    latent_head_class = SparsemaxAEHead


class SparsemaxAEForPreTraining(TextVAEForPreTraining):
    """The autoencoder: encoder, sparsemax code, decoder."""

    config: SparsemaxAEConfig
    model_class = SparsemaxAEModel


class SparsemaxAEForSequenceClassification(TextVAEForSequenceClassification):
    """Classifier on the sparsemax code."""

    config: SparsemaxAEConfig
    model_class = SparsemaxAEModel
