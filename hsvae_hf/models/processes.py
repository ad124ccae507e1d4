"""Statistics of a batch that several processes share, each with its rows, as `DistributedDataParallel` trains.

They are those of the whole batch, so that what is trained does not depend on the number of processes. Gradients are
averaged over processes by whoever trains; every process has as many rows.
"""

import torch
from torch import Tensor, distributed

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
    count = count_processes()
    if count == 1:
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return straight_through(total / count, value)


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
