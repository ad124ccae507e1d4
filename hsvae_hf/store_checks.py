"""Checks of what `export` gets, against what the store takes, before anything is written."""

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from hsvae_hf.files import check_output
from hsvae_hf.input_checks import check_positive, check_switch
from hsvae_hf.store_clients import MAX_TEXT, is_client
from hsvae_hf.store_codings import SIGNS, STEPS, Coding, keep_largest_of_rows, nonnegative_loss, row_of
from hsvae_hf.store_formats import HNSW_NONZEROS, STORES, Store

_SAMPLE = 2000  # rows on which a loss is measured
_CLIENTS = {"qdrant": "QdrantClient", "milvus": "MilvusClient", "pgvector": "connection to PostgreSQL"}
_INTEGERS = {"qdrant": (0, 2**64 - 1)}  # ids; others are int64
_ID_BYTES = {"milvus": MAX_TEXT, "elasticsearch": 512, "opensearch": 512}


def check_options(
    form: str, nonnegative: str | None, normalize: bool, max_active_dims: int | None, quantize: str | None
) -> tuple[Store, Coding]:
    """The store, and what is done to codes for it.

    Raises:
        ValueError: naming the option that is out of range.
    """
    if form not in STORES:
        raise ValueError(f"`format` must be one of {', '.join(STORES)}, got {form!r}; choose one.")
    store = STORES[form]
    if nonnegative is None:
        nonnegative = "none" if store.signed else "split"
    if nonnegative not in SIGNS:
        raise ValueError(f"`nonnegative` must be one of {', '.join(SIGNS)}, got {nonnegative!r}; choose one.")
    if quantize is None and store.integers:
        quantize = "uint8"
    if quantize not in (None, *STEPS):
        raise ValueError(f"`quantize` must be 'int8', 'uint8' or None, got {quantize!r}; choose one.")
    check_switch(normalize=normalize)
    check_positive(max_active_dims=max_active_dims)
    return store, Coding(nonnegative, bool(normalize), max_active_dims, quantize)


_END = re.compile(r"\d+[+-]")  # of a dimension, as `DimensionNames` writes it


def _is_place(key: Any) -> bool:
    """Whether this is the number of a dimension, or one of its ends."""
    if isinstance(key, str):
        return _END.fullmatch(key) is not None
    return isinstance(key, Integral) and not isinstance(key, bool)


def check_names(store: Store, names: Any, name: str, index: str | None) -> None:
    """Refuse names and an index that the store does not have.

    Raises:
        ValueError: naming them.
    """
    if names is not None and not store.named:
        raise ValueError(f"`names` must be left out for {store.title}, whose dimensions are numbers; drop it.")
    if not isinstance(names, Mapping | None):
        raise ValueError(f"`names` must map dimensions to strings, got a {type(names).__name__}; write {{3: 'sport'}}.")
    for key, word in (names or {}).items():
        if not _is_place(key) or not isinstance(word, str):
            raise ValueError(
                f"`names` must map dimensions to strings, got {key!r}: {word!r}; write it as {{3: 'sport'}}, or "
                "{'3+': 'sport'} for one end."
            )
        _check_unicode(word, "names")
    if not isinstance(name, str) or not re.fullmatch(store.name, name):
        raise ValueError(f"`name` must match {store.name} for {store.title}, got {name!r}; choose another.")
    if index not in (None, "hnsw") or (index and store is not STORES["pgvector"]):
        raise ValueError(f"`index` must be None, or 'hnsw' for pgvector, got {index!r} for {store.title}; drop it.")


def check_target(store: Store, form: str, target: Any, overwrite: bool, described: bool) -> Path | None:
    """The file to write, or None for a client or a list.

    Args:
        store: what it takes.
        form: its name.
        target: what was passed.
        overwrite: whether a file may exist.
        described: whether there are ids or texts.

    Raises:
        ValueError: if it is neither, or a file that may not be written.
    """
    if isinstance(target, str | Path):
        path = Path(target)
        if form == "milvus":  # a data base, a folder, which may hold other collections
            if path.suffix not in store.suffixes:
                raise ValueError(f"`target` must end in .db, got {str(path)!r}; rename it, or pass a MilvusClient.")
            return path
        if path.exists() and not overwrite and path.suffix in store.suffixes:
            raise ValueError(f"`target` must be a new file, got {str(path)!r}; pass `overwrite=True` to replace it.")
        return check_output(path, overwrite, store.suffixes, "target")
    if form == "dicts" and isinstance(target, list):
        if described:
            raise ValueError(
                "`ids` and `texts` must be left out for a list of dictionaries; pass a .jsonl file for them."
            )
        return None
    if not is_client(form, target):
        choices = f"a file ending in {' or '.join(store.suffixes)}" + (
            f", or a {_CLIENTS[form]}" if form in _CLIENTS else ", or a list" if form == "dicts" else ""
        )
        raise ValueError(f"`target` must be {choices}, got a {type(target).__name__}; pass one.")
    return None


