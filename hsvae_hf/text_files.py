"""Rows of .txt, .csv, .tsv, .jsonl, .json and .parquet files: the one reader of text files."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet")
VECTOR_FILES = (".npy", ".arrow")  # and .parquet with a column of vectors
TEXT_COLUMNS = ("text", "sentence", "content", "question_title", "review", "review_body", "document", "abstract")
LABEL_COLUMNS = ("label", "labels", "topic", "class", "category", "target")
SEPARATORS = {".csv": ",\t;|", ".tsv": "\t"}  # of cells; the first one that parts the header
NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: what JSON can hold and UTF-8 cannot
NO_CLASS = ("-1", "-1.0")  # of rows without a class, as `datasets` writes it
_PEEK = 1000  # rows that tell the columns of a file


def read_lines(path: Path) -> Iterator[str]:
    r"""Lines of a UTF-8 file with their ends, which are `\n`, `\r\n` or `\r`, as for `open`, and no others.

    Raises:
        ValueError: naming the line that is not UTF-8 or holds a NUL byte.
    """
    number = offset = 0
    with path.open("rb") as file:
        for part in file:
            bad = part.find(b"\0")
            try:
                text = part.decode("utf-8" if number else "utf-8-sig")
            except UnicodeDecodeError as error:
                text, bad = "", error.start
            if bad >= 0:
                raise ValueError(
                    f"`{path}` must be UTF-8 text, got byte 0x{part[bad]:02x} in line {number + 1}, byte offset "
                    f"{offset + bad}; convert the file with `iconv -f ENCODING -t utf-8`, from latin1, cp1251, utf-16 "
                    "or what it is in."
                )
            offset += len(part)
            for line in re.split(r"(?<=\r)(?=[^\n])", text) if "\r" in text else [text]:
                number += 1
                yield line


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file, each with the number of its line (in .parquet and JSON arrays: of the row), from 1 on.

    A .txt file has one column, `text`, and a row for every line, blank ones included. A cell of a .csv or .tsv file is
    text, whatever it looks like.

    Args:
        path: a file of one of `SUFFIXES`.
        columns: what is needed of a .parquet file; None reads every column.

    Raises:
        ValueError: naming the line that is damaged, has too many or too few cells, or is no JSON object.
    """
    suffix = path.suffix.lower()
    if suffix == ".txt":
        yield from ((number, {"text": line.rstrip("\r\n")}) for number, line in enumerate(read_lines(path), 1))
    elif suffix == ".parquet":
        yield from _parquet_rows(path, columns)
    else:
        yield from _csv_rows(path) if suffix in SEPARATORS else _json_rows(path)


def _place(path: Path, number: int) -> str:
    return f"{'row' if path.suffix.lower() in ('.parquet', '.json') else 'line'} {number}"


def _damaged(path: Path, where: str, error: Exception) -> ValueError:
    return ValueError(f"`{path}` must be an intact {path.suffix} file, got one damaged {where} ({error}); repair it.")


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    separator, header = _read_header(path)
    names = [name.strip() for name in header]
    while names and not names[-1]:  # every line ends in a separator
        names.pop()
    _check_names(path, names)
    records = _csv_records(path, separator)
    next(cells for _, cells in records if cells)  # the header
    width = 0
    for line, cells in records:
        if not cells and len(names) == 1:
            yield line, {names[0]: ""}
        elif len(cells) > 1 or len(names) == 1 or "".join(cells).strip():
            expected, width = max(width, len(names)), width or len(cells)
            if len(cells) != width or width < len(names) or any(cells[len(names) :]):
                raise ValueError(
                    f"`{path}` must have {expected} cells in every line, with {separator!r} between them, got "
                    f"{len(cells)} in line {line}; leave out none, and quote those that hold {separator!r}."
                )
            yield line, {name: cell for name, cell in zip(names, cells, strict=False) if name}


