"""Text data sets by short name, Hub id or local path, with the columns `text` and, where there is one, `label`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    IterableDatasetDict,
    Value,
    load_dataset,
)
from datasets.exceptions import DatasetsError
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from hsvae_hf.docstrings import docstring_corpus

HUB_IDS = {
    "yelp": "Yelp/yelp_review_full",
    "dbpedia": "fancyzhx/dbpedia_14",
    "yahoo": "community-datasets/yahoo_answers_topics",
}
SPLIT_SEED = 42  # of held-out rows: a report must not be on what another seed trained on
MAX_LENGTHS = {"yelp": 200, "dbpedia": 60, "yahoo": 30}  # the paper's
TEXT_COLUMNS = ("text", "sentence", "content", "question_title", "review", "review_body", "document", "abstract")
LABEL_COLUMNS = ("label", "labels", "topic", "class", "category", "target")
BUILDERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
VALIDATION_SHARE = 0.05


def load_text_dataset(
    dataset: str,
    text_column: str | None = None,
    label_column: str | None = None,
    with_labels: bool = True,
    streaming: bool = False,
    max_train_samples: int | None = None,
    max_samples: int | None = None,
    seed: int = 42,
    needs_train: bool = True,
) -> DatasetDict | IterableDatasetDict:
    """Load a data set and bring it to the columns `text` and, if it has labels, `label` (a `ClassLabel`).

    A data set without a validation split gets one: 5% of its training split, the same for every `seed` (not when
    streaming).

    Args:
        dataset: `docstrings` (the embedded corpus), `yelp`, `dbpedia` or `yahoo` (from the Hub), a Hub id, a local
            folder, or a .txt, .jsonl, .json, .csv or .parquet file.
        text_column: column of the sentences; found by its name, or as the only string column, without it.
        label_column: column of the classes; found by its name without it; a data set may have none.
        with_labels: whether to look for classes at all.
        streaming: read while training instead of loading first.
        max_train_samples: keep this many rows of the training split, drawn with `seed` (the first, when streaming).
        max_samples: the same for every other split.
        seed: of the draws.
        needs_train: whether a data set without a training split is refused.

    Returns:
        The splits.

    Raises:
        ValueError: if there is no such data set, split, column or readable text, or a label is outside its range.
    """
    for name, value in (("max_train_samples", max_train_samples), ("max_samples", max_samples)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}; leave it out to take all rows.")
    splits = docstring_corpus() if dataset == "docstrings" else _read(dataset, streaming)
    if needs_train and "train" not in splits:
        raise ValueError(f"`dataset` must have a split `train`, got {dataset!r} with {sorted(splits)}; rename one.")
    if "train" in splits and "validation" not in splits and not streaming and len(splits["train"]) > 1:
        size = max(1, int(VALIDATION_SHARE * len(splits["train"])))
        parts = splits["train"].train_test_split(size, seed=SPLIT_SEED)
        splits["train"], splits["validation"] = parts["train"], parts["test"]
    for name in splits:
        limit = max_train_samples if name == "train" else max_samples
        if limit is not None and streaming:
            splits[name] = splits[name].take(limit)
        elif limit is not None and limit < len(splits[name]):
            splits[name] = splits[name].shuffle(seed=seed).select(range(limit))
    return _normalise(splits, dataset, text_column, label_column, with_labels, streaming)


def _read(dataset: str, streaming: bool) -> DatasetDict | IterableDatasetDict:
    path = Path(dataset).expanduser()
    if path.is_file():
        if path.suffix not in BUILDERS:
            raise ValueError(f"`dataset` must be a {', '.join(BUILDERS)} file, got {dataset!r}; convert it to one.")
        if path.stat().st_size == 0:
            raise ValueError(f"`dataset` must hold text, got the empty file {dataset!r}; give a file with sentences.")
        if path.suffix != ".parquet":
            _check_utf8(path)
    if not path.exists() and dataset.startswith((".", "/", "~")):
        raise ValueError(f"`dataset` must be a file or folder that exists, got {dataset!r}; check the path.")
    try:
        if path.is_file():
            options = {"keep_default_na": False} if path.suffix == ".csv" else {}  # "NA" is a word
            return load_dataset(BUILDERS[path.suffix], data_files=str(path), streaming=streaming, **options)
        return load_dataset(str(path) if path.is_dir() else HUB_IDS.get(dataset, dataset), streaming=streaming)
    except (DatasetsError, OSError, ValueError) as error:
        raise ValueError(
            f"`dataset` {dataset!r} could not be read ({_first_line(error)}); give docstrings, "
            f"{', '.join(HUB_IDS)}, a Hub id that this machine can reach, or a local folder or file."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check_utf8(path: Path) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"`dataset` must be UTF-8 text, got bytes that are not in line {number} of {str(path)!r}; "
                    "convert it, for instance with `iconv -t utf-8`."
                ) from error


def _find(columns: dict[str, Any], named: str | None, usual: tuple[str, ...], argument: str) -> str | None:
    if named is not None and named not in columns:
        raise ValueError(f"`{argument}` must be one of the columns {sorted(columns)}, got {named!r}; name one of them.")
    return named or next((name for name in usual if name in columns), None)


def _normalise(
    splits: DatasetDict | IterableDatasetDict,
    dataset: str,
    text: str | None,
    label: str | None,
    with_labels: bool,
    streaming: bool,
) -> DatasetDict | IterableDatasetDict:
    first = next(iter(splits.values()))
    features = first.features
    if features is None:  # streamed files tell their columns by their first row
        features = first._resolve_features().features
    strings = [name for name, kind in features.items() if getattr(kind, "dtype", None) in ("string", "large_string")]
    label = _find(features, label, LABEL_COLUMNS, "label_column") if with_labels else None
    text = _find(features, text, TEXT_COLUMNS, "text_column") or (
        strings[0] if len(set(strings) - {label}) == 1 else None
    )
    if text is None or text not in strings:
        raise ValueError(
            f"`text_column` must name a column of strings of {dataset!r}, got {text!r}; its string columns: {strings}."
        )
    keep = {text: "text"} | ({label: "label"} if label is not None and label != text else {})
    splits = splits.select_columns(list(keep))
    splits = splits.rename_columns({old: new for old, new in keep.items() if old != new})
    if not streaming:
        for name, split in splits.items():
            if len(split) == 0 or split.data.column("text").null_count:
                raise ValueError(
                    f"`{text}` of {dataset!r} must hold a string in every row, got "
                    f"{'no rows' if len(split) == 0 else 'empty cells'} in split {name!r}; drop such rows."
                )
        if "label" in keep.values():
            splits = _encode_labels(splits, dataset)
    return splits


def _encode_labels(splits: DatasetDict, dataset: str) -> DatasetDict:
    kind = next(iter(splits.values())).features["label"]
    if not isinstance(kind, ClassLabel):
        if not str(getattr(kind, "dtype", "")).startswith(("string", "large_string", "bool", "int", "uint")):
            raise ValueError(f"`label` of {dataset!r} must be classes, got {kind}; name another `label_column`.")
        found = {value for split in splits.values() for value in split.unique("label")}
        values = sorted(found - {None})
        if None in found:
            raise ValueError(f"`label` of {dataset!r} must be in every row, got empty cells; drop such rows.")
        kind = ClassLabel(names=[str(value) for value in values])
        features = Features({"text": Value("string"), "label": kind})
        ids = {value: index for index, value in enumerate(values)}
        return splits.map(lambda row: {"label": ids[row["label"]]}, features=features, desc="Labels")
    for split in splits.values():
        outside = [value for value in split.unique("label") if value is None or not 0 <= value < kind.num_classes]
        if outside:
            raise ValueError(
                f"`label` of {dataset!r} must be from 0 to {kind.num_classes - 1}, got {outside[0]}; drop rows "
                "without a class."
            )
    return splits


def tokenize_dataset(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Replace `text` by `input_ids` and their `length`; other columns stay. Works on streamed splits too.

    Args:
        dataset: one split, or all, with a column `text`.
        tokenizer: of `train_tokenizer`, or any other; a sentence is cut at its `model_max_length`.
    """

    def tokenize(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        ids = tokenizer(rows["text"], truncation=True)["input_ids"]
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    progress = (
        {} if isinstance(dataset, IterableDatasetDict) or not hasattr(dataset, "cache_files") else {"desc": "Tokenize"}
    )
    return dataset.map(tokenize, batched=True, remove_columns=["text"], **progress)


@dataclass
class TextCollator:
    """Pad tokenized rows to a batch.

    Args:
        tokenizer: pads, on its own side.
        with_labels: carry `label` on as `labels` (classification); without, `labels` are the tokens, which pre-training
            reconstructs, as a stock Trainer wants them for its evaluation.
    """

    tokenizer: PreTrainedTokenizerBase
    with_labels: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make `input_ids` and `attention_mask`, `(batch, steps)`, and `labels`, `(batch,)` or `(batch, steps)`."""
        batch = dict(self.tokenizer.pad({"input_ids": [row["input_ids"] for row in rows]}, return_tensors="pt"))
        if self.with_labels:
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        else:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return batch


class LengthGroupedSampler(Sampler[int]):
    """Random batches of sentences of similar length: windows of batches are sorted, then the batches shuffled.

    The same epoch gives the same order, so a resumed run sees what an uninterrupted one would.

    Args:
        lengths: tokens per row.
        batch_size: rows per step over all processes.
        seed: of the order.
        window: batches sorted together; larger means less padding and less randomness.
        epoch: tells the current epoch whenever an order is drawn. (Accelerate's `set_epoch` does not reach a sampler
            behind the batches that a resumed run skips.)
    """

    def __init__(
        self,
        lengths: list[int],
        batch_size: int,
        seed: int = 42,
        window: int = 8,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.lengths, self.batch_size, self.seed, self.window, self.epoch = lengths, batch_size, seed, window, epoch

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Row numbers; the last, smaller batch comes last."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        rows = torch.randperm(len(self), generator=generator).tolist()
        whole = len(rows) - len(rows) % self.batch_size
        rows, last = rows[:whole], rows[whole:]  # set aside before sorting, or it would hold long sentences alone
        size, batches = self.window * self.batch_size, []
        for start in range(0, whole, size):
            window = sorted(rows[start : start + size], key=self.lengths.__getitem__)
            batches += [window[first : first + self.batch_size] for first in range(0, len(window), self.batch_size)]
        order = torch.randperm(len(batches), generator=generator).tolist()
        return iter([row for index in order for row in batches[index]] + last)
