"""Sparse autoencoders of vectors, each written from its paper, and the loop that trains them all.

A vector x has pre-activations `p = W_e (x - b) + c`. A few of them are kept; `z = max(p, 0)` there and 0 elsewhere is
the code, and `W_d^T z + b` the reconstruction. The methods differ in what is kept and in the loss:

| class | what training keeps | beside the squared error | source |
| --- | --- | --- | --- |
| TopK | the k largest of a row | dead dimensions reconstruct the residual | Gao et al. 2024 |
| BatchTopK | the k * rows largest of a batch | the same | Bussmann et al. 2024 |
| Matryoshka | the same | the error of every prefix of the code | Bussmann et al. 2025 |
| JumpReLU | what exceeds a learnt threshold | the number of non-zeros | Rajamanoharan et al. 2024 |
| CSR | the k largest, W_d = W_e | 4k too; dead dimensions; InfoNCE of codes | Wen et al. 2025 |
| CSRv2 | the same, k annealed from 64 | the same, by cosines | Guo et al. 2026 |

Only `p` is a dense product. All that follows is computed at the kept entries alone, forward and backward, where these
are few enough for it to be faster. The gradients are those of dense products.
"""

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
ADAM_EPSILON = 6.25e-10  # of Gao et al. 2024, and of the released code of CSR and CSRv2
ENCODE_ROWS = 4096  # rows that `encode` takes at a time
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
    return _in_every_row(torch.from_numpy(order[:, width - count :]), width)


def _in_every_row(columns: Tensor, width: int) -> Entries:
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


def geometric_median(vectors: Tensor, iterations: int = 50) -> Tensor:
    """The point with the least sum of distances to `vectors` `(rows, size)`, by Weiszfeld's iteration."""
    point = vectors.mean(0)
    for _ in range(iterations):
        weights = 1 / (vectors - point).norm(dim=1).clamp(min=1e-8)
        point = (weights @ vectors) / weights.sum()
    return point


