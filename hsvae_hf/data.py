"""Text data sets with the columns `text` and, where there are classes, `label`."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value
from datasets.exceptions import DatasetsError
from transformers import PreTrainedTokenizerBase

from hsvae_hf.data_sources import Source, Splits, first_line, locate
from hsvae_hf.input_checks import check_sentences
from hsvae_hf.text_files import (
    LABEL_COLUMNS,
    NO_CLASS,
    NUMBER,
    check_column,
    class_name,
    declared_classes,
    find_text_column,
    read_cells,
    read_columns,
)
from hsvae_hf.tokens import token_limit, tokenize

logger = logging.getLogger(__name__)
SPLIT_SEED = 42  # of held-out rows: a report must not be on what another seed trained on
MAX_LENGTHS = {"yelp": 200, "dbpedia": 60, "yahoo": 30}  # the paper's
VALIDATION_SHARE = 0.05
_UNSEEN = re.compile("[\u200b-\u200d\u2060\ufeff]")  # characters without a width, which are no spaces for Unicode


@dataclass(frozen=True)
class DatasetSummary:
    """What `load_text_dataset` chose; it is the attribute `summary` of what that returns.

    Args:
        dataset: its name.
        columns: all that there are.
        text_column: the one of the sentences.
        label_column: the one of the classes; None if there is none.
        classes: their names.
        rows: of every split; empty when streaming.
        held_out: whether the validation rows were held out of the training rows.
    """

    dataset: str
    columns: tuple[str, ...]
    text_column: str
    label_column: str | None
    classes: tuple[str, ...]
    rows: Mapping[str, int]
    held_out: bool


def load_text_dataset(
    dataset: str | PathLike[str] | Dataset | DatasetDict | list[str],
    text_column: str | None = None,
    label_column: str | None = None,
    with_labels: bool = True,
    streaming: bool = False,
    max_train_samples: int | None = None,
    max_samples: int | None = None,
    seed: int = 42,
    needs_train: bool = True,
    dataset_config_name: str | None = None,
) -> Splits:
    """Load a data set and bring it to the columns `text` and, if it has labels, `label` (a `ClassLabel`).

    A data set without a validation split gets one: 5% of its training split, the same for every `seed` (not when
    streaming). Rows without a word character or sign, such as the blank lines of a .txt file, are left out, and a
    warning says how many. A row without a class has the label -1; see `labelled`: one with an empty cell or None, or
    with -1 in a split of nothing else, beside classes that are no numbers, or where the data declare names of classes.
    What was chosen is the attribute `summary` of the result, a `DatasetSummary`.

    Args:
        dataset: `docstrings` (the embedded corpus), `yelp`, `dbpedia` or `yahoo` (from the Hub), a Hub id, a local
            folder (of files, or of `save_to_disk`), or a .txt, .csv, .tsv, .jsonl, .json or .parquet file; or a
            `Dataset`, a `DatasetDict` or a list of sentences, which is left as it is.
        text_column: column of the sentences; found by its name, or as the only string column, without it.
        label_column: column of the classes; found by its name without it; a data set may have none.
        with_labels: whether to look for classes at all.
        streaming: read while training instead of loading first.
        max_train_samples: keep this many rows of the training split, drawn with `seed` (the first, when streaming).
        max_samples: the same for every other split.
        seed: of the draws.
        needs_train: whether a data set without a training split is refused.
        dataset_config_name: which configuration, of a Hub id or a folder that has several.

    Returns:
        The splits.

    Raises:
        ValueError: if there is no such data set, split, column or readable text, or a label is no class.
    """
    for name, value in (("max_train_samples", max_train_samples), ("max_samples", max_samples)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}; leave it out to take all rows.")
    source: Source
    if isinstance(dataset, str | PathLike):
        dataset = str(dataset)
        source, declared = locate(dataset, dataset_config_name, streaming)
    else:
        source, declared = _in_memory(dataset), None
        dataset = describe(dataset)
    if needs_train and "train" not in source:
        raise ValueError(f"`dataset` must have a split `train`, got {dataset!r} with {sorted(source)}; rename one.")
    columns = _columns(source)
    label = _find_label(columns, label_column, text_column) if with_labels else None
    text = find_text_column(columns, text_column, dataset, label)
    classes = _find_classes(source, label, declared)
    splits = _read(source, text, label, classes, streaming)
    splits = _drop_blank(splits, text, dataset, streaming)
    _check_labels(splits, label, classes)
    held_out = "train" in splits and "validation" not in splits and not streaming and len(splits["train"]) > 1
    if held_out:
        size = max(1, int(VALIDATION_SHARE * len(splits["train"])))
        parts = splits["train"].train_test_split(size, seed=SPLIT_SEED)
        splits["train"], splits["validation"] = parts["train"], parts["test"]
    for name in splits:
        limit = max_train_samples if name == "train" else max_samples
        if limit is not None and streaming:
            splits[name] = splits[name].take(limit)
        elif limit is not None and limit < len(splits[name]):
            splits[name] = splits[name].shuffle(seed=seed).select(range(limit))
    if label is not None and not streaming:
        splits = _encode_labels(splits, label, classes)
    first = next(iter(splits.values()))
    has_labels = not streaming and "label" in first.column_names
    splits.summary = DatasetSummary(
        dataset=dataset,
        columns=tuple(columns),
        text_column=text,
        label_column=label if has_labels else None,
        classes=tuple(first.features["label"].names) if has_labels else (),
        rows={} if streaming else {name: len(split) for name, split in splits.items()},
        held_out=held_out,
    )
    return splits


def _in_memory(dataset: Any) -> DatasetDict:
    """Splits of rows that are in memory."""
    if isinstance(dataset, DatasetDict):
        return DatasetDict(dataset)
    if not isinstance(dataset, Dataset):
        check_sentences(dataset, "dataset")
        dataset = Dataset.from_dict({"text": list(dataset)})
    if not len(dataset):
        raise ValueError("`dataset` must hold at least one sentence, got no rows; add some.")
    return DatasetDict({"train": dataset})


def describe(rows: object) -> str:
    """Rows in memory, in the place of the name of a file."""
    count = f" of {len(rows):,} rows" if isinstance(rows, Sized) and not isinstance(rows, Mapping) else ""
    return f"a {type(rows).__name__}{count}"


def labelled(split: Dataset) -> Dataset | None:
    """The rows that have a class; None if there are none, or no column of classes.

    Args:
        split: of `load_text_dataset`.
    """
    if "label" not in split.column_names:
        return None
    rows = [row for row, label in enumerate(split["label"][:]) if label is not None and label >= 0]
    return (split if len(rows) == len(split) else split.select(rows)) if rows else None


def _columns(source: Source) -> dict[str, str]:
    """Names of the columns and whether they hold text, numbers or something else."""
    if isinstance(source, dict) and not isinstance(source, DatasetDict | IterableDatasetDict):
        kinds: dict[str, str] = {}
        for files in source.values():  # a test split may lack the classes
            kinds |= read_columns(files[0]) | kinds
        return kinds
    first, strings = next(iter(source.values())), ("string", "large_string")
    features = first.features
    if features is None:  # streamed files tell their columns by their first row
        features = first._resolve_features().features
    for split in source.values():
        features = (split.features or {}) | features
    return {name: "text" if getattr(kind, "dtype", None) in strings else "other" for name, kind in features.items()}


def _find_label(columns: dict[str, str], named: str | None, text: str | None) -> str | None:
    check_column(columns, named, "label_column")
    if named is not None and named == text:
        raise ValueError(f"`label_column` must be another column than `text_column`, got {named!r} for both.")
    return named or next((name for name in LABEL_COLUMNS if name in columns and name != text), None)


def _find_classes(source: Source, label: str | None, declared: Features | None) -> list[str] | None:
    """Names of the classes, where the data themselves declare them: all that a card, a file or a split has."""
    if label is None:
        return None
    if isinstance(source, DatasetDict | IterableDatasetDict):
        lists = [_names_of(split.features, label) for split in source.values()]
    else:
        lists = [_names_of(declared, label)]
        lists += [declared_classes(path, label) for paths in source.values() for path in paths]
    return list(dict.fromkeys(name for names in lists for name in names or ())) or None


def _names_of(features: Features | None, label: str) -> list[str] | None:
    kind = (features or {}).get(label)
    return list(kind.names) if isinstance(kind, ClassLabel) else None


def _read(source: Source, text: str, label: str | None, classes: list[str] | None, streaming: bool) -> Splits:
    """The splits with their two columns."""
    if isinstance(source, DatasetDict | IterableDatasetDict):
        keep = {text: "text"} | ({} if label is None else {label: "label"})
        for split, rows in source.items():
            present = [name for name in keep if rows.features is None or name in rows.features]
            if text not in present:
                raise ValueError(
                    f"`{text}` must be a column of every split, got only {sorted(rows.features)} in {split!r}; add it."
                )
            source[split] = rows.select_columns(present).rename_columns(
                {name: keep[name] for name in present if name != keep[name]}
            )
        return source if streaming or label is None else _name_classes(source)
    names = ["text"] if label is None else ["text", "label"]
    features = Features({name: Value("string") for name in names})
    splits = {}
    for split, paths in source.items():
        stamps = None if streaming else tuple(map(_stamp, paths))  # else a change goes unseen
        arguments: dict[str, Any] = {"paths": [str(path) for path in paths], "text": text, "label": label}
        arguments |= {"classes": classes and tuple(classes), "stamps": stamps}
        maker = IterableDataset if streaming else Dataset
        try:
            splits[split] = maker.from_generator(read_cells, features=features, gen_kwargs=arguments)
        except DatasetsError as error:
            raise ValueError(first_line(error)) from error
    return (IterableDatasetDict if streaming else DatasetDict)(splits)


def _stamp(path: Path) -> str:
    """What tells the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _name_classes(splits: DatasetDict) -> DatasetDict:
    """The names of the classes as text; None where a row, or a whole split, has none."""
    features = Features({"text": Value("string"), "label": Value("string")})
    for name, split in splits.items():
        names = _names_of(split.features, "label")
        splits[name] = split.map(
            lambda rows, names=names: {
                "label": [class_name(value, names) for value in rows.get("label", [None] * len(rows["text"]))]
            },
            batched=True,
            features=features,
            desc="Classes",
        )
    return splits