def _csv_records(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Cells, with the line in which they begin."""
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 128 KiB
    reader = csv.reader(read_lines(path), delimiter=separator, strict=True)
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise _damaged(path, f"in the row that begins in line {line}", error) from error


def _read_header(path: Path) -> tuple[str, list[str]]:
    """What stands between cells, and the first line: it tells, since texts may hold commas and semicolons."""
    separators = SEPARATORS[path.suffix.lower()]
    names: list[str] = []
    for separator in separators:
        try:
            names = next((cells for _, cells in _csv_records(path, separator) if cells), [])
        except ValueError as error:
            if not isinstance(error.__cause__, csv.Error):
                raise
            continue  # a quoted name before another separator
        if len(names) > 1:
            return separator, names
    return separators[0], names


def _check_names(path: Path, names: Sequence[str]) -> None:
    if not any(names):
        raise ValueError(f"`{path}` must begin with a line of column names, got none; write one, such as text,label.")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ValueError(f"`{path}` must have columns of different names, got {twice} more than once; rename one.")


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, item in _json_array(path) if _is_array(path) else _json_lines(path):
        if not isinstance(item, dict):
            raise ValueError(
                f"`{path}` must hold a JSON object per line (a .json file may be an array of them), got "
                f'{str(item)[:50]!r} in {_place(path, number)}; write an object, such as {{"text": "..."}}.'
            )
        yield number, item


def _is_array(path: Path) -> bool:
    first = next(filter(str.strip, read_lines(path)), "")
    return path.suffix.lower() == ".json" and first.lstrip().startswith("[")


def _json_array(path: Path) -> Iterable[tuple[int, Any]]:
    text = "".join(read_lines(path))
    try:
        return enumerate(json.loads(text), 1)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "in its array", error) from error


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(read_lines(path), 1):
        try:
            if line.strip():
                yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _damaged(path, f"in line {number}", error) from error


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _check_names(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1024, columns=None if columns is None else list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, f"after row {number}", error) from error


def read_columns(path: Path) -> dict[str, str]:
    """What the columns of a file hold, by name: `text`, `number` (cells of a .csv without a word), or `other`.

    Raises:
        ValueError: if the file is empty, or as `read_rows`.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"`{path}` must hold text, got the empty file {path}; give a file with sentences.")
    if path.suffix.lower() == ".parquet":
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, "at its end", error) from error
        _check_names(path, schema.names)
        return schema_columns(schema)
    kinds: dict[str, set[str]] = {}
    for _, row in islice(read_rows(path), _PEEK):
        for name, value in row.items():
            kinds.setdefault(name, set()).add(_kind(path, value))
    if not kinds:
        raise ValueError(f"`{path}` must hold at least one sentence, got no rows in the empty file {path}; add some.")
    else_kind = "number" if path.suffix.lower() in SEPARATORS else "other"
    return {name: "text" if "text" in some else else_kind for name, some in kinds.items()}


def schema_columns(schema: pa.Schema) -> dict[str, str]:
    """What the columns of a .parquet file hold, by name: `text` or `other`."""
    return {field.name: "text" if _holds_text(field.type) else "other" for field in schema}


def _holds_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _kind(path: Path, value: Any) -> str:
    number = path.suffix.lower() in SEPARATORS and (not value or NUMBER.fullmatch(value))
    return "text" if isinstance(value, str) and not number else "other"


def check_one_kind(argument: str, sentences: Sequence[Path], vectors: Sequence[Path]) -> None:
    """Refuse files of sentences beside files of vectors: to read one kind alone would leave out the other unseen.

    Args:
        argument: that they were given for.
        sentences: files of sentences. A .json file beside vectors is taken for a note on them, and passed over.
        vectors: files of vectors.

    Raises:
        ValueError: if there are both, with how many there are of each suffix.
    """
    sentences = [file for file in sentences if file.suffix.lower() != ".json"]
    if sentences and vectors:
        told = [
            ", ".join(f"{count} {suffix}" for suffix, count in Counter(file.suffix.lower() for file in files).items())
            for files in (sentences, vectors)
        ]
        raise ValueError(
            f"`{argument}` must be sentences or vectors, got both: sentences in {told[0]}, such as "
            f"{str(sentences[0])!r}, and vectors in {told[1]}, such as {str(vectors[0])!r}; name files of one kind, or "
            "move the others away."
        )


def find_text_column(columns: dict[str, str], named: str | None, source: str, label: str | None = None) -> str:
    """The column of the sentences: the one named, else one with a usual name, else the only one of text.

    Args:
        columns: as `read_columns` gives them.
        named: what the user said.
        source: of the columns, for errors.
        label: the column of the classes, if it is known.

    Raises:
        ValueError: if there is no such column.
    """
    check_column(columns, named, "text_column")
    column = named or next((name for name in TEXT_COLUMNS if name in columns and name != label), None)
    texts = [name for name, kind in columns.items() if kind == "text" and name not in (label, *LABEL_COLUMNS)]
    numbers = [name for name in columns if NUMBER.fullmatch(name)]
    if column is None and not texts and label in TEXT_COLUMNS:
        raise ValueError(
            f"`label_column` must be another column than that of the sentences, got {label!r} among {sorted(columns)}; "
            "name the column of the classes, or the one of the sentences as `text_column`."
        )
    if column is None and len(texts) == 1 and not numbers:
        return texts[0]
    if column is None or columns[column] == "other":
        header = " If that is its first row, put a line of column names above it." if numbers else ""
        raise ValueError(
            f"`text_column` must name a column of strings of {source!r}, got {column!r} among {sorted(columns)}; its "
            f"string columns: {texts}.{header}"
        )
    return column


