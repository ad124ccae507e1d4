"""Active dimensions: how many dimensions of a code are not zero, over a corpus.

This file stands alone, because `evaluate.load` copies it out of its folder: it imports nothing of hsvae_hf.
"""

from collections.abc import Iterable, Iterator

import datasets
import evaluate
import numpy as np
import pyarrow as pa

CHUNK_VALUES = 2**20  # numbers held in memory at a time: 8 MiB in float64, and a few copies of that

_DESCRIPTION = """\
Counts the non-zero dimensions of sparse codes. `active_dims` and `sparsity_ratio` mean what they mean in
sentence-transformers.
"""

_INPUTS = """\
Args:
    predictions: codes, (batch, d): a numpy array, torch tensor, scipy sparse matrix or nested list.
Returns:
    active_dims (float): mean number of non-zero dimensions of a row.
    min_active_dims, max_active_dims (int): the fewest and the most in a row.
    sparsity_ratio (float): share of all entries that are zero, 1 - active_dims / d.
    ever_active_ratio (float): share of the dimensions that are non-zero in at least one row.
    empty_rows (float): share of the rows that are all zero.
Examples:
    >>> metric = evaluate.load("active_dims")
    >>> metric.compute(predictions=[[0.0, 3.0, 0.0, 0.0], [0.0, 1.0, 0.0, -1.0]])
    {'active_dims': 1.5, 'min_active_dims': 1, 'max_active_dims': 2, 'sparsity_ratio': 0.625,
     'ever_active_ratio': 0.5, 'empty_rows': 0.0}
"""


def count_active(chunks: Iterable[np.ndarray]) -> dict[str, float | int]:
    """Count the non-zero dimensions of a corpus given in chunks, of which one is in memory at a time.

    Args:
        chunks: arrays of shape `(rows, d)`.

    Returns:
        The fields of the module's description.

    Raises:
        ValueError: if there are no rows.

    Example:
        >>> count_active([np.array([[0.0, 3.0], [0.0, 0.0]])])["active_dims"]
        0.5
    """
    width = 0
    for chunk in chunks:
        active = chunk != 0
        if not width:
            width = active.shape[1]
            rows_by_active, ever = np.zeros(width + 1, dtype=np.int64), np.zeros(width, dtype=bool)
        rows_by_active += np.bincount(active.sum(axis=1), minlength=width + 1)
        ever |= active.any(axis=0)
    if not width:
        raise ValueError("`chunks` must hold at least one row, got none. Pass the codes of a corpus.")
    numbers = np.flatnonzero(rows_by_active)
    rows, entries = int(rows_by_active.sum()), int(rows_by_active @ np.arange(len(rows_by_active)))
    return {
        "active_dims": entries / rows,
        "min_active_dims": int(numbers[0]),
        "max_active_dims": int(numbers[-1]),
        "sparsity_ratio": 1 - entries / (rows * width),
        "ever_active_ratio": float(ever.mean()),
        "empty_rows": int(rows_by_active[0]) / rows,
    }


def dense_chunks(codes: object) -> Iterator[np.ndarray]:
    """Check a batch of codes as a whole, then cut it into dense chunks of at most `CHUNK_VALUES` numbers.

    Args:
        codes: `(batch, d)`: a numpy array, torch tensor (dense or sparse), scipy sparse matrix or nested list.

    Yields:
        Arrays of shape `(rows, d)`.

    Raises:
        ValueError: if `codes` is not a matrix of finite numbers, or is empty.
    """
    if hasattr(codes, "detach"):
        tensor = codes.detach().cpu().to_dense()
        codes = (tensor.float() if tensor.dtype.itemsize < 4 else tensor).numpy()  # numpy has no bfloat16
    if hasattr(codes, "tocsr"):
        matrix = codes.tocsr()
        values = matrix.data
    else:
        try:
            matrix = values = np.asarray(codes)
        except ValueError as error:
            raise ValueError(
                "`predictions` must be a (batch, d) matrix, got rows of different lengths. Pass codes of one width."
            ) from error
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(
            f"`predictions` must be a (batch, d) matrix with at least one row, got shape {matrix.shape}. "
            "Pass a batch of codes, one row per sentence."
        )
    if values.dtype.kind not in "fiub":
        raise ValueError(f"`predictions` must hold numbers, got {values.dtype}. Pass float codes without None or text.")
    extremes = np.array([values.min(initial=0), values.max(initial=0)], dtype=np.float64)
    if not (np.abs(extremes) <= np.finfo(np.float32).max).all():  # not true of NaN either
        raise ValueError(
            "`predictions` must hold finite numbers in the float32 range, got values from "
            f"{extremes[0]} to {extremes[1]}. Check the model for divergence."
        )
    step = max(1, CHUNK_VALUES // matrix.shape[1])
    for start in range(0, matrix.shape[0], step):
        rows = matrix[start : start + step]
        yield rows.toarray() if hasattr(rows, "toarray") else rows


class StoredRows:
    """The stored corpus as `evaluate` hands it to `_compute`, read from disk in chunks, as often as wanted.

    `Metric.compute` asks for `data["predictions"][:]`, which on a data set makes a Python list of every number.
    """

    def __init__(self, data: datasets.Dataset, width: int) -> None:
        self.data = data.with_format("arrow")
        self.width = width

    def set_format(self, type: str | None = None) -> None:
        """Do nothing: the rows come out as numpy arrays."""

    def __getitem__(self, key: str | slice) -> "StoredRows":
        return self

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield arrays of shape `(rows, d)`."""
        for table in self.data.iter(batch_size=max(1, CHUNK_VALUES // self.width)):
            rows = table["predictions"].combine_chunks()
            yield rows.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), self.width)


class ActiveDims(evaluate.Metric):
    """Active dimensions over a corpus added in batches, of which one bit per entry is kept on disk."""

    data: datasets.Dataset | StoredRows | None

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("bool"))}),
        )

    def add(self, *, prediction: object) -> None:
        """Add one code, `(d,)`."""
        self.add_batch(predictions=[prediction])

    def add_batch(self, *, predictions: object) -> None:
        """Add codes, `(batch, d)`."""
        for rows in dense_chunks(predictions):
            width = rows.shape[1]
            if self.writer is None:
                self.width, self.selected_feature_format = width, self.features
                self._init_writer()
            if width != self.width:
                raise ValueError(
                    f"`predictions` must be {self.width} wide like the batches before, got {width}. "
                    "Use one metric object per model."
                )
            offsets = np.arange(0, rows.size + 1, width, dtype=np.int32)
            values = pa.array((rows != 0).ravel())
            self.writer.write_table(pa.table({"predictions": pa.ListArray.from_arrays(offsets, values)}))

    def _finalize(self) -> None:
        if self.writer is None:
            raise ValueError("`predictions` must hold at least one row, got none. Call `add_batch` before `compute`.")
        super()._finalize()
        if self.data is not None:  # in a distributed run only the first process has it
            self.data = StoredRows(self.data, self.width)

    def _compute(self, predictions: StoredRows) -> dict[str, float | int]:
        return count_active(predictions)