def _drop_blank(splits: Splits, text: str, dataset: str, streaming: bool) -> Splits:
    """Leave out rows whose text is blank."""

    def has_text(texts: list[str | None], rows: list[int]) -> list[bool]:
        if None in texts:
            raise ValueError(
                f"`{text}` of {dataset!r} must hold a string in every row, got an empty cell in row "
                f"{rows[texts.index(None)] + 1} of a split; drop such rows."
            )
        return [bool(_UNSEEN.sub("", str(row)).strip()) for row in texts]

    options: dict[str, Any] = {"with_indices": True, "input_columns": ["text"], "batched": True}
    if streaming:
        return splits.filter(has_text, **options)
    for name, split in splits.items():
        kept = split.filter(has_text, **options, desc="Blank texts")
        if not len(kept):
            raise ValueError(
                f"`{text}` of {dataset!r} must hold at least one word, got {len(split)} blank texts in split {name!r}; "
                "name another `text_column`, or add text."
            )
        if len(kept) < len(split):
            missing = len(split) - len(kept)
            logger.warning("%d of the %d texts of `%s` are blank; they are left out", missing, len(split), name)
            splits[name] = kept
    return splits


def _encode_labels(splits: DatasetDict, column: str, classes: list[str] | None) -> DatasetDict:
    """Names of classes as numbers, -1 where there is none; no column of classes where no row has one."""
    values = {value for split in splits.values() for value in split.unique("label")}
    present = {_class_of(value, classes) for value in values}
    if not present - {None}:
        logger.warning("no row has a class in `%s` (all are -1 or empty): there are no labels", column)
        return splits.remove_columns("label")
    names = classes or _sort_classes(present, column)
    whole = classes is None and all(map(NUMBER.fullmatch, names))
    names = list(dict.fromkeys(map(_shorten, names))) if whole else names
    ids = {None: -1} | {name: index for index, name in enumerate(names)}
    splits = splits.map(
        lambda rows: {"label": [ids[_class_of(value, classes, whole)] for value in rows["label"]]},
        batched=True,
        features=Features({"text": Value("string"), "label": ClassLabel(names=names)}),
        desc="Labels",
    )
    _tell_gaps(splits, column, names)
    return splits


