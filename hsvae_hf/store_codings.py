"""Codes as stores take them: canonical rows, fewer non-zeros, length 1, no signs, whole numbers; what that loses."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from hsvae_hf.code_shards import ShardedCodes
from hsvae_hf.input_checks import check_positive

SIGNS = ("split", "abs", "none")
STEPS = {"int8": 127, "uint8": 255}  # the largest whole number of each quantisation
_ROWS = 4096  # of a matrix, worked on together
_TIE = 1e-6


def read_blocks(codes: Any, folder: Path) -> Iterator[sparse.csr_matrix]:
    """Canonical blocks of codes. An iterator is kept in files meanwhile, for `read_again`.

    Args:
        codes: a matrix of scipy, an iterable of them, or the view of `load_codes`.
        folder: an empty folder for the files.

    Yields:
        Blocks, `(rows, latent_size)` each, float32: indices ascending and once each, no zeros, finite.

    Raises:
        ValueError: for anything else, naming the row.
    """
    row, columns = 0, None
    for number, block in enumerate(_blocks(codes)):
        block = canonical(block, row)
        if columns not in (None, block.shape[1]):
            raise ValueError(
                f"`codes` must be blocks of one width, got {block.shape[1]} columns in block {number} after {columns}; "
                "export codes of different models apart."
            )
        columns, row = block.shape[1], row + block.shape[0]
        if _read_once(codes):
            sparse.save_npz(folder / f"{number}.npz", block, compressed=False)
        yield block


def read_again(codes: Any, folder: Path) -> Iterator[sparse.csr_matrix]:
    """The blocks that `read_blocks` gave."""
    if not _read_once(codes):
        yield from map(canonical, _blocks(codes))
        return
    for path in sorted(folder.glob("*.npz"), key=lambda path: int(path.stem)):
        yield sparse.load_npz(path)


def _read_once(codes: object) -> bool:
    return not (sparse.issparse(codes) or isinstance(codes, list | tuple | ShardedCodes))


def _blocks(codes: Any) -> Iterator[Any]:
    if sparse.issparse(codes):
        if codes.ndim != 2:
            raise ValueError(f"`codes` must be a matrix, (rows, latent_size), got the shape {codes.shape}; reshape it.")
        rows = codes.tocsr()
        starts = range(0, max(1, rows.shape[0]), _ROWS)
        yield from (rows if len(starts) == 1 else rows[start : start + _ROWS] for start in starts)
    elif isinstance(codes, ShardedCodes):
        yield from codes.blocks(_ROWS)
    elif not isinstance(codes, Iterable) or isinstance(codes, np.ndarray | str | bytes | Mapping):
        raise ValueError(
            f"`codes` must be a sparse matrix of scipy or an iterable of them, got a {type(codes).__name__}; pass "
            "scipy.sparse.csr_matrix(codes)."
        )
    else:
        yield from codes


def canonical(block: Any, first: int = 0) -> sparse.csr_matrix:
    """A copy in float32 with duplicates summed, indices ascending, and no zeros.

    Args:
        block: a matrix of scipy, `(rows, latent_size)`.
        first: the number of its first row, for the error.

    Raises:
        ValueError: if it is no matrix of numbers, or damaged, or not finite.
    """
    if not sparse.issparse(block) or block.ndim != 2 or block.dtype.kind not in "fiu" or block.dtype == np.float16:
        shown = f"{type(block).__name__} of {getattr(block, 'dtype', 'no type')}"  # scipy itself takes no float16
        raise ValueError(f"`codes` must be sparse matrices of numbers, got a {shown}; pass csr_matrix(..., float32).")
    codes = sparse.csr_matrix(block, copy=True)
    try:
        codes.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(
            f"`codes` must be a valid CSR matrix, got one that is not: {error}; build it again."
        ) from error
    codes.sum_duplicates()
    with np.errstate(over="ignore"):
        codes = codes.astype(np.float32)
    if not np.isfinite(codes.data).all():
        row = first + row_of(codes, int(np.isfinite(codes.data).argmin()))
        raise ValueError(f"`codes` must be finite in float32, got NaN or infinity in row {row}; drop or repair it.")
    codes.eliminate_zeros()
    return codes


def row_of(codes: sparse.csr_matrix, position: int) -> int:
    """The row in which the non-zero at `position` is."""
    return int(np.searchsorted(codes.indptr, position, side="right")) - 1


@dataclass(frozen=True)
class Coding:
    """What is done to codes before they are stored.

    Args:
        nonnegative: `"split"`, `"abs"` or `"none"`.
        normalize: whether rows get length 1.
        max_active_dims: the most non-zeros of a row; None for any.
        quantize: `"int8"`, `"uint8"`, or None for numbers as they are.
    """

    nonnegative: str = "none"
    normalize: bool = False
    max_active_dims: int | None = None
    quantize: str | None = None

    def __call__(self, codes: sparse.csr_matrix) -> sparse.csr_matrix:
        """The codes, `(rows, latent_size)`, twice as wide after a split, before quantisation."""
        codes = keep_largest_of_rows(codes, self.max_active_dims)
        return without_sign(unit_rows(codes) if self.normalize else codes, self.nonnegative)


def keep_largest_of_rows(codes: sparse.csr_matrix, count: int | None) -> sparse.csr_matrix:
    """All but the `count` largest magnitudes of each row are dropped; of equal ones the first dimensions stay.

    >>> keep_largest_of_rows(sparse.csr_matrix([[1.0, -3.0, 2.0]]), 2).toarray()
    array([[ 0., -3.,  2.]])
    """
    lengths = np.diff(codes.indptr)
    if count is None or not (lengths > count).any():
        return codes
    rows = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((codes.indices, -np.abs(codes.data), rows))
    rank = np.arange(len(order)) - codes.indptr[rows]  # rows stay in their order
    kept = np.sort(order[rank < count])
    starts = np.concatenate(([0], np.cumsum(np.minimum(lengths, count))))
    return sparse.csr_matrix((codes.data[kept], codes.indices[kept], starts), shape=codes.shape)


def unit_rows(codes: sparse.csr_matrix) -> sparse.csr_matrix:
    """Each row divided by its length, in float32; one without a non-zero stays."""
    values = codes.data.astype(np.float64)
    rows = np.repeat(np.arange(codes.shape[0]), np.diff(codes.indptr))
    lengths = np.sqrt(np.bincount(rows, values**2, minlength=codes.shape[0]))
    scaled = sparse.csr_matrix(
        ((values / lengths[rows]).astype(np.float32), codes.indices, codes.indptr), shape=codes.shape
    )
    scaled.eliminate_zeros()
    return scaled


def without_sign(codes: sparse.csr_matrix, how: str) -> sparse.csr_matrix:
    """Codes without negative values.

    Args:
        codes: `(rows, latent_size)`, canonical.
        how: `"split"` gives `(rows, 2 * latent_size)`: positive values where they were, then the negative ones,
            negated. `"abs"` gives magnitudes, `"none"` the codes.

    >>> without_sign(sparse.csr_matrix([[1.0, -2.0]]), "split").toarray()
    array([[1., 0., 0., 2.]])
    """
    if how == "none":
        return codes
    columns, indices = codes.shape[1], codes.indices
    if how == "split":
        indices = indices.astype(np.int64) + columns * (codes.data < 0)
        columns *= 2
    shape = (codes.shape[0], columns)
    result = sparse.csr_matrix((np.abs(codes.data), indices, codes.indptr.copy()), shape=shape)
    result.sort_indices()
    return result


def both_signs(codes: sparse.csr_matrix) -> sparse.csr_matrix:
    """`[codes, -codes]`, `(rows, 2 * latent_size)`: its product with a split code is the product of the codes."""
    return sparse.hstack([codes, -codes], format="csr")


def quantized(codes: sparse.csr_matrix, quantize: str | None, scale: float) -> sparse.csr_matrix:
    """Values divided by the scale and rounded, as whole numbers of that type; what is rounded to 0 is dropped."""
    if quantize is None:
        return codes
    numbers = np.rint(codes.data.astype(np.float64) / scale).astype(quantize)
    result = sparse.csr_matrix((numbers, codes.indices, codes.indptr), shape=codes.shape, copy=True)
    result.eliminate_zeros()
    return result


def scale_of(largest: float, quantize: str | None) -> float | None:
    """What one step of the quantisation is worth, when the largest magnitude takes the largest number."""
    if quantize is None:
        return None
    return largest / STEPS[quantize] if largest else 1.0


def nonnegative_loss(codes: Any, nonnegative: str = "split", neighbors: int = 10, max_rows: int = 2000) -> float:
    """What codes lose where a store refuses negative values: the share of nearest rows that are lost.

    Each row looks for its nearest other rows by cosine, with signs and without. Rows without a non-zero take no part.

    Args:
        codes: `(rows, latent_size)`, any sparse matrix of scipy.
        nonnegative: `"split"` or `"abs"`, as in `export`.
        neighbors: nearest rows of each (>= 1).
        max_rows: so many rows at most, the first ones (>= 2), since each is compared with each.

    Returns:
        0 (all are kept) to 1 (none is), over rows. One that is as near with signs as the last of the nearest counts as
        kept. 0 if there are fewer than two rows.

    Raises:
        ValueError: if the codes are none, or an option is out of range.

    >>> codes = sparse.csr_matrix([[1.0, 0.5], [0.9, -0.6], [0.2, 1.0]])
    >>> [round(nonnegative_loss(codes, how, neighbors=1), 2) for how in ("split", "abs")]
    [0.33, 0.67]
    """
    if nonnegative not in SIGNS[:2]:
        raise ValueError(f"`nonnegative` must be 'split' or 'abs', got {nonnegative!r}; choose one.")
    check_positive(neighbors=neighbors, max_rows=max_rows)
    signed = canonical(codes[:max_rows] if sparse.issparse(codes) and codes.format == "csr" else codes)[:max_rows]
    signed = unit_rows(signed[np.diff(signed.indptr) > 0])
    rows = signed.shape[0]
    count = min(neighbors, rows - 1)
    if count < 1:
        return 0.0
    exact = _similarities(signed)
    found = np.argpartition(-_similarities(without_sign(signed, nonnegative)), count - 1, axis=1)[:, :count]
    threshold = -np.partition(-exact, count - 1, axis=1)[:, count - 1 : count]  # (rows, 1): of the last of the nearest
    kept = np.take_along_axis(exact, found, axis=1) >= threshold - _TIE
    return float(1 - kept.mean())


def _similarities(codes: sparse.csr_matrix) -> np.ndarray:
    """Products of rows with all others, `(rows, rows)`; a row is infinitely far from itself."""
    products = (codes @ codes.T).toarray()
    np.fill_diagonal(products, -np.inf)
    return np.asarray(products)
