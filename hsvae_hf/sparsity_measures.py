"""Sparsity of codes over a corpus that comes in batches: active dimensions, gates, Average Hoyer."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse
from torch import Tensor

Codes: TypeAlias = np.ndarray | Tensor | sparse.csr_matrix | Sequence[Sequence[float]]  # (rows, latent_size)

CHUNK_VALUES = 2**20  # numbers in memory at a time: 8 MiB in float64, and a few copies of that
FILE_BYTES = 2**22  # codes up to this size stay in memory, more go to a temporary file
ALWAYS_ON_SHARE = 0.99
SWITCHING_SHARES = 0.05, 0.95


def dense_chunks(codes: Codes, width: int | None = None) -> Iterator[np.ndarray]:
    """Check a batch of codes as a whole, then cut it into dense chunks of at most `CHUNK_VALUES` numbers.

    Args:
        codes: `(rows, latent_size)`: a numpy array, torch tensor (dense or sparse), scipy sparse matrix or nested list.
        width: the `latent_size` of the batches before; None for the first batch.

    Yields:
        Arrays of shape `(chunk, latent_size)`.

    Raises:
        ValueError: if `codes` is not a matrix of finite numbers, is empty, or has another width.

    Example:
        >>> [chunk.shape for chunk in dense_chunks(sparse.csr_matrix((3, 2**19)))]
        [(2, 524288), (1, 524288)]
    """
    try:
        matrix = as_matrix(codes)
    except ValueError as error:  # from numpy
        raise ValueError("`codes` must be a (rows, latent_size) matrix, got rows of different lengths.") from error
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(
            f"`codes` must be a (rows, latent_size) matrix with at least one row, got shape {matrix.shape}. "
            "Pass a batch of codes, one row per sentence."
        )
    values = matrix.data if sparse.issparse(matrix) else matrix
    if values.dtype.kind not in "fiub":
        raise ValueError(f"`codes` must hold numbers, got {values.dtype}. Pass float codes without None or text.")
    lowest, highest = float(values.min(initial=0)), float(values.max(initial=0))
    if not max(-lowest, highest) <= float(np.finfo(np.float32).max):  # NaN is not
        raise ValueError(
            f"`codes` must hold finite numbers in the float32 range, got values from {lowest} to {highest}. "
            "Check the model for divergence."
        )
    if width not in (None, matrix.shape[1]):
        raise ValueError(
            f"`codes` must be {width} wide like the batches before, got {matrix.shape[1]}. Use one object per model."
        )
    step = max(1, CHUNK_VALUES // matrix.shape[1])
    for start in range(0, matrix.shape[0], step):
        rows = matrix[start : start + step]
        yield rows.toarray() if sparse.issparse(rows) else rows


def as_matrix(values: Any) -> Any:
    """A scipy sparse matrix in CSR form; anything else as a numpy array, tensors from any device too."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().to_dense()
        half = values.is_floating_point() and values.dtype.itemsize < 4
        return (values.float() if half else values).numpy()  # numpy has no bfloat16
    return values.tocsr() if sparse.issparse(values) else np.asarray(values)