def _class_of(value: object, classes: list[str] | None, whole: bool = False) -> str | None:
    """The name of a class, where `_check_labels` has seen that -1 is none."""
    name = class_name(value, classes)
    if name is None or (classes is None and name in NO_CLASS):
        return None
    return _shorten(name) if whole else name


def _shorten(name: str) -> str:
    """A whole number without `.0`, which pandas writes in a column with empty cells."""
    return re.sub(r"\.0*$", "", name)


def _check_labels(splits: Splits, column: str | None, classes: list[str] | None) -> None:
    """Refuse -1 beside other numbers of a split: it may be a class, or say that there is none."""
    if column is None or classes is not None or isinstance(splits, IterableDatasetDict):
        return
    for split, rows in splits.items():
        names = set(rows.unique("label")) - {None}
        others = sorted(names - set(NO_CLASS))
        if others and len(others) < len(names) and all(map(NUMBER.fullmatch, others)):
            raise ValueError(
                f"`{column}` must not have -1 beside other numbers, got -1 and {others[:3]} in split {split!r}; give "
                "the classes names if it is one of them, or leave those cells empty if it says that there is no class."
            )


def _sort_classes(present: set[str | None], column: str) -> list[str]:
    names = [name for name in present if name is not None]
    if not all(NUMBER.fullmatch(name) for name in names):
        return sorted(names)
    numbers = [float(name) for name in names]
    if None in present and min(numbers) < 0:
        raise ValueError(
            f"`{column}` must be classes from 0 on, got {min(numbers):g} beside -1 or empty cells, which say that a "
            "row has no class; give the classes names."
        )
    # pandas writes 1 as 1.0 in a column with empty cells, see `_shorten`
    if any(number % 1 for number in numbers) or (None not in present and not all(map(_is_whole, names))):
        raise ValueError(
            f"`{column}` must be classes, got the numbers {sorted(names)[:3]}; name another `label_column`."
        )
    return sorted(names, key=float)


