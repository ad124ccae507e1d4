"""Sparse autoencoders of vectors, each written from its paper.

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

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from sparse_entries import (
    Entries,
    above,
    decode_at,
    encode_at,
    in_every_row,
    jump_relu,
    largest_in_batch,
    largest_per_row,
    step_function,
)
from torch import Tensor, nn
from torch.nn import functional as F

ENCODE_ROWS = 4096  # rows that `encode` takes at a time


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
        entries_4k, entries_k = (in_every_row(part, self.width) for part in (columns, columns[:, -few:]))
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