class TopK(nn.Module):
    """Gao et al. 2024: the k largest of every row, and an auxiliary loss that revives dead dimensions.

    `W_d` begins with random unit rows and `W_e` as its copy, b as the geometric median of the vectors. Rows of `W_d`
    have norm 1 after every step, and its gradient no part along them.

    Args:
        vectors: to train on, `(rows, size)`.
        width: dimensions of the code.
        active_dims: k.
        aux_weight: of the auxiliary loss; the paper's 1/32.
        dead_rows: a dimension that was zero for so many rows is dead. The paper's 10 million tokens are more than most
            runs here have.
    """

    betas = (0.9, 0.999)  # of Adam

    def __init__(
        self, vectors: Tensor, width: int, active_dims: int, aux_weight: float = 1 / 32, dead_rows: int = 10_000
    ) -> None:
        super().__init__()
        size = vectors.shape[1]
        self.width, self.active_dims, self.aux_weight, self.dead_rows = width, active_dims, aux_weight, dead_rows
        self.most_revived = max(1, size // 2)  # k_aux; the paper takes a power of two near to it
        self.decoder = nn.Parameter(F.normalize(torch.randn(width, size), dim=1))
        self.encoder = nn.Parameter(self.decoder.detach().clone())
        self.latent_bias = nn.Parameter(torch.zeros(width))
        self.pre_bias = nn.Parameter(geometric_median(vectors[:ENCODE_ROWS]))
        self.idle_rows = torch.zeros(width, dtype=torch.long)  # since a dimension was on

    def bias(self) -> Tensor:
        """`c - W_e b`, `(width,)`."""
        return self.latent_bias - self.encoder @ self.pre_bias

    @torch.no_grad()
    def preactivations(self, vectors: Tensor, bias: Tensor | None = None) -> Tensor:
        """`W_e x + bias` of all dimensions without gradients, `(rows, width)`; `bias` is `self.bias()`, if known."""
        return torch.addmm(self.bias() if bias is None else bias, vectors, self.encoder.T)

    def kept(self, preactivations: Tensor) -> Entries:
        """What training keeps."""
        return largest_per_row(preactivations, self.active_dims)

    def used(self, preactivations: Tensor) -> Entries:
        """What use keeps."""
        return self.kept(preactivations)

    def loss(self, vectors: Tensor, progress: float) -> Tensor:
        """The loss of a batch `(rows, size)`, per number.

        Args:
            vectors: the batch.
            progress: share of the steps that are done (0 to 1).
        """
        bias = self.bias()
        preactivations = self.preactivations(vectors, bias)
        entries = self.kept(preactivations)
        values = encode_at(vectors, self.encoder, bias, preactivations, entries).relu()
        self.watch(values.detach(), entries)
        error, residual = self.reconstruction_loss(vectors, values, entries)
        return error + self.aux_weight * self.revival_loss(vectors, residual.detach())

    def reconstruction_loss(self, vectors: Tensor, values: Tensor, entries: Entries) -> tuple[Tensor, Tensor]:
        """The squared error, and the residual `x - x^` `(rows, size)`."""
        residual = vectors - decode_at(values, self.decoder, entries) - self.pre_bias
        return residual.square().mean(), residual

    def watch(self, values: Tensor, entries: Entries) -> None:
        """Note which dimensions are on."""
        self.idle_rows += entries.shape[0]
        self.idle_rows[entries.columns[values > 0]] = 0

    def revival_loss(self, vectors: Tensor, residual: Tensor) -> Tensor:
        """`||e - e^||^2` over the variance of e, as in its released code.

        e is the residual, e^ what the k_aux largest dead dimensions of a row make of it.
        """
        dead = (self.idle_rows >= self.dead_rows).nonzero().flatten()
        if not len(dead):
            return residual.new_zeros(())
        centred = vectors - self.pre_bias.detach()
        codes = torch.addmm(self.latent_bias[dead], centred, self.encoder[dead].T).relu()
        return normalized_error(at_most(codes, self.most_revived) @ self.decoder[dead], residual)

    @torch.no_grad()
    def before_step(self) -> None:
        """Take the part along the rows of `W_d` from its gradient."""
        gradient = cast(Tensor, self.decoder.grad)
        gradient.sub_((gradient * self.decoder).sum(1, keepdim=True) * self.decoder)

    @torch.no_grad()
    def after_step(self) -> None:
        """Rows of `W_d` to norm 1."""
        self.decoder.div_(self.decoder.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def encode(self, vectors: Tensor, active_dims: int | None = None) -> sparse.csr_matrix:
        """Codes `(rows, width)` of `vectors` `(rows, size)`: by the method's rule, or the `active_dims` largest."""
        blocks = []
        for part in vectors.split(ENCODE_ROWS):
            preactivations = self.preactivations(part)
            entries = largest_per_row(preactivations, active_dims) if active_dims else self.used(preactivations)
            values = preactivations[entries.rows, entries.columns].relu().numpy()
            places = (entries.rows.numpy(), entries.columns.numpy())
            block = sparse.csr_matrix((values, places), shape=entries.shape)
            block.eliminate_zeros()
            blocks.append(block)
        return sparse.vstack(blocks, format="csr")

    @torch.no_grad()
    def decode(self, codes: sparse.csr_matrix) -> np.ndarray:
        """Reconstructions `(rows, size)` of codes `(rows, width)`."""
        return np.asarray(codes @ self.decoder.numpy() + self.pre_bias.numpy())


def _ramp(progress: float, end: float) -> float:
    """From 0 linearly to 1 where `progress` reaches `end`."""
    return 1.0 if progress >= end else progress / end


def normalized_error(made: Tensor, wanted: Tensor) -> Tensor:
    """The squared error over the variance of what is wanted, both `(rows, size)`."""
    return F.mse_loss(made, wanted) / (wanted - wanted.mean(0)).square().mean().clamp(min=1e-12)


def at_most(codes: Tensor, count: int) -> Tensor:
    """`codes` `(rows, width)` with all but the `count` largest of a row set to zero."""
    if codes.shape[1] <= count:
        return codes
    least = codes.detach().topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)
    return codes * (codes >= least)


class BatchTopK(TopK):
    """Bussmann et al. 2024: the k * rows largest of a batch. In use, what exceeds a threshold.

    The threshold is the mean over batches of the least value that is on; here a running mean, as the weights move.

    Args:
        vectors: as of `TopK`, like all that is not named here.
        width: of the code.
        active_dims: k, on average.
        options: of `TopK`.
    """

    momentum = 0.99  # of the running mean

    def __init__(self, vectors: Tensor, width: int, active_dims: int, **options: Any) -> None:
        super().__init__(vectors, width, active_dims, **options)
        self.threshold: Tensor | None = None

    def kept(self, preactivations: Tensor) -> Entries:
        """The k * rows largest of the batch."""
        return largest_in_batch(preactivations, self.active_dims)

    def used(self, preactivations: Tensor) -> Entries:
        """What exceeds the threshold."""
        if self.threshold is None:
            raise ValueError("`steps` must be at least 1 for a threshold, got none; train.")
        return above(preactivations, self.threshold)

    def watch(self, values: Tensor, entries: Entries) -> None:
        """Note which dimensions are on, and the least value."""
        super().watch(values, entries)
        least = values[values > 0].min()
        old = least if self.threshold is None else self.threshold
        self.threshold = self.momentum * old + (1 - self.momentum) * least


class Matryoshka(BatchTopK):
    """Bussmann et al. 2025: BatchTopK, with the error of every prefix of the code, each of the whole vector.

    `L = mean_m ||x - W_d[:m]^T z[:m] - b||^2 + aux_weight L_aux`.

    Args:
        vectors: as of `TopK`, like all that is not named here.
        width: of the code.
        active_dims: k, on average.
        prefixes: shares of the width, ascending, the last 1.
        options: of `TopK`.
    """

    def __init__(
        self,
        vectors: Tensor,
        width: int,
        active_dims: int,
        prefixes: tuple[float, ...] = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0),
        **options: Any,
    ) -> None:
        super().__init__(vectors, width, active_dims, **options)
        self.prefixes = torch.tensor(sorted({max(1, round(share * width)) for share in prefixes}))

    def reconstruction_loss(self, vectors: Tensor, values: Tensor, entries: Entries) -> tuple[Tensor, Tensor]:
        """The mean of the prefixes' squared errors, and the residual of the whole code `(rows, size)`."""
        rows, count = entries.shape[0], len(self.prefixes)
        group = torch.searchsorted(self.prefixes, entries.columns, right=True)
        groups = Entries(entries.rows * count + group, entries.columns, (rows * count, self.width))
        parts = decode_at(values, self.decoder, groups).view(rows, count, -1)  # what each group of dimensions adds
        residual, error = vectors - self.pre_bias, torch.zeros(())
        for part in parts.unbind(1):
            residual = residual - part
            error = error + residual.square().mean() / count
        return error, residual


