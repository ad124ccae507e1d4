"""Checks of what goes into an index and of what is asked: ids, texts, vectors, dimensions."""

import json
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from hsvae_hf.input_checks import as_matrix

INTEGERS = np.iinfo(np.int64)
MOST_BOOST = 1_000_000


def as_list(values: Any, name: str, count: int | None = None) -> list[Any]:
    """A column of anything as a list.

    Args:
        values: a list, tuple, array or column of a table, in order.
        name: how to call it in an error.
        count: how many there must be; None for any number.

    Raises:
        ValueError: if it has no order, is a single string, or has another number.
    """
    unordered = isinstance(values, str | bytes | Mapping | set | frozenset) or not isinstance(values, Iterable)
    if unordered or getattr(values, "ndim", 1) != 1:
        raise ValueError(f"`{name}` must be a list, one for each row, got a {type(values).__name__}; pass a flat list.")
    column = values.tolist() if hasattr(values, "tolist") else list(values)
    if count is not None and len(column) != count:
        raise ValueError(f"`{name}` must be as many as the {count:,} rows, got {len(column):,}; pass one each.")
    return column


def as_ids(ids: Any, count: int | None = None) -> pa.Array:
    """Ids as a column: int64, or strings.

    Raises:
        ValueError: unless all are whole numbers or all are strings.
    """
    column = as_list(ids, "ids", count)
    strings = bool(column) and isinstance(column[0], str)
    for row, value in enumerate(column):
        whole = isinstance(value, Integral) and not isinstance(value, bool | np.bool_)
        fits = isinstance(value, str) if strings else whole and INTEGERS.min <= value <= INTEGERS.max
        if not fits:
            rule = "strings, as the first" if strings else "whole numbers of 64 bits, or all strings"
            raise ValueError(f"`ids` must be {rule}, got {value!r:.80} at index {row}; change it.")
    return as_strings(column, "ids") if strings else pa.array([int(value) for value in column], pa.int64())


def as_strings(texts: Any, name: str, count: int | None = None) -> pa.Array:
    """A column of strings, None among them.

    Raises:
        ValueError: naming the first that is none, or has half a surrogate pair.
    """
    column = as_list(texts, name, count)
    for row, text in enumerate(column):
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"`{name}` must be strings, got {type(text).__name__} {text!r:.50} at index {row}; convert it."
            )
    try:
        return pa.array(column, pa.string())
    except UnicodeEncodeError as error:
        row = next(row for row, text in enumerate(column) if text is not None and not _is_valid(text))
        raise ValueError(
            f"`{name}` must be valid Unicode, got half a surrogate pair at index {row}; repair it."
        ) from error


def _is_valid(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_vectors(vectors: Any, count: int, width: int | None) -> np.ndarray:
    """Vectors as an array, `(count, size)`, float64.

    Args:
        vectors: an array, a tensor or nested lists.
        count: of rows.
        width: that they must have; None for any.

    Raises:
        ValueError: if they have another shape, or hold something else than finite numbers.
    """
    try:
        array = np.asarray(as_matrix(vectors))
    except (ValueError, TypeError):
        array = np.asarray(None)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"`vectors` must be numbers, (rows, size), got {array.dtype} of {array.shape}; stack them.")
    if array.shape[0] != count:
        raise ValueError(f"`vectors` must be as many as the {count:,} rows, got {array.shape[0]:,}; pass one each.")
    if width is not None and array.shape[1] != width:
        raise ValueError(f"`vectors` must have {width} numbers, as the others, got {array.shape[1]}; use one encoder.")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        row = int(np.isfinite(array).all(axis=1).argmin())
        raise ValueError(f"`vectors` must be finite, got NaN or infinity in row {row}; drop or repair it.")
    return array


def at_unit_length(vectors: np.ndarray) -> np.ndarray:
    """Vectors `(rows, size)` divided by their lengths, float64; a row of zeros stays as it is."""
    scaled = vectors / np.abs(vectors).max(axis=1, keepdims=True, initial=1e-300)  # squares neither overflow nor vanish
    return np.asarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True).clip(1e-300))


def steering(boost: Mapping[int, float] | None, mute: Sequence[int] | None, size: int) -> np.ndarray | None:
    """Factors of dimensions, `(size,)`; None where all are 1.

    Raises:
        ValueError: if a dimension does not exist, or a factor is no finite number.
    """
    if not (boost is None or isinstance(boost, Mapping)):
        raise ValueError(f"`boost` must map dimensions to factors, got {boost!r}; write it as {{3: 2.0}}.")
    muted = [] if mute is None else as_list(mute, "mute")
    if not boost and not muted:
        return None
    factors = np.ones(size)
    for name, chosen in (("boost", boost or {}), ("mute", dict.fromkeys(muted, 0.0))):
        for dimension, factor in chosen.items():
            whole = isinstance(dimension, Integral) and not isinstance(dimension, bool | np.bool_)
            if not whole or not 0 <= dimension < size:
                raise ValueError(
                    f"`{name}` must name dimensions from 0 to {size - 1}, got {dimension!r}; see `explain`."
                )
            value: Any = factor
            number = isinstance(factor, Real)
            if not number or not -MOST_BOOST <= value <= MOST_BOOST:
                rule = f"at most {MOST_BOOST:,} either way"
                raise ValueError(f"`{name}` must have factors of {rule}, got {factor!r} for {dimension}; write 2.0.")
            factors[dimension] = value
    return factors


def check_half(codes: sparse.csr_matrix) -> None:
    """Refuse codes that half precision does not hold."""
    with np.errstate(over="ignore"):
        half = codes.data.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError("`rows` must have values below 65,504 in half precision; pass `precision='float32'`.")
    lost = np.add.reduceat(half != 0, codes.indptr[:-1][np.diff(codes.indptr) > 0]) == 0 if codes.nnz else np.zeros(1)
    if lost.any():
        raise ValueError("`rows` must have values above 1e-7 in half precision; pass `precision='float32'`.")


def as_json(metadata: Any) -> dict[str, Any]:
    """A copy of what is to be kept with an index, as JSON gives it back.

    Raises:
        ValueError: if JSON has no such thing.
    """
    try:
        found: dict[str, Any] = json.loads(json.dumps(metadata or {}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`metadata` must be fit for JSON, got {error}; keep numbers and strings.") from error
    return found
