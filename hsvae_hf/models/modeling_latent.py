"""Latent heads: what a model's latent answers to the body that all models share."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from .outputs import TextVAEModelOutput

Posterior = TypeVar("Posterior", bound=TextVAEModelOutput)


class Float32Linear(nn.Linear):
    """A linear layer that gives fp32, whatever the dtype of its weights (after `model.half()`, say)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """`(..., in_features)` to `(..., out_features)`."""
        output = super().forward(inputs.to(self.weight.dtype))
        return output if output.dtype == torch.float64 else output.float()


class LatentHead(nn.Module, ABC, Generic[Posterior]):
    """A posterior over z given the encoder's features. It runs in fp32, outside autocast.

    A subclass implements `forward`. One whose latent is random implements `sample`, `costs` and `sample_prior` too;
    without them the latent is a deterministic code that costs nothing. One that tells values from their being on
    implements `mean` and `diagnostics`.
    """

    needs_even_batches = False  # whether `costs` takes the batch for a sample of the corpus: no grouping by length then

    independent_gates = True  # whether dimensions are on or off independently, given the sentence

    penalty_field = "penalty_weight"  # field of the configuration that weighs the penalty

    target_active_dims: float | None = None  # non-zeros per code that the weight of `gamma_kl` is adapted to

    wanted_active_dims: float | None = None  # non-zeros that its threshold is set for; None: as draws have

    @abstractmethod
    def forward(self, features: Tensor) -> Posterior:
        """Deterministic posterior of `features`, `(batch, feature_size)`.

        All its fields have the batch in front. `latent` is 0 where a dimension is off. `sparse_embedding` is left out:
        the body makes the code.
        """

    def mean(self, posterior: Posterior) -> Tensor:
        """`E[z|x]`, `(batch, latent_size)`."""
        return posterior.latent

    def values(self, posterior: Posterior) -> Tensor:
        """The value that each dimension has where it is on, `(batch, latent_size)`."""
        return posterior.latent

    def strength(self, posterior: Posterior) -> Tensor:
        """By which a sentence's dimensions are ranked: the strongest stay in a short code, `(batch, latent_size)`."""
        return self.mean(posterior).abs()

    def diagnostics(self, posterior: Posterior) -> dict[str, Tensor]:
        """Representations worth reporting, `(batch, latent_size)` each.

        `posterior_mean`, and where they exist `slab_mean` and `spike_probability`.
        """
        return {"posterior_mean": self.mean(posterior)}

    def sample(self, posterior: Posterior) -> dict[str, Tensor]:
        """Draw from the posterior; the entry `z`, `(batch, latent_size)`, goes to the decoder."""
        return {"z": posterior.latent}

    def costs(self, posterior: Posterior, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the draw costs: named, unweighted terms of the objective besides the reconstruction.

        Args:
            posterior: of `forward`.
            sample: of the method `sample`.

        Returns:
            Any of `z_kl`, `(batch, latent_size)`: KL of the values; `gamma_kl`, `(batch, terms)`: KL of what decides
            which dimensions are on; `penalty`, scalar. Their weights in the objective are `z_kl_weight`,
            `gamma_kl_weight` and `penalty_weight` of the config.
        """
        return {}

    def sample_prior(self, num_samples: int) -> Tensor:
        """Draw z from the prior, `(num_samples, latent_size)`.

        Raises:
            ValueError: if this model has no prior.
        """
        raise ValueError(f"`sample_prior` needs a model with a prior, {type(self).__name__} has none; decode latents.")

    def anneal(self, progress: float) -> None:
        """Told before every training step how far training is, from 0 to 1; for what changes during training."""