def check_ids(form: str, store: Store, ids: Any, rows: int) -> Sequence[int] | Sequence[str]:
    """Ids as a list, or the numbers of rows.

    Raises:
        ValueError: unless there is one for each row, and the store takes them.
    """
    if ids is None:
        return range(rows)
    values = _column("ids", ids, rows)
    strings = bool(values) and isinstance(values[0], str)
    low, high = _INTEGERS.get(form, (-(2**63), 2**63 - 1))
    seen: dict[Any, int] = {}
    for row, value in enumerate(values):
        if strings:
            rule = _string_rule(form, store, value)
        else:
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            rule = None if whole and low <= value <= high else f"whole numbers from {low} to {high}, or all strings"
        if rule:
            raise ValueError(f"`ids` must be {rule}, for {store.title}, got {value!r:.80} in row {row}; change it.")
        identity = uuid.UUID(value) if strings and form == "qdrant" else value
        if seen.setdefault(identity, row) != row:
            raise ValueError(
                f"`ids` must differ, got {value!r:.80} in the rows {seen[identity]} and {row}; change one."
            )
    return values if strings else [int(value) for value in values]


def _string_rule(form: str, store: Store, value: object) -> str | None:
    """The rule that a string breaks as an id."""
    if not isinstance(value, str):
        return "all whole numbers or all strings"
    _check_unicode(value, "ids")
    if form == "qdrant":
        try:
            uuid.UUID(value)
        except ValueError:
            return "UUIDs, if they are strings"
    if form == "pgvector" and "\0" in value:
        return "free of NUL"
    if store.integers and (not value or any(map(str.isspace, value))):
        return "words without spaces"
    limit = _ID_BYTES.get(form)
    if limit and not 1 <= len(value.encode()) <= limit:
        return f"1 to {limit:,} bytes"
    return None


def check_texts(form: str, texts: Any, rows: int) -> Sequence[str] | None:
    """Texts as a list.

    Raises:
        ValueError: unless there is one for each row, and the store takes them.
    """
    if texts is None:
        return None
    values = _column("texts", texts, rows)
    for row, text in enumerate(values):
        if not isinstance(text, str):
            raise ValueError(f"`texts` must be strings, got {text!r:.80} in row {row}; convert it.")
        _check_unicode(text, "texts")
        if form == "pgvector" and "\0" in text:
            raise ValueError(f"`texts` must be free of NUL for PostgreSQL, got one in row {row}; drop the character.")
        if form == "milvus" and len(text.encode()) > MAX_TEXT:
            raise ValueError(
                f"`texts` must be at most {MAX_TEXT:,} bytes for Milvus, got {len(text.encode()):,} in "
                f"row {row}; cut it."
            )
    return values


def _column(name: str, values: Any, rows: int) -> list[Any]:
    if isinstance(values, str | bytes | Mapping | set | frozenset) or not hasattr(values, "__len__"):
        raise ValueError(f"`{name}` must be a list, one for each row, got a {type(values).__name__}; pass a list.")
    if len(values) != rows:
        raise ValueError(f"`{name}` must be as many as rows, {rows}, got {len(values)}; pass one for each.")
    return list(values.tolist() if isinstance(values, np.ndarray) else values)


def _check_unicode(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"`{name}` must be valid Unicode, got {text!r:.80}: {error.reason}; repair it.") from None


