"""A matrix of which few entries are computed: which they are, and products at them alone, with gradients.

Where the entries are few, this is several times faster than dense products with zeros, whose gradients it has.
"""

import warnings
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
DENSE = 1 / 8  # share of entries from which a dense product is faster, on one core at 512 dimensions


class Entries:
    """Some entries of a matrix, ordered by row.

    Args:
        rows: of each entry, ascending, `(entries,)`.
        columns: of each entry, `(entries,)`.
        shape: rows and columns of the matrix.
    """

    def __init__(self, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> None:
        self.rows, self.columns, self.shape = rows, columns, shape
        self.starts = torch.searchsorted(rows, torch.arange(shape[0]))  # (rows,), where each row begins
        self.many = len(rows) > DENSE * shape[0] * shape[1]

    @cached_property
    def by_column(self) -> tuple[Tensor, Tensor]:
        """The order of the entries by column `(entries,)`, and where each column begins in it `(columns,)`."""
        small = self.shape[1] < 2**15  # numpy sorts short integers in linear time
        columns = self.columns.to(torch.int16 if small else torch.int64)
        counts = torch.bincount(self.columns, minlength=self.shape[1])
        return torch.from_numpy(np.argsort(columns.numpy(), kind="stable")), counts.cumsum(0) - counts

    def matrix(self, values: Tensor) -> Tensor:
        """The matrix A `(rows, columns)` that has `values` `(entries,)` at the entries and is 0 elsewhere."""
        return values.new_zeros(self.shape).index_put((self.rows, self.columns), values)

    def product(self, values: Tensor, other: Tensor) -> Tensor:
        """`A other` `(rows, size)`, with A as in `matrix`; `other` is (columns, size)."""
        if self.many:
            return self.matrix(values) @ other
        return weighted_sums(values, other, self.columns, self.starts)

    def transposed_product(self, values: Tensor, other: Tensor) -> Tensor:
        """`A^T other` `(columns, size)`, with A as in `matrix`; `other` is (rows, size)."""
        if self.many:
            return self.matrix(values).T @ other
        order, starts = self.by_column
        return weighted_sums(values[order], other, self.rows[order], starts)

    def at(self, left: Tensor, right: Tensor) -> Tensor:
        """`left right^T` at the entries, `(entries,)`; `left` is (rows, size), `right` (columns, size)."""
        if self.many:
            return (left @ right.T)[self.rows, self.columns]
        ends, zeros = F.pad(self.starts, (0, 1), value=len(self.rows)), left.new_zeros(len(self.rows))
        pattern = torch.sparse_csr_tensor(ends, self.columns, zeros, self.shape, check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, left.contiguous(), right.T, beta=0).values()


def weighted_sums(values: Tensor, matrix: Tensor, indices: Tensor, starts: Tensor) -> Tensor:
    """Sums of `values[e] * matrix[indices[e]]`, over e from each of `starts` to the next; `(starts, size)`."""
    return F.embedding_bag(indices, matrix, starts, mode="sum", per_sample_weights=values)


def largest_per_row(preactivations: Tensor, count: int) -> Entries:
    """The `count` largest entries of every row of a matrix `(rows, width)`."""
    width = preactivations.shape[1]
    order = np.argpartition(preactivations.numpy(), width - count, axis=1)
    return in_every_row(torch.from_numpy(order[:, width - count :]), width)


def in_every_row(columns: Tensor, width: int) -> Entries:
    """Entries at `columns` `(rows, count)` of each row of a matrix `(rows, width)`."""
    rows, count = columns.shape
    return Entries(torch.arange(rows).repeat_interleave(count), columns.reshape(-1), (rows, width))


def largest_in_batch(preactivations: Tensor, count: int) -> Entries:
    """The `count * rows` largest entries of a matrix `(rows, width)` (Bussmann et al. 2024, BatchTopK)."""
    rows, width = preactivations.shape
    places = np.argpartition(preactivations.numpy().ravel(), rows * (width - count))[rows * (width - count) :]
    return _entries_at(np.sort(places), (rows, width))


def above(preactivations: Tensor, threshold: float | Tensor) -> Entries:
    """The entries of a matrix `(rows, width)` that exceed a threshold, or their column's `(width,)`."""
    places = np.flatnonzero((preactivations > threshold).numpy())
    return _entries_at(places, (preactivations.shape[0], preactivations.shape[1]))


def _entries_at(places: np.ndarray, shape: tuple[int, int]) -> Entries:
    rows, columns = np.divmod(places, shape[1])
    return Entries(torch.from_numpy(rows), torch.from_numpy(columns), shape)


class _Encode(torch.autograd.Function):
    """Pre-activations at some entries: `(x W^T + bias)[entries]`, `(entries,)`. All of them are there already."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, weight: Tensor, bias: Tensor, all_of_them: Tensor, at: Entries) -> Tensor:
        ctx.save_for_backward(vectors)
        ctx.at = at
        return all_of_them[at.rows, at.columns]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (vectors,), (gradient,) = ctx.saved_tensors, gradients
        to_bias = gradient.new_zeros(ctx.at.shape[1]).index_add_(0, ctx.at.columns, gradient)
        return None, ctx.at.transposed_product(gradient, vectors), to_bias, None, None


class _Decode(torch.autograd.Function):
    """`A weight` `(rows, size)`, where A has `values` `(entries,)` at the entries and weight is `(width, size)`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, at: Entries) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.at = at
        return at.product(values, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (values, weight), (gradient,) = ctx.saved_tensors, gradients
        return ctx.at.at(gradient, weight), ctx.at.transposed_product(values, gradient.contiguous()), None


def encode_at(vectors: Tensor, weight: Tensor, bias: Tensor, preactivations: Tensor, entries: Entries) -> Tensor:
    """Pre-activations `vectors weight^T + bias` at the entries, `(entries,)`, with their gradients."""
    return cast(Tensor, _Encode.apply(vectors, weight, bias, preactivations, entries))


def decode_at(values: Tensor, weight: Tensor, entries: Entries) -> Tensor:
    """The product of a sparse matrix and `weight` `(width, size)`: `(rows, size)`, with its gradients."""
    return cast(Tensor, _Decode.apply(values, weight, entries))


class _JumpReLU(torch.autograd.Function):
    """`v` where it exceeds its threshold, 0 elsewhere; its threshold's gradient is `-(t / e) K((v - t) / e)`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(values, threshold)
        ctx.bandwidth = bandwidth
        return values * (values > threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (values, threshold), (gradient,) = ctx.saved_tensors, gradients
        near = ((values - threshold).abs() < ctx.bandwidth / 2).to(values.dtype)  # rectangle kernel
        return gradient * (values > threshold), -gradient * near * threshold / ctx.bandwidth, None


class _Step(torch.autograd.Function):
    """1 where `v` exceeds its threshold, 0 elsewhere; its threshold's gradient is `-K((v - t) / e) / e`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(values, threshold)
        ctx.bandwidth = bandwidth
        return (values > threshold).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (values, threshold), (gradient,) = ctx.saved_tensors, gradients
        near = ((values - threshold).abs() < ctx.bandwidth / 2).to(values.dtype)
        return None, -gradient * near / ctx.bandwidth, None


def jump_relu(values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """JumpReLU of `values`, each with its threshold (> 0), with a straight-through gradient to the threshold."""
    return cast(Tensor, _JumpReLU.apply(values, threshold, bandwidth))


def step_function(values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Whether each of `values` exceeds its threshold, 0 or 1, with a straight-through gradient to the threshold."""
    return cast(Tensor, _Step.apply(values, threshold, bandwidth))