def check_column(columns: dict[str, str], named: str | None, argument: str) -> None:
    """Refuse a column that is not there."""
    if named is not None and named not in columns:
        raise ValueError(f"`{argument}` must be one of the columns {sorted(columns)}, got {named!r}; name one of them.")


def read_sentences(path: Path, text_column: str | None = None) -> Iterator[str]:
    """Sentences of a file in order, blank ones included, in memory that does not grow with the file.

    Args:
        path: a file of one of `SUFFIXES`.
        text_column: as in `load_text_dataset`.

    Raises:
        ValueError: as `read_rows`; if there is no such column, or a row without a string in it.
    """
    column = find_text_column(read_columns(path), text_column, str(path))
    return (str(cells["text"]) for cells in read_cells([str(path)], column))


def read_cells(
    paths: list[str], text: str, label: str | None = None, classes: Sequence[str] | None = None, stamps: object = None
) -> Iterator[dict[str, str | None]]:
    """Rows of several files with `text` and, if there is a column of classes, the name of the class as `label`.

    Args:
        paths: of the files.
        text: column of the sentences.
        label: column of the classes.
        classes: names of the classes, where integers in that column are their numbers.
        stamps: of the files, to tell changed ones from those that were read before.

    Raises:
        ValueError: as `read_rows`, and naming a row without a string, or with a class that is not in `classes`.
    """
    columns = [text] if label is None else [text, label]
    for path in map(Path, paths):
        declared = declared_classes(path, label) or classes  # a file's numbers are of its own names
        for number, row in read_rows(path, columns):
            value = row.get(text)
            if not isinstance(value, str) or _SURROGATE.search(value):
                raise ValueError(
                    f"`{text}` must hold a string in every row, got {_describe(row, text)} in "
                    f"{_place(path, number)} of {str(path)!r}; repair or drop such rows."
                )
            if label is None:
                yield {"text": value}
                continue
            try:
                yield {"text": value, "label": class_name(row.get(label), declared)}
            except ValueError as error:
                raise ValueError(f"{error} See {_place(path, number)} of {str(path)!r}.") from error


def _describe(row: dict[str, Any], text: str) -> str:
    if text not in row:
        return f"only {', '.join(row)}" if row else "no such column"
    if isinstance(row[text], str):
        return f"half a surrogate pair in {row[text][:50]!r}"
    return f"{type(row[text]).__name__} {str(row[text])[:50]!r}"


def declared_classes(path: Path, column: str | None) -> list[str] | None:
    """Names of the classes that a .parquet file written by `datasets` says its column has."""
    if column is None or path.suffix.lower() != ".parquet":
        return None
    schema = pq.read_schema(path)
    if b"huggingface" not in (schema.metadata or {}):
        return None
    kind = Features.from_arrow_schema(schema).get(column)
    return list(kind.names) if isinstance(kind, ClassLabel) else None


def class_name(value: object, classes: Sequence[str] | None = None) -> str | None:
    """The name of a class; None for what says that a row has none: None, NaN, a blank, or -1 beside declared `classes`.

    Args:
        value: of a cell.
        classes: names of the classes, where `value` is one of them or the number of one.

    Raises:
        ValueError: if `value` is none of `classes`, or can be no class at all.
    """
    if value is None or value != value or str(value).strip() in ("", *(NO_CLASS if classes else ())):
        return None
    if not isinstance(value, str | int | float):
        raise ValueError(f"`label` must be classes, got {str(value)[:50]!r}; name another `label_column`.")
    name = str(value).strip()
    if classes is None or (isinstance(value, str) and name in classes):
        return name
    if not NUMBER.fullmatch(name) or float(name) not in range(len(classes)):
        raise ValueError(f"`label` must be from 0 to {len(classes) - 1}, got {value!r}; drop rows without a class.")
    return classes[int(float(name))]
