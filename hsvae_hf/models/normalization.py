"""Batch normalisation by the statistics of all processes: features, or scores, of mean 0 and one deviation."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .processes import shared_mean

MOMENTUM = 0.1  # share of a batch in the statistics that evaluation takes, once there were ten batches
SMALLEST_VARIANCE = 1e-6  # that values are divided by the root of


class BatchNorm(nn.Module):
    """Values of mean 0 over sentences, in each dimension, and of one standard deviation over sentences and dimensions.

    `std (x - mean x) / sqrt(mean_i var x_i + 1e-6)`: batch normalisation (Ioffe & Szegedy 2015) but for the deviation,
    which all dimensions share, so that those that say more of a sentence keep a larger one. No scale and shift are
    learned. In training the statistics are those of the batch, of all processes; else those of the last batches of
    training.

    Args:
        size: number of dimensions.
        std: the standard deviation that all values together get.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, size: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("batches", torch.zeros(()))

    def init_parameters(self) -> None:
        """Values times `std` alone, until there were batches of two rows or more."""
        init.zeros_(self.mean)
        init.ones_(self.variance)
        init.zeros_(self.batches)

    def forward(self, values: Tensor, learning: bool) -> Tensor:
        """`(batch, size)` to the same.

        Args:
            values: of a batch; a single row says nothing of how sentences differ, so it changes no statistics.
            learning: whether the batch's statistics are taken, and kept.
        """
        mean, variance = self.mean, self.variance
        if learning and len(values) > 1:
            mean = shared_mean(values.mean(0))
            variance = shared_mean((values - mean).square().mean())
            self._keep(mean.detach(), variance.detach())
        return self.std * (values - mean) * (variance + SMALLEST_VARIANCE).rsqrt()

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        self.batches += 1
        share = (1 / self.batches).clamp_min(MOMENTUM)  # at first the plain mean of all batches
        self.mean += share * (mean - self.mean)
        self.variance += share * (variance - self.variance)