def _is_whole(name: str) -> bool:
    return name.lstrip("+-").isdecimal()


def _tell_gaps(splits: DatasetDict, column: str, names: list[str]) -> None:
    """Warn of rows without a class, and of classes that no training row has."""
    present = {name: Counter(split["label"][:]) for name, split in splits.items()}
    for name, labels in present.items():
        if labels[-1]:
            logger.warning(
                "%d of the %d rows of `%s` have no class in `%s` (-1 or empty); they are left out of what needs one",
                *(labels[-1], labels.total(), name, column),
            )
        unseen = [names[label] for label in sorted(labels) if label >= 0 and label not in present.get("train", labels)]
        if unseen:
            logger.warning("classes of `%s` that no row of `train` has, counted as errors: %s", name, unseen[:10])


def tokenize_dataset(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Replace `text` by `input_ids` and their `length`; other columns stay. Works on streamed splits too.

    Args:
        dataset: one split, or all, with a column `text`.
        tokenizer: of `train_tokenizer`, or any other; a sentence is cut at its `model_max_length`.

    Raises:
        ValueError: if `dataset` is something else, such as a list or a DataFrame.
    """
    if not isinstance(dataset, Dataset | IterableDataset | DatasetDict | IterableDatasetDict):
        raise ValueError(
            f"`dataset` must be a Dataset with a column `text`, got a {type(dataset).__name__}; make one, for example "
            "with Dataset.from_dict({'text': sentences})."
        )

    def ids_of(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        ids = [row.tolist() for row in tokenize(tokenizer, rows["text"], token_limit(tokenizer))]
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    progress = {"desc": "Tokenize"} if isinstance(dataset, Dataset | DatasetDict) else {}
    return dataset.map(ids_of, batched=True, remove_columns=["text"], **progress)