def check_limits(rows: sparse.csr_matrix, first: int, store: Store, nonzeros: int | None, coding: Coding) -> None:
    """Refuse rows that the store does not take.

    Args:
        rows: codes as they are stored, before quantisation.
        first: the number of their first row.
        store: what it takes.
        nonzeros: of a row, at most; None for any.
        coding: what was done.

    Raises:
        ValueError: naming the first such row, and what to pass.
    """
    lengths = np.diff(rows.indptr)
    if nonzeros is not None and (lengths > nonzeros).any():
        row = int((lengths > nonzeros).argmax())
        hnsw = "'s HNSW index" if nonzeros == HNSW_NONZEROS else ""
        raise ValueError(
            f"`codes` must have at most {nonzeros:,} non-zeros in a row for {store.title}{hnsw}, got "
            f"{lengths[row]:,} in row {first + row}; pass `max_active_dims={nonzeros}`."
        )
    unsigned, reason = not store.signed, store.title
    if coding.quantize == "uint8" and store.signed:
        unsigned, reason = True, "uint8"
    beyond = f"have dimensions below {store.dimensions} for {store.title}", "drop those beyond"
    negative = f"have no negative value for {reason}", "pass `nonnegative='split'` or `'abs'`"
    small = f"have values of {store.smallest:.3g} or more for {store.title}", "scale them, or drop the smallest"
    for wrong, (rule, remedy) in (
        (rows.indices.astype(np.int64) >= (store.dimensions or 2**63 - 1), beyond),
        (unsigned & (rows.data < 0), negative),
        ((coding.quantize is None) & (np.abs(rows.data) < store.smallest), small),
    ):
        if wrong.any():
            position = int(wrong.argmax())
            raise ValueError(
                f"`codes` must {rule}, got {rows.data[position]:.6g} in dimension {rows.indices[position]} of row "
                f"{first + row_of(rows, position)}; {remedy}."
            )


def check_query(rows: sparse.csr_matrix, store: Store) -> None:
    """Refuse weights that are too large, and queries by terms that have none.

    Raises:
        ValueError: naming the row.
    """
    large = rows.data > store.largest_weight
    if large.any():
        row = row_of(rows, int(large.argmax()))
        raise ValueError(
            f"`codes` must be at most {store.largest_weight:g} in a query for {store.title}, got "
            f"{rows.data.max():.6g} in row {row}; pass `normalize=True`."
        )
    empty = np.diff(rows.indptr) == 0
    if store.named and empty.any():
        raise ValueError(
            f"`codes` must have a non-zero in each row to search {store.title} for, got none in row "
            f"{int(empty.argmax())}; leave it out."
        )


@dataclass
class Survey:
    """What a first look at all codes finds.

    Args:
        rows: how many there are.
        dimensions: of the codes, 0 if there is no block.
        negatives: negative values, after `max_active_dims`.
        largest: the largest magnitude that is stored, before quantisation.
        indices: that are stored, ascending; of stores with words alone.
        sample: of codes with signs.
    """

    rows: int = 0
    dimensions: int = 0
    negatives: int = 0
    largest: float = 0.0
    indices: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    sample: list[sparse.csr_matrix] = field(default_factory=list)

    def loss(self, store: Store, coding: Coding) -> float | None:
        """What `nonnegative_loss` says, unless no search loses anything."""
        if not self.negatives or coding.nonnegative == "none" or (store.signed and coding.nonnegative == "split"):
            return None
        return nonnegative_loss(sparse.vstack(self.sample, format="csr"), coding.nonnegative, max_rows=_SAMPLE)


def survey(
    blocks: Iterator[sparse.csr_matrix], store: Store, coding: Coding, nonzeros: int | None, sized: bool
) -> Survey:
    """Read all codes once and check them.

    Args:
        blocks: of codes, canonical.
        store: what it takes.
        coding: what is done to them.
        nonzeros: of a row, at most.
        sized: whether each row says how many dimensions there are, as in pgvector.

    Raises:
        ValueError: naming a row that the store does not take.
    """
    seen, blocks_read = Survey(), False
    for block in blocks:
        rows = coding(block)
        check_limits(rows, seen.rows, store, nonzeros, coding)
        if sized and not 1 <= rows.shape[1] <= (store.dimensions or 0):
            raise ValueError(
                f"`codes` must have 1 to {store.dimensions:,} dimensions for {store.title}, got {rows.shape[1]:,}"
                f"{' after the split' if coding.nonnegative == 'split' else ''}; drop those beyond."
            )
        signed = keep_largest_of_rows(block, coding.max_active_dims)
        seen.negatives += int((signed.data < 0).sum())
        if seen.rows < _SAMPLE:
            seen.sample.append(signed[: _SAMPLE - seen.rows])
        if store.named:
            seen.indices = np.union1d(seen.indices, rows.indices)
        seen.largest = max(seen.largest, float(np.abs(rows.data).max(initial=0)))
        seen.rows, seen.dimensions, blocks_read = seen.rows + block.shape[0], block.shape[1], True
    if not blocks_read:
        raise ValueError("`codes` must be at least one block, got none; pass a matrix without rows for no codes.")
    return seen