class Moments:
    """Mean and standard deviation of each dimension over rows that come in batches (Chan et al. 1979).

    Rows are counted from the first one, so the deviation of a constant dimension is exactly 0.

    Example:
        >>> moments = Moments()
        >>> moments.update(np.array([[1.0, 0.1], [3.0, 0.1]]))
        >>> moments.mean, moments.std
        (array([2. , 0.1]), array([1., 0.]))
    """

    def __init__(self) -> None:
        self.rows = 0
        self._origin = self._mean = self._squares = np.zeros(0)

    def update(self, values: np.ndarray) -> None:
        """Add rows, `(rows, size)`."""
        if not len(values):
            return
        if self.rows == 0:
            self._origin = values[0].astype(np.float64)
            self._mean, self._squares = np.zeros_like(self._origin), np.zeros_like(self._origin)
        offsets = values - self._origin
        added, mean = len(offsets), offsets.mean(axis=0)
        step = mean - self._mean
        total = self.rows + added
        self._squares += np.square(offsets - mean).sum(axis=0) + step**2 * (self.rows * added / total)
        self._mean += step * (added / total)
        self.rows = total

    @property
    def mean(self) -> np.ndarray:
        """Mean of each dimension, `(size,)`, float64."""
        return self._origin + self._mean

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation of each dimension, `(size,)`, float64."""
        return np.sqrt(self._squares / max(1, self.rows))


class CodeStatistics:
    """Counts of codes and gates over a corpus; memory is a few numbers per dimension.

    Example:
        >>> statistics = CodeStatistics()
        >>> statistics.update([[0.0, 3.0, 0.0, 0.0], [0.0, 1.0, 0.0, -1.0]])
        >>> statistics.compute()["active_dims"]
        1.5
    """

    def __init__(self) -> None:
        self.width: int | None = None
        self._rows_by_active = np.zeros(0, dtype=np.int64)  # rows with 0, 1, ... non-zeros
        self._rows_on = np.zeros(0, dtype=np.int64)  # rows that each dimension is on for
        self._gates = Moments()

    @property
    def rows(self) -> int:
        """Number of rows so far."""
        return int(self._rows_by_active.sum())

    def update(self, codes: Codes, gate_mean: np.ndarray | Tensor | None = None) -> None:
        """Add a batch.

        Args:
            codes: `(batch, latent_size)`; a dimension is on where its code is not 0.
            gate_mean: `E[gamma|x]` of the same sentences, `(batch, latent_size)`.

        Raises:
            ValueError: as `dense_chunks`, or if `gate_mean` has another shape or holds something else than
                probabilities.
        """
        gates = None if gate_mean is None else _check_gates(gate_mean, np.shape(codes))
        for chunk in dense_chunks(codes, self.width):
            if self.width is None:
                self.width = chunk.shape[1]
                self._rows_by_active = np.zeros(self.width + 1, dtype=np.int64)
                self._rows_on = np.zeros(self.width, dtype=np.int64)
            on = chunk != 0
            self._rows_by_active += np.bincount(on.sum(axis=1), minlength=self.width + 1)
            self._rows_on += on.sum(axis=0)
        if gates is not None:
            self._gates.update(gates)

    def compute(self) -> dict[str, float | int]:
        """Statistics of everything added so far.

        Returns:
            `active_dims`, `min_active_dims`, `max_active_dims`: non-zeros of a row: mean, fewest, most.
            `sparsity_ratio`: share of all entries that are zero. `ever_active_ratio`: share of the dimensions that are
            on for at least one row. `empty_rows`: share of the rows that are all zero. `dead_dims`, `always_on_dims`:
            number of dimensions that are on for no row, and for more than 99% of the rows. `switching_fraction`: share
            of the dimensions that are on for 5% to 95% of the rows.
            Where gates were given: `gate_std`, standard deviation of `E[gamma_i|x]` over sentences, mean over
            dimensions, which is near 0 where gates ignore the input.

        Raises:
            ValueError: if nothing was added.
        """
        if self.width is None:
            raise ValueError("`codes` must hold at least one row, got none. Call `update` before `compute`.")
        rows, entries = self.rows, int(self._rows_on.sum())
        numbers = np.flatnonzero(self._rows_by_active)
        share = self._rows_on / rows
        fewest, most = SWITCHING_SHARES
        result = {
            "active_dims": entries / rows,
            "min_active_dims": int(numbers[0]),
            "max_active_dims": int(numbers[-1]),
            "sparsity_ratio": 1 - entries / (rows * self.width),
            "ever_active_ratio": float((self._rows_on > 0).mean()),
            "empty_rows": int(self._rows_by_active[0]) / rows,
            "dead_dims": int((self._rows_on == 0).sum()),
            "always_on_dims": int((self._rows_on > ALWAYS_ON_SHARE * rows).sum()),
            "switching_fraction": float(((share >= fewest) & (share <= most)).mean()),
        }
        if self._gates.rows:
            result["gate_std"] = float(self._gates.std.mean())
        return result


def _check_gates(gate_mean: object, shape: tuple[int, ...]) -> np.ndarray:
    gates = as_matrix(gate_mean)
    if gates.shape != shape:
        raise ValueError(
            f"`gate_mean` must have the shape of `codes`, {shape}, got {gates.shape}. Pass both from one model output."
        )
    if not (gates.min() >= 0 and gates.max() <= 1):  # NaN is neither
        raise ValueError(
            f"`gate_mean` must hold probabilities in [0, 1], got values from {gates.min()} to {gates.max()}. "
            "Pass the `gate_mean` of a model's output, and check the model for divergence."
        )
    return gates


def hoyer(codes: np.ndarray) -> np.ndarray:
    """Hoyer sparsity of each row, `(sqrt(d) - |z|_1 / |z|_2) / (sqrt(d) - 1)` (Hurley and Rickard 2009).

    Args:
        codes: `(rows, d)`, d at least 2.

    Returns:
        `(rows,)`, float64, from 0 (all magnitudes equal) to 1 (one non-zero); NaN for a row of zeros.

    Raises:
        ValueError: if d is 1, where the measure is not defined.

    Example:
        >>> hoyer(np.array([[0.0, 3.0, 0.0, 0.0], [2.0, -2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]))
        array([ 1.,  0., nan])
    """
    width = codes.shape[-1]
    if width < 2:
        raise ValueError(f"`codes` must have at least 2 dimensions, got {width}: Hoyer is not defined for one.")
    magnitude = np.abs(np.asarray(codes, dtype=np.float64))
    peak = magnitude.max(axis=-1, keepdims=True)
    magnitude /= np.where(peak > 0, peak, 1.0)  # squares of very small or large values would leave float64
    with np.errstate(invalid="ignore"):
        ratio = magnitude.sum(axis=-1) / np.sqrt(np.square(magnitude).sum(axis=-1))
    return (np.sqrt(width) - ratio) / (np.sqrt(width) - 1)


class AverageHoyer:
    """Average Hoyer of a corpus; more than a few megabytes of codes are kept in a temporary file, as float32.

    Example:
        >>> statistics = AverageHoyer()
        >>> statistics.update([[0.0, 3.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
        >>> statistics.compute(normalize=False)
        {'average_hoyer': 0.5, 'empty_rows': 0.0, 'constant_dims': 0}
    """

    def __init__(self) -> None:
        self.width: int | None = None
        self._moments = Moments()
        self._file = tempfile.SpooledTemporaryFile(FILE_BYTES)  # noqa: SIM115 - closed with this object

    def __del__(self) -> None:
        """Delete the temporary file."""
        self._file.close()

    @property
    def rows(self) -> int:
        """Number of rows so far."""
        return self._moments.rows

    def update(self, codes: Codes) -> None:
        """Add codes, `(batch, d)`.

        Raises:
            ValueError: as `dense_chunks`.
        """
        self._file.seek(0, os.SEEK_END)
        for chunk in dense_chunks(codes, self.width):
            self.width = chunk.shape[1]
            rows = np.ascontiguousarray(chunk, dtype=np.float32)
            self._moments.update(rows)
            self._file.write(rows.data)

    def compute(self, normalize: bool = True) -> dict[str, float | int]:
        """Average Hoyer of everything added so far.

        Args:
            normalize: divide every dimension by its standard deviation over the corpus first. A dimension without
                variation has no scale to divide by and is kept as it is: one that is always zero adds to sparsity.

        Returns:
            `average_hoyer`: mean over the rows that are not all zero, NaN if every row is. `empty_rows`: share of the
            rows that are all zero. `constant_dims`: number of dimensions without variation; 0 without `normalize`.

        Raises:
            ValueError: if nothing was added, or codes have one dimension.
        """
        if self.width is None:
            raise ValueError("`codes` must hold at least one row, got none. Call `update` before `compute`.")
        std = self._moments.std if normalize else np.ones(self.width)
        scale = np.where(std > 0, std, 1.0)
        total, full_rows = 0.0, 0
        for rows in self._stored_rows(self.width):
            values = hoyer(rows / scale)
            total += float(np.nansum(values))
            full_rows += int(np.isfinite(values).sum())
        return {
            "average_hoyer": total / full_rows if full_rows else float("nan"),
            "empty_rows": 1 - full_rows / self.rows,
            "constant_dims": int((std == 0).sum()),
        }

    def _stored_rows(self, width: int) -> Iterator[np.ndarray]:
        """Everything added so far, `(chunk, width)` at a time."""
        self._file.seek(0)
        chunk_bytes = max(1, CHUNK_VALUES // width) * width * np.dtype(np.float32).itemsize
        while data := self._file.read(chunk_bytes):
            yield np.frombuffer(data, dtype=np.float32).reshape(-1, width)
