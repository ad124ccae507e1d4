"""The seam between the body and a model's latent: what a latent head answers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Float32Linear(nn.Linear):
    """A linear layer that gives fp32, whatever the dtype of its weights (after `model.half()`, say)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """`(..., in_features)` to `(..., out_features)`."""
        output = super().forward(inputs.to(self.weight.dtype))
        return output if output.dtype == torch.float64 else output.float()


Encode = Callable[[Tensor], Tensor]  # embeddings of sentences `(batch, steps, embedding_size)` to their features


class LatentHead(nn.Module):
    """The seam: a posterior over z given the encoder's features. Runs in fp32, outside autocast.

    A subclass implements `forward`, `diagnostics`, and what a latent that is random has besides: `sample`, `costs`,
    `sample_prior`; without them it is a deterministic code that costs nothing.
    """

    needs_even_batches = False  # whether `costs` takes the batch for a sample of the corpus: no grouping by length then

    independent_gates = True  # whether dimensions are on or off independently, given the sentence

    target_active_dims: float | None = None  # non-zeros per code that the weight of `gamma_kl` is adapted to

    def forward(self, features: Tensor) -> Any:
        """Deterministic posterior of `features` `(batch, feature_size)`, a `TextVAEModelOutput`.

        Its first field is the sparse code; all fields have the batch in front.
        """
        raise NotImplementedError

    def diagnostics(self, posterior: Any) -> dict[str, Tensor]:
        """Representations worth reporting, `(batch, latent_size)` each.

        `posterior_mean`, and where they exist `slab_mean` and `spike_probability`.
        """
        return {"posterior_mean": posterior.latent}

    def sample(self, posterior: Any) -> dict[str, Tensor]:
        """Draw from the posterior, `forward`'s output; the entry `z`, `(batch, latent_size)`, goes to the decoder."""
        return {"z": posterior.latent}

    def costs(self, posterior: Any, sample: dict[str, Tensor], encode: Encode) -> dict[str, Tensor]:
        """What the draw costs: named, unweighted terms of the objective besides the reconstruction.

        Args:
            posterior: of `forward`.
            sample: of `sample`.
            encode: the text encoder, for priors that depend on learned sentences.

        Returns:
            Any of `z_kl`, `(batch, latent_size)`: KL of the values; `gamma_kl`, `(batch, terms)`: KL of what decides
            which dimensions are on; `penalty`, scalar. Their weights in the objective are `z_kl_weight`,
            `gamma_kl_weight` and `penalty_weight` of the config.
        """
        return {}

    def sample_prior(self, num_samples: int, encode: Encode) -> Tensor:
        """Draw z from the prior, `(num_samples, latent_size)`.

        Raises:
            ValueError: if this model has no prior.
        """
        raise ValueError(f"`sample_prior` needs a model with a prior, {type(self).__name__} has none; decode latents.")

    def anneal(self, progress: float) -> None:
        """Told before every training step how far training is, from 0 to 1; for what changes during training."""
