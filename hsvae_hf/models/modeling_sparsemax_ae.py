"""Sparsemax autoencoder (Trifonov et al. 2018): a deterministic code on the probability simplex."""

from huggingface_hub.dataclasses import strict
from torch import Tensor

from .configuration_text_vae import TextVAEConfig
from .distributions import sparsemax
from .modeling_latent import Float32Linear, LatentHead
from .modeling_text_vae import TextVAEForPreTraining, TextVAEForSequenceClassification, TextVAEModel
from .outputs import TextVAEModelOutput


@strict
class SparsemaxAEConfig(TextVAEConfig):
    """Configuration of the sparsemax autoencoder; the weights of the KLs have nothing to weigh."""

    model_type = "sparsemax-ae"


class SparsemaxAEHead(LatentHead):
    """`z = sparsemax(W h + b)`: not negative, sums to 1, exact zeros; trained by reconstruction alone."""

    def __init__(self, config: SparsemaxAEConfig) -> None:
        super().__init__()
        self.scores = Float32Linear(config.feature_size, config.latent_size)

    def forward(self, features: Tensor) -> TextVAEModelOutput:
        """The code of `features` `(batch, feature_size)`."""
        code = sparsemax(self.scores(features))
        return TextVAEModelOutput(sparse_embedding=code, latent=code, features=features)


class SparsemaxAEModel(TextVAEModel):
    """Encoder and sparsemax code."""

    config_class = SparsemaxAEConfig
    latent_head_class = SparsemaxAEHead


class SparsemaxAEForPreTraining(TextVAEForPreTraining):
    """The autoencoder: encoder, sparsemax code, decoder."""

    config_class = SparsemaxAEConfig
    model_class = SparsemaxAEModel


class SparsemaxAEForSequenceClassification(TextVAEForSequenceClassification):
    """Classifier on the sparsemax code."""

    config_class = SparsemaxAEConfig
    model_class = SparsemaxAEModel