class JumpReLU(TopK):
    """Rajamanoharan et al. 2024: a learnt threshold per dimension, and a penalty on the number of non-zeros.

    `L = ||x - x^||^2 + penalty_weight (L_0 / k - 1)^2`, the form for a wanted number, with the error per number and L_0
    the mean of the batch. The penalty grows over the first `warmup` of the steps. Thresholds begin where four times k
    dimensions exceed them. Adam is without momentum, as in the paper.

    Args:
        vectors: as of `TopK`, like all that is not named here.
        width: of the code.
        active_dims: k, on average.
        penalty_weight: of the penalty; the smaller, the further above k are the non-zeros.
        bandwidth: of the rectangle kernel, in units of the vectors' numbers.
        warmup: share of the steps (0 to 1).
    """

    betas = (0.0, 0.999)

    def __init__(
        self,
        vectors: Tensor,
        width: int,
        active_dims: int,
        penalty_weight: float = 3.0,
        bandwidth: float = 0.5,
        warmup: float = 0.3,
    ) -> None:
        super().__init__(vectors, width, active_dims)
        self.penalty_weight, self.bandwidth, self.warmup = penalty_weight, bandwidth, warmup
        sample = self.preactivations(vectors[:ENCODE_ROWS]).flatten().numpy()
        start = np.quantile(sample, 1 - min(4 * active_dims, width // 2) / width)
        self.log_threshold = nn.Parameter(torch.full((width,), float(np.log(max(start, 1e-3)))))

    def used(self, preactivations: Tensor) -> Entries:
        """What exceeds the thresholds."""
        return above(preactivations, self.log_threshold.detach().exp())

    def loss(self, vectors: Tensor, progress: float) -> Tensor:
        """The loss of a batch, as `TopK.loss`."""
        bias = self.bias()
        preactivations = self.preactivations(vectors, bias)
        lowest = self.log_threshold.detach().exp() - self.bandwidth / 2  # below it nothing has a value or a gradient
        entries = above(preactivations, lowest.clamp(min=0))
        values = encode_at(vectors, self.encoder, bias, preactivations, entries)
        threshold = self.log_threshold.exp()[entries.columns]
        codes = jump_relu(values, threshold, self.bandwidth)
        active = step_function(values, threshold, self.bandwidth).sum() / len(vectors)
        penalty = (active / self.active_dims - 1).square() * _ramp(progress, self.warmup)
        return self.reconstruction_loss(vectors, codes, entries)[0] + self.penalty_weight * penalty


class CSR(TopK):
    """Wen et al. 2025, in the form of sentence-transformers' SparseAutoEncoder and CSRLoss, whose loss it equals.

    `L = L(k) + L(4k) / 8 + aux_weight L_aux + contrast_weight InfoNCE(z, z)`: a row is its own positive, the batch its
    negatives. `W_d` is `W_e`, and its rows have any norm. sentence-transformers encodes both sides of the pair, which
    are equal; here this is done once. Its counter of idle passes (30, four a step) is 8 steps.

    Args:
        vectors: as of `TopK`, like all that is not named here.
        width: of the code.
        active_dims: k.
        aux_weight: of the auxiliary loss.
        contrast_weight: of InfoNCE.
        temperature: that similarities are divided by.
    """

    dead_steps = 8
    most_revived = 512  # k_aux

    def __init__(
        self,
        vectors: Tensor,
        width: int,
        active_dims: int,
        aux_weight: float = 0.1,
        contrast_weight: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        nn.Module.__init__(self)
        self.width, self.active_dims, self.aux_weight = width, active_dims, aux_weight
        self.contrast_weight, self.temperature = contrast_weight, temperature
        self.encoder = nn.Parameter(nn.Linear(vectors.shape[1], width, bias=False).weight.detach())
        self.decoder = self.encoder
        self.latent_bias = nn.Parameter(torch.zeros(width))
        self.pre_bias = nn.Parameter(torch.zeros(vectors.shape[1]))
        self.idle_steps = torch.zeros(width, dtype=torch.long)

    def count_at(self, progress: float) -> int:
        """How many are kept at this share of the steps."""
        return self.active_dims

    def loss(self, vectors: Tensor, progress: float) -> Tensor:
        """The loss of a batch, as `TopK.loss`."""
        bias, rows = self.bias(), len(vectors)
        preactivations = self.preactivations(vectors, bias)
        few = self.count_at(progress)
        many = min(4 * few, self.width)
        order = np.argpartition(preactivations.numpy(), sorted({self.width - many, self.width - few}), axis=1)
        columns = torch.from_numpy(order[:, self.width - many :])  # of the 4k largest; the last k are the k largest
        entries_4k, entries_k = (_in_every_row(part, self.width) for part in (columns, columns[:, -few:]))
        values_4k = encode_at(vectors, self.encoder, bias, preactivations, entries_4k).relu()
        values_k = values_4k.view(rows, many)[:, -few:].reshape(-1)
        self.watch(values_4k.detach(), entries_4k)
        error_k, residual = self.reconstruction_loss(vectors, values_k, entries_k)
        error_4k, _ = self.reconstruction_loss(vectors, values_4k, entries_4k)
        loss = error_k + error_4k / 8 + self.aux_weight * self.revival_loss(vectors, residual.detach())
        return loss + self.contrast_weight * self.contrast(values_k, entries_k)

    def watch(self, values: Tensor, entries: Entries) -> None:
        """Note which dimensions are on."""
        self.idle_steps += 1
        self.idle_steps[entries.columns[values > 1e-5]] = 0

    def revival_loss(self, vectors: Tensor, residual: Tensor) -> Tensor:
        """`||e - e^||^2` over the variance of e, where `e = x - x^ + b`; b has its gradient in e^ alone."""
        dead = (self.idle_steps > self.dead_steps).nonzero().flatten()
        codes = torch.addmm(self.latent_bias[dead], vectors - self.pre_bias, self.encoder[dead].T).relu()
        made = at_most(codes, self.most_revived) @ self.decoder[dead] + self.pre_bias
        return normalized_error(made, residual + self.pre_bias.detach())

    def contrast(self, values: Tensor, entries: Entries) -> Tensor:
        """InfoNCE of the codes with themselves, by dot products."""
        return info_nce(values, entries, self.temperature)

    def before_step(self) -> None:
        """Nothing: rows of `W_d` have any norm."""

    def after_step(self) -> None:
        """Nothing."""


class CSRv2(CSR):
    """Guo et al. 2026, as far as it applies to vectors of a frozen encoder without labels.

    From the paper: `k_t = (1 - p) k_initial + p k`, where p grows linearly and k_initial = 64, on top of CSR's loss.
    From its released code: p reaches 1 after 70% of the steps, k_initial is at most a quarter of the width, the
    contrast is by cosines at temperature 0.2, and a dimension is dead after 10 steps (30 passes, three a step).
    Left out: labels in the contrast, and the training of the encoder. A row is its own positive, as in the released
    code without labels, whose two views are equal.

    Args:
        vectors: as of `TopK`, like all that is not named here.
        width: of the code.
        active_dims: k at the end.
        initial_active_dims: k at the start.
        annealed: share of the steps after which k is reached (0 to 1).
        options: of `CSR`.
    """

    dead_steps = 10
    most_revived = 1024

    def __init__(
        self,
        vectors: Tensor,
        width: int,
        active_dims: int,
        initial_active_dims: int = 64,
        annealed: float = 0.7,
        contrast_weight: float = 0.1,
        temperature: float = 0.2,
        **options: Any,
    ) -> None:
        options |= {"contrast_weight": contrast_weight, "temperature": temperature}
        super().__init__(vectors, width, active_dims, **options)
        self.initial_active_dims = max(min(initial_active_dims, width // 4), active_dims)
        self.annealed = annealed

    def count_at(self, progress: float) -> int:
        """How many are kept at this share of the steps."""
        done = _ramp(progress, self.annealed)
        return round((1 - done) * self.initial_active_dims + done * self.active_dims)

    def contrast(self, values: Tensor, entries: Entries) -> Tensor:
        """InfoNCE of the codes with themselves, by cosines."""
        norms = values.view(entries.shape[0], -1).norm(dim=1).clamp(min=1e-8)
        return info_nce(values / norms[entries.rows], entries, self.temperature)


def info_nce(values: Tensor, entries: Entries, temperature: float) -> Tensor:
    """`mean_i -log(exp(s_ii) / sum_j exp(s_ij))`, where `s = z z^T / temperature` of codes `(rows, width)`."""
    similarity = decode_at(values, entries.matrix(values).T.contiguous(), entries) / temperature
    return F.cross_entropy(similarity, torch.arange(entries.shape[0]))


METHODS: dict[str, Callable[..., TopK]] = {
    method.__name__: method for method in (CSR, CSRv2, TopK, BatchTopK, Matryoshka, JumpReLU)
}


def train(
    model: TopK, vectors: Tensor, steps: int, batch_size: int, learning_rate: float, decay: float, seed: int
) -> None:
    """Train by Adam on batches of rows that are shuffled anew for every pass over them.

    Args:
        model: one of `METHODS`.
        vectors: `(rows, size)`.
        steps: batches.
        batch_size: rows of each.
        learning_rate: constant, then linear to zero over the last `decay` of the steps (0 to 1).
        decay: see there.
        seed: of the order of the rows.
    """
    generator = torch.Generator().manual_seed(seed)
    passes = -(-steps * batch_size // len(vectors))
    order = torch.cat([torch.randperm(len(vectors), generator=generator) for _ in range(passes)])
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=model.betas, eps=ADAM_EPSILON, fused=True)
    for step in range(steps):
        rows = order[step * batch_size : (step + 1) * batch_size]
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (1 - step / steps) / max(decay, 1e-9))
        loss = model.loss(vectors[rows], step / steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        model.before_step()
        optimizer.step()
        model.after_step()
