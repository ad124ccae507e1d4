"""Batch normalisation by the statistics of all processes: features, or scores, of one mean and deviation."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .processes import shared_mean

MOMENTUM = 0.1  # share of a batch in the statistics that evaluation takes, once there were ten batches
SMALLEST_VARIANCE = 1e-6  # that values are divided by the root of


class BatchNorm(nn.Module):
    """Values of mean 0 and one standard deviation over sentences: batch normalisation (Ioffe & Szegedy 2015).

    `std (x - mean x) / sqrt(var x + 1e-6)`, dimension by dimension; no scale and shift are learned. In training the
    statistics are those of the batch, of all processes; else those of the last batches of training.

    Args:
        size: number of dimensions.
        std: the standard deviation that they get.
        shared_variance: divide all dimensions by one deviation, the root of their mean variance. Then those that say
            more of a sentence keep a larger one, and `std` is that of all values together.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, size: int, std: float = 1.0, shared_variance: bool = False) -> None:
        super().__init__()
        self.std, self.shared_variance = std, shared_variance
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(() if shared_variance else (size,)))
        self.register_buffer("batches", torch.zeros(()))

    def init_parameters(self) -> None:
        """Change nothing, until there were batches."""
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
            variances = shared_mean((values - mean).square().mean(0))
            variance = variances.mean() if self.shared_variance else variances
            self._keep(mean.detach(), variance.detach())
        return self.std * (values - mean) * (variance + SMALLEST_VARIANCE).rsqrt()

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        self.batches += 1
        share = (1 / self.batches).clamp_min(MOMENTUM)  # at first the plain mean of all batches
        self.mean += share * (mean - self.mean)
        self.variance += share * (variance - self.variance)
