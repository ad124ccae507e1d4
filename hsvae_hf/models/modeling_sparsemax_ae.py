"""Sparsemax autoencoder (Trifonov et al. 2018): a deterministic code on a scaled probability simplex."""

import math
from typing import cast

from huggingface_hub.dataclasses import strict
from torch import Tensor

from .configuration_text_vae import TextVAEConfig, between, validated
from .distributions import sparsemax
from .modeling_classification import TextVAEForSequenceClassification
from .modeling_latent import Float32Linear, LatentHead
from .modeling_text_vae import TextVAEForPreTraining, TextVAEModel
from .normalization import BatchNorm
from .outputs import TextVAEModelOutput


@strict
class SparsemaxAEConfig(TextVAEConfig):
    """Configuration of the sparsemax autoencoder; the weights of the KLs have nothing to weigh.

    `SparsemaxAEConfig(score_std=0, code_sum=1)` is the source's. A file of version 0.1.0, which has neither, means it.

    Args:
        score_std: standard deviation of scores over sentences and dimensions, 0.001 to 1000; the larger, the fewer
            non-zeros. None is `1 / sqrt(latent_size)`. 0 takes scores as they are.
        code_sum: what the values of a code sum to (0.001 to 1000). None is `sqrt(latent_size)`.
    """

    model_type = "sparsemax-ae"

    score_std: float | int | None = validated(
        lambda value: value == 0 or 1e-3 <= value <= 1e3, "0 or from 0.001 to 1000", "None chooses it by `latent_size`"
    )(default=None)
    code_sum: float | int | None = between(1e-3, 1e3)(default=None)

    def __post_init__(self, **kwargs: object) -> None:
        """Fill in what follows from `latent_size`."""
        source = "model_type" in kwargs  # a file, and without these fields one of version 0.1.0
        super().__post_init__(**kwargs)
        if self.score_std is None:
            self.score_std = 0.0 if source else 1 / math.sqrt(self.latent_size)
        if self.code_sum is None:
            self.code_sum = 1.0 if source else math.sqrt(self.latent_size)


class SparsemaxAEHead(LatentHead[TextVAEModelOutput]):
    """`z = c sparsemax(norm(W h))`: not negative, sums to c, exact zeros; trained by reconstruction alone.

    Trifonov et al. (2018) have `z = sparsemax(W h + b)`, here with `score_std=0, code_sum=1`. Trained on words that
    collapses within ten steps: what is common to the gradients of all sentences moves the scores of all, one dimension
    takes the whole sum for every sentence, and from there sparsemax has no gradient. Beyond the paper, therefore:

    - Each dimension's scores have mean 0 over sentences (`BatchNorm`), so none can be ahead for all of them. All scores
      together have the standard deviation `score_std`, which says how many dimensions a code uses; a dimension that
      tells sentences apart better has a larger one.
    - Codes sum to `code_sum`, so that they move the decoder as far as a dense code of that width does.
    """

    def __init__(self, config: SparsemaxAEConfig) -> None:
        super().__init__()
        self.config = config
        self.scores = Float32Linear(config.feature_size, config.latent_size, bias=not config.score_std)
        if config.score_std:
            self.needs_even_batches = True
            self.norm = BatchNorm(config.latent_size, config.score_std)

    def forward(self, features: Tensor) -> TextVAEModelOutput:
        """The code of `features`, `(batch, feature_size)`; in training it depends on the batch, through the norm."""
        scores = self.scores(features)
        if self.config.score_std:
            scores = self.norm(scores, self.training and self.scores.weight.requires_grad)
        return TextVAEModelOutput(latent=cast(float, self.config.code_sum) * sparsemax(scores), features=features)


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
