"""Checks of what the public functions take, before the work: models, tokenizers, sentences, vectors."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence, Sized
from numbers import Integral
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from scipy import sparse
from torch import nn
from transformers import PreTrainedTokenizerBase

from hsvae_hf.models.vocabulary import tokenizer_checksum

logger = logging.getLogger(__name__)
_FITTING: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, str]] = WeakKeyDictionary()  # checked: size, checksum
_ROWS = 65_536  # of vectors, checked together
_SAMPLE = 1000  # rows that tell the scale


def check_positive(**numbers: object) -> None:
    """Refuse what is neither None nor a whole number of at least 1.

    Raises:
        ValueError: naming it.
    """
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
            raise ValueError(f"`{name}` must be at least 1, a whole number, got {value!r}; choose a positive one.")


def check_numbers(**columns: Any) -> None:
    """Refuse what is no list of whole numbers of at least 1.

    Raises:
        ValueError: naming it.
    """
    for name, numbers in columns.items():
        if isinstance(numbers, str | bytes) or not isinstance(numbers, Sequence | np.ndarray):
            raise ValueError(f"`{name}` must be a list of whole numbers, got {numbers!r}; write it as [4, 8].")
        for number in numbers:
            check_positive(**{name: number})


def check_switch(**switches: object) -> None:
    """Refuse what is neither True nor False, such as "false", which counts as True.

    Raises:
        ValueError: naming it.
    """
    for name, value in switches.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"`{name}` must be True or False, got {value!r}; write it without quotes.")


def check_active_dims(model: Any, **numbers: Any) -> None:
    """Refuse a number of non-zeros that no code of the model has; None leaves it to the model.

    Raises:
        ValueError: naming it.
    """
    check_positive(**numbers)
    size = model.config.latent_size
    for name, value in numbers.items():
        if value is not None and value > size:
            raise ValueError(f"`{name}` must be at most `latent_size` ({size}), got {value}; choose fewer.")


def check_model(model: object) -> None:
    """Refuse what is no loaded model of this package, such as a path.

    Raises:
        ValueError: saying how to load one.
    """
    loaded = isinstance(model, nn.Module) and hasattr(getattr(model, "config", None), "latent_size")
    if not loaded:
        raise ValueError(
            f"`model` must be a loaded model of this package, got {_described(model)}; load one with "
            "`model, tokenizer = hsvae_hf.loading.load_for_inference(path)`."
        )


def check_tokenizer(tokenizer: object, config: object) -> None:
    """Refuse what is no loaded tokenizer, and one of other words than the model was trained with.

    Args:
        tokenizer: of a model that reads text.
        config: of that model.

    Raises:
        ValueError: saying what to pass.
    """
    if tokenizer is None:
        raise ValueError("`tokenizer` must be the model's, got None; for a model without one use `encode_vectors`.")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"`tokenizer` must be a loaded tokenizer of transformers, got {_described(tokenizer)}; load the model's "
            "with `AutoTokenizer.from_pretrained(path)`."
        )
    reason = foreign_words(tokenizer, config)
    if reason is not None:
        raise ValueError(f"`tokenizer` must be the one that the model was trained with, got {reason}.")


def foreign_words(tokenizer: PreTrainedTokenizerBase, config: object) -> str | None:
    """Why this tokenizer can't be the model's, None if it can be.

    The words that the model was trained with must have the ids that they had then; others may have been added. A
    configuration without a checksum, such as that of an older version, tells nothing.
    """
    wanted, size = getattr(config, "tokenizer_checksum", None), len(tokenizer)
    if wanted is None or _FITTING.get(tokenizer) == (size, wanted):
        return None
    trained = int(wanted.partition("-")[0])
    if tokenizer_checksum(tokenizer, trained) != wanted:
        return (
            f"one of {size} words that are not its {trained}; load both from one folder, or, if you changed the words "
            "on purpose, set `tokenizer_checksum` of the model's configuration to None"
        )
    _FITTING[tokenizer] = (size, wanted)
    return None


def check_sentences(sentences: object, name: str = "sentences") -> None:
    """Refuse what is no column of strings; a sized one is looked through, an iterator is left unread.

    Args:
        sentences: an iterable of strings.
        name: how to call it in an error.

    Raises:
        ValueError: saying what to pass instead, or which element is no string.
    """
    if isinstance(sentences, str | bytes | bytearray):
        kind = "string" if isinstance(sentences, str) else type(sentences).__name__
        raise ValueError(f"`{name}` must be several strings, got the single {kind} {sentences[:50]!r}; pass a list.")
    columns = getattr(sentences, "column_names", getattr(sentences, "columns", None))
    columns = sentences if isinstance(sentences, Mapping) else columns
    if columns is not None:
        names = ", ".join(map(str, columns))
        raise ValueError(
            f"`{name}` must be one column of strings, got a {type(sentences).__name__} with {names[:100]}; pass a "
            "column of it, such as `data['text']`."
        )
    if isinstance(sentences, set | frozenset):
        raise ValueError(f"`{name}` must have an order, got a {type(sentences).__name__}; pass a list.")
    flat = not isinstance(sentences, np.ndarray) or sentences.ndim == 1
    if not isinstance(sentences, Iterable) or not flat:
        raise ValueError(f"`{name}` must be a list of strings, got {_described(sentences)}; pass a flat list.")
    if isinstance(sentences, Sized):
        check_strings(sentences, name)


def check_strings(sentences: Iterable[Any], name: str = "sentences", first: int = 0) -> None:
    """Refuse elements that are no strings; a tokenizer would take a tuple for a pair of sentences.

    Args:
        sentences: some, in order.
        name: how to call them in an error.
        first: index of the first.

    Raises:
        ValueError: naming the first such element.
    """
    for row, sentence in enumerate(sentences, first):
        if not isinstance(sentence, str):
            raise ValueError(
                f"`{name}` must be strings, got {type(sentence).__name__} {str(sentence)[:50]!r} at index {row}; "
                "convert it, drop it, or pass the column of the sentences alone."
            )


def check_vectors(model: Any, vectors: object, name: str = "vectors") -> np.ndarray:
    """Vectors as an array, once they are known to be what the model takes.

    Args:
        model: of `decoder_type="vector"`.
        vectors: `(rows, feature_size)`, an array, a tensor or nested lists.
        name: how to call them in an error.

    Returns:
        The same numbers, `(rows, feature_size)`, in their own precision. A scale that is not that of the vectors that
        the model was trained on is warned of.

    Raises:
        ValueError: if they have another shape, or hold something else than finite numbers.
    """
    array = as_vectors(vectors, model.config.feature_size, name)
    warn_of_scale(trained_length(model), array)
    return array


def as_vectors(vectors: object, width: int, name: str = "vectors") -> np.ndarray:
    """Vectors as an array, once they are known to be finite numbers, `(rows, width)`; see `check_vectors`.

    Raises:
        ValueError: if they are not.
    """
    if isinstance(vectors, torch.Tensor):
        vectors = vectors.detach().cpu()
        vectors = vectors.float() if vectors.dtype == torch.bfloat16 else vectors  # numpy has no bfloat16
    try:
        array = np.asarray(vectors)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] != width:
        raise ValueError(
            f"`{name}` must be numbers, (rows, {width}), got {_described(vectors)}; use the encoder of this model."
        )
    for start in range(0, len(array), _ROWS):
        with np.errstate(over="ignore"):
            finite = np.isfinite(array[start : start + _ROWS].astype(np.float32)).all(axis=1)
        if not finite.all():
            row = start + int(finite.argmin())
            raise ValueError(f"`{name}` must be finite, got NaN or infinity in row {row}; drop or repair it.")
    return array


def check_codes(model: Any, codes: Any) -> sparse.csr_matrix:
    """Codes as a CSR matrix, once they are known to be such as the model gives.

    Args:
        model: of this package.
        codes: `(rows, latent_size)`, a matrix of scipy, an array, nested lists, or a tensor, sparse ones too.

    Returns:
        The same numbers in float32: indices ascending and once each, no zeros.

    Raises:
        ValueError: if they have another shape, or hold something else than finite numbers.
    """
    return as_codes(codes, model.config.latent_size)


def as_codes(codes: Any, size: int | None = None, name: str = "codes") -> sparse.csr_matrix:
    """Codes as a CSR matrix, float32.

    Args:
        codes: `(rows, size)`, as of `check_codes`.
        size: that they must have; None for any.
        name: how to call them in an error.

    Raises:
        ValueError: if they have another shape, or hold something else than finite numbers.
    """
    try:
        array = as_matrix(codes)
    except (ValueError, TypeError):  # rows of different lengths, or no numbers
        array = np.asarray(None)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] != (size or array.shape[1] or None):
        wanted = size or "latent_size"
        raise ValueError(
            f"`{name}` must be numbers, (rows, {wanted}), got {_described(codes)}; give codes of one model."
        )
    with np.errstate(over="ignore"):
        matrix = sparse.csr_matrix(array, dtype=np.float32, copy=True)
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(
            f"`{name}` must be a valid sparse matrix, got one that is not: {error}; build it again."
        ) from error
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    if not np.isfinite(matrix.data).all():
        row = int(np.searchsorted(matrix.indptr, np.isfinite(matrix.data).argmin(), side="right")) - 1
        raise ValueError(f"`{name}` must be finite, got NaN or infinity in row {row}; drop or repair it.")
    return matrix


def as_matrix(codes: Any) -> Any:
    """Codes or vectors as an array or a matrix of scipy; a tensor is copied to the CPU, a sparse one becomes COO."""
    if sparse.issparse(codes):
        return codes
    if not isinstance(codes, torch.Tensor):
        return np.asarray(codes)
    codes = codes.detach().cpu()
    codes = codes.float() if codes.dtype == torch.bfloat16 else codes  # numpy has no bfloat16
    if codes.layout == torch.strided:
        return codes.numpy()
    codes = codes.to_sparse_coo().coalesce()
    return sparse.coo_array((codes.values().numpy(), tuple(codes.indices().numpy())), shape=tuple(codes.shape))


def as_tensor(vectors: np.ndarray) -> torch.Tensor:
    """A copy in float32 that torch takes: it knows no negative strides, and warns of what is read-only."""
    return torch.from_numpy(np.array(vectors, dtype=np.float32, order="C"))


def trained_length(model: Any) -> float:
    """The length, by the mean square, of the vectors that a model was trained on; 0 of one that was not trained."""
    standardizer = model.base_model.standardizer
    mean, std = (value.double().cpu().numpy() for value in (standardizer.mean, standardizer.std))
    std = np.where(std == 1.0, 0.0, std)  # of a dimension that never varied
    return float(np.sqrt((mean**2 + std**2).sum()))


def warn_of_scale(trained: float, vectors: np.ndarray) -> None:
    """Warn of vectors of another length than those that the model was trained on, which give codes of no use.

    Where all were of length 1, so must others be. Else lengths differ from subject to subject, by a factor of two at
    most for a sentence encoder on six sets of text; allowed is four.

    Args:
        trained: of `trained_length`.
        vectors: `(rows, size)`.
    """
    if trained == 0 or not len(vectors):  # a model that was not trained
        return
    sample = vectors[:: max(1, len(vectors) // _SAMPLE)].astype(np.float64)
    length = float(np.median(np.linalg.norm(sample, axis=1)))
    normalised = abs(trained - 1) < 1e-3
    factor = 1.25 if normalised else 4.0
    if not trained / factor <= length <= trained * factor:
        logger.warning(
            "`vectors` have another scale than those that the model was trained on: their length is %.3g, not %.3g. "
            "Codes of them say little: %s, and take them from the same encoder.",
            length,
            trained,
            "divide each by its length" if normalised else "scale them alike",
        )


def _described(value: object) -> str:
    """What was given instead, in a few words."""
    if isinstance(value, str | os.PathLike):
        return f"the path {os.fspath(value)[:100]!r}"
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    if shape is not None:
        return f"a {kind} of shape {tuple(shape)}" + (f" and type {value.dtype}" if hasattr(value, "dtype") else "")
    return f"a {kind}" + (f" {value!r}" if isinstance(value, int | float) else "")
