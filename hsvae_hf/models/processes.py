"""Statistics of a batch that several processes share, each with its rows, as `DistributedDataParallel` trains.

They are those of the whole batch, so that what is trained does not depend on the number of processes. Gradients are
averaged over processes by whoever trains; every process has as many rows.
"""

from typing import Any, cast

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from .distributions import straight_through


def count_processes() -> int:
    """How many processes train together; 1 without `torch.distributed`."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a statistic over all processes, in the shape of `value`.

    The gradient is that of this process's own value. The average of these is the gradient of the mean, where every
    process goes on with it in the same way.
    """
    if count_processes() == 1:
        return value
    return straight_through(_average(value), value)


def _average(value: Tensor) -> Tensor:
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / count_processes()


class _MeanWithGradient(torch.autograd.Function):
    """The mean is the same for all processes, so its gradient is the mean of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _average(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _average(gradient)


def shared_mean(value: Tensor) -> Tensor:
    """The mean of a statistic over all processes, each of which goes on with it in a way of its own.

    As `mean_over_processes`, but processes exchange gradients too: the average of what they give is the gradient of the
    average of their losses.
    """
    return value if count_processes() == 1 else cast(Tensor, _MeanWithGradient.apply(value))


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, `(processes * batch, size)`, of `rows`, `(batch, size)`.

    The gradient of this process's own rows is multiplied by the number of processes. So the average over processes is
    the gradient of a loss that each of them takes of all rows.
    """
    count = count_processes()
    if count == 1:
        return rows
    own = rows.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(count)]
    distributed.all_gather(parts, own)
    parts[distributed.get_rank()] = straight_through(own, count * rows)
    return torch.cat(parts)
