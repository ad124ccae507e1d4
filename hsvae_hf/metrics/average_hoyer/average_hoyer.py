"""Average Hoyer: how sparse the codes of a corpus are, row by row.

This file stands alone, because `evaluate.load` copies it out of its folder: it imports nothing of hsvae_hf.
"""

from collections.abc import Iterable, Iterator

import datasets
import evaluate
import numpy as np
import pyarrow as pa

CHUNK_VALUES = 2**20  # numbers held in memory at a time: 8 MiB in float64, and a few copies of that

_DESCRIPTION = """\
Hoyer(z) = (sqrt(d) - |z|_1 / |z|_2) / (sqrt(d) - 1) is 1 for a row with a single non-zero and 0 for a row of equal
magnitudes. Average Hoyer is its mean over the rows of a corpus, by default after dividing every dimension by its
standard deviation over the corpus. Values are not comparable between codes of different width.
"""

_INPUTS = """\
Args:
    predictions: codes, (batch, d), d at least 2: a numpy array, torch tensor, scipy sparse matrix or nested list.
    normalize (bool): divide every dimension by its standard deviation over the corpus first. Defaults to True.
Returns:
    average_hoyer (float): mean over the rows that are not all zero, NaN if every row is.
    empty_rows (float): share of the rows that are all zero; such a row has no Hoyer and is left out of the mean.
    constant_dims (int): dimensions of zero standard deviation, which are not divided; 0 without `normalize`.
Examples:
    >>> metric = evaluate.load("average_hoyer")
    >>> metric.add_batch(predictions=[[0.0, 3.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    >>> metric.compute(normalize=False)
    {'average_hoyer': 0.5, 'empty_rows': 0.0, 'constant_dims': 0}
"""

_CITATION = """\
@article{hurley2009comparing,
  title={Comparing Measures of Sparsity},
  author={Hurley, Niall and Rickard, Scott},
  journal={IEEE Transactions on Information Theory},
  volume={55}, number={10}, pages={4723--4741}, year={2009}
}
@inproceedings{prokhorov2021learning,
  title={Learning Sparse Sentence Encoding without Supervision: An Exploration of Sparsity in Variational Autoencoders},
  author={Prokhorov, Victor and Li, Yingzhen and Shareghi, Ehsan and Collier, Nigel},
  booktitle={Proceedings of the 6th Workshop on Representation Learning for NLP (RepL4NLP-2021)},
  year={2021}
}
"""


def hoyer(codes: np.ndarray) -> np.ndarray:
    """Hoyer sparsity of each row, in [0, 1].

    Args:
        codes: `(rows, d)`, d at least 2.

    Returns:
        `(rows,)`, float64; NaN for a row of zeros.

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


def column_std(chunks: Iterable[np.ndarray]) -> np.ndarray:
    """Population standard deviation of each dimension over all rows of all chunks, in one pass.

    Counted from the first row, so that a constant dimension gives exactly 0.

    Args:
        chunks: arrays of shape `(rows, d)`.

    Returns:
        `(d,)`, float64.

    Raises:
        ValueError: if there are no rows.
    """
    count = 0
    for chunk in chunks:
        values = np.asarray(chunk, dtype=np.float64)
        if not len(values):
            continue
        if count == 0:
            origin, mean, squares = values[0], np.zeros(values.shape[1]), np.zeros(values.shape[1])
        values = values - origin
        added, chunk_mean = len(values), values.mean(axis=0)
        step = chunk_mean - mean
        squares += np.square(values - chunk_mean).sum(axis=0) + step**2 * (count * added / (count + added))
        mean += step * (added / (count + added))
        count += added
    if count == 0:
        raise ValueError("`chunks` must hold at least one row, got none. Pass the codes of a corpus.")
    return np.sqrt(squares / count)


def corpus_hoyer(chunks: Iterable[np.ndarray], normalize: bool = True) -> dict[str, float | int]:
    """Average Hoyer of a corpus given in chunks, of which one is in memory at a time.

    A dimension with no variation over the corpus has no scale to divide by. It is kept as it is: a dimension that is
    always zero stays zero and counts in d, as it should in a measure of sparsity, and any other constant is reported.

    Args:
        chunks: arrays of shape `(rows, d)`; with `normalize` it is read twice, so a list or the like, not a generator.
        normalize: divide every dimension by its standard deviation over the corpus.

    Returns:
        `average_hoyer`, `empty_rows` and `constant_dims` (see the module's description).

    Raises:
        ValueError: if there are no rows, or `chunks` can be read only once and `normalize` is set.
    """
    scale, constant_dims = np.ones(1), 0
    if normalize:
        if iter(chunks) is chunks:
            raise ValueError(
                f"`chunks` must be readable twice when `normalize` is set, got a {type(chunks).__name__}. Pass a list."
            )
        scale = column_std(chunks)
        constant_dims = int((scale == 0).sum())
        scale = np.where(scale > 0, scale, 1.0)
    rows, full_rows, total = 0, 0, 0.0
    for chunk in chunks:
        values = hoyer(chunk / scale)
        full = ~np.isnan(values)
        rows += len(values)
        full_rows += int(full.sum())
        total += float(values[full].sum())
    if rows == 0:
        raise ValueError("`chunks` must hold at least one row, got none. Pass the codes of a corpus.")
    return {
        "average_hoyer": total / full_rows if full_rows else float("nan"),
        "empty_rows": 1 - full_rows / rows,
        "constant_dims": constant_dims,
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


class AverageHoyer(evaluate.Metric):
    """Average Hoyer over a corpus added in batches and kept on disk as float32."""

    data: datasets.Dataset | StoredRows | None

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float32"))}),
        )

    def add(self, *, prediction: object) -> None:
        """Add one code, `(d,)`."""
        self.add_batch(predictions=[prediction])

    def add_batch(self, *, predictions: object) -> None:
        """Add codes, `(batch, d)`."""
        for rows in dense_chunks(predictions):
            width = rows.shape[1]
            if width < 2:
                raise ValueError(f"`predictions` must have at least 2 dimensions, got {width}. Pass codes, not scores.")
            if self.writer is None:
                self.width, self.selected_feature_format = width, self.features
                self._init_writer()
            if width != self.width:
                raise ValueError(
                    f"`predictions` must be {self.width} wide like the batches before, got {width}. "
                    "Use one metric object per model."
                )
            offsets = np.arange(0, rows.size + 1, width, dtype=np.int32)
            values = pa.array(rows.astype(np.float32, copy=False).ravel())
            self.writer.write_table(pa.table({"predictions": pa.ListArray.from_arrays(offsets, values)}))

    def _finalize(self) -> None:
        if self.writer is None:
            raise ValueError("`predictions` must hold at least one row, got none. Call `add_batch` before `compute`.")
        super()._finalize()
        if self.data is not None:  # in a distributed run only the first process has it
            self.data = StoredRows(self.data, self.width)

    def _compute(self, predictions: StoredRows, normalize: bool = True) -> dict[str, float | int]:
        return corpus_hoyer(predictions, normalize)
