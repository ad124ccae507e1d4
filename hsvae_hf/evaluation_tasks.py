"""Tasks that codes are measured on: retrieval, similarity of pairs, classification; read from a folder of files."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from scipy import sparse

from hsvae_hf.command_line import choose
from hsvae_hf.embedding_cache import embed_dataset, load_encoder_tokenizer
from hsvae_hf.input_checks import check_positive, check_sentences
from hsvae_hf.models import HSVAEForPreTraining

Embed: TypeAlias = Callable[[list[str]], np.ndarray]  # sentences to vectors, (rows, size)

SPLITS = "validation", "test"
HELD_OUT_EVERY = 5  # of a classification set without a validation split, every fifth row of train
RETRIEVAL_FILES = {"corpus", "queries", "qrels"}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all tasks have: named parts with a vector for each row, and perhaps its text.

    Attributes:
        name: of the task, the name of its folder.
        split: `validation`, `test`, or `all` where a set has no splits.
        vectors: of the frozen encoder, `(rows, size)`, by part.
        texts: by part; empty where there is no text.
    """

    name: str
    split: str
    vectors: dict[str, np.ndarray]
    texts: dict[str, list[str]] = field(default_factory=dict)

    kind: ClassVar[str]
    pool_parts: ClassVar[tuple[str, ...]]  # whose rows are one another's neighbours
    training_parts: ClassVar[tuple[str, ...]]  # whose rows a system without training may be fitted on

    def __post_init__(self) -> None:
        for part, vectors in self.vectors.items():
            if vectors.ndim != 2 or not len(vectors) or not np.isfinite(vectors).all():
                raise ValueError(
                    f"`vectors` of {self.name}, {part}, must be finite numbers, (rows, size), got shape "
                    f"{vectors.shape} or NaN in it; encode the text again."
                )

    @property
    def training(self) -> np.ndarray:
        """Vectors to fit a baseline on, `(rows, size)`; none of them is a test row of a classification task."""
        return np.concatenate([self.vectors[part] for part in self.training_parts])

    def pool(self, limit: int | None = None, seed: int = 0) -> np.ndarray:
        """Numbers of the rows, of `pool_parts` one after the other, that are one another's neighbours.

        Of equal rows the first alone is taken, since which of them is the nearest is chance.

        Args:
            limit: how many at most, drawn at random; None for all.
            seed: of the draw.
        """
        rows = np.concatenate([self.vectors[part] for part in self.pool_parts])
        first = np.sort(np.unique(rows, axis=0, return_index=True)[1])
        if limit is None or len(first) <= limit:
            return first
        return np.sort(np.random.default_rng(seed).choice(first, limit, replace=False))


@dataclass(frozen=True, kw_only=True)
class RetrievalTask(Task):
    """Queries, documents, and which document answers which query.

    Attributes:
        relevance: `(queries, documents)`, whole numbers, 0 where a document does not answer.
    """

    relevance: sparse.csr_matrix
    kind = "retrieval"
    pool_parts = training_parts = ("corpus",)


@dataclass(frozen=True, kw_only=True)
class SimilarityTask(Task):
    """Pairs of sentences, and how similar people found them.

    Attributes:
        scores: `(pairs,)`, larger for more similar.
    """

    scores: np.ndarray
    kind = "similarity"
    pool_parts = training_parts = ("first", "second")


@dataclass(frozen=True, kw_only=True)
class ClassificationTask(Task):
    """Rows with classes, to learn from and to judge by.

    Attributes:
        labels: class indices, `(rows,)`, of the parts `train` and `test`.
    """

    labels: dict[str, np.ndarray]
    kind = "classification"
    pool_parts = ("test",)
    training_parts = ("train",)


def load_tasks(
    suite: str | Path,
    embed: Embed | None = None,
    vectors_dir: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    split: str = "test",
    max_samples: int | None = 2500,
    max_train_samples: int | None = 8000,
) -> Iterator[Task]:
    """The tasks of a folder, one after the other.

    A task is a folder of `.parquet` files, at any depth, which has its name. Its columns tell its kind:
    retrieval has the files corpus (`id`, `text`, perhaps `title`), queries (`id`, `text`) and qrels (`query`,
    `document`, `relevance`); similarity has a file for each split with `sentence1`, `sentence2`, `score`;
    classification has one with `text` and `label`. Other folders are passed over.

    Retrieval sets have no splits: choose settings on one of them, and report on another. A classification set without
    a validation split gets every fifth row of train.

    Args:
        suite: the folder.
        embed: makes vectors of sentences, `(rows, size)`.
        vectors_dir: instead of `embed`, a folder of `.npy` files TASK-PART.npy: `corpus` and `queries`; `SPLIT-1` and
            `SPLIT-2` of pairs; `train` and the split of a classification set. With TASK-PART-labels.npy beside them,
            the rows are in an order of their own, and have no text.
        tasks: names of those to load; None for all.
        split: what is measured on.
        max_samples: rows of a classification set to judge by, drawn at random; None for all.
        max_train_samples: rows to learn from, likewise.

    Raises:
        ValueError: at once, if there is no such folder, task or split, or not exactly one of `embed` and `vectors_dir`;
            if `vectors_dir` lacks a file, or holds one of another number of rows or width than the others.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}; name one of them.")
    if (embed is None) == (vectors_dir is None):
        got = "neither" if embed is None else "both"
        raise ValueError(f"Give exactly one of `embed` and `vectors_dir`, got {got}.")
    check_positive(max_samples=max_samples, max_train_samples=max_train_samples)
    if tasks is not None:
        check_sentences(tasks, "tasks")
    folders = find_tasks(suite)
    names = list(folders) if tasks is None else [choose("tasks", name, folders) for name in tasks]
    limits = max_train_samples, max_samples
    widths: dict[int, str] = {}
    for name in names:
        widths |= _check_files(folders[name], _Vectors(name, embed, vectors_dir), split)
    if len(widths) > 1:
        both = " and ".join(f"{width} in {place}" for width, place in sorted(widths.items())[:2])
        raise ValueError(f"`vectors_dir` must hold vectors of one width, got {both}; encode them by one encoder.")
    return (_load_task(folders[name], _Vectors(name, embed, vectors_dir), split, limits) for name in names)


def frozen_encoder(encoder_name_or_path: str, max_length: int | None = None, device: str = "cpu") -> Embed:
    """What makes vectors of sentences; they are computed once and kept on disk.

    Args:
        encoder_name_or_path: a sentence encoder, a folder or a Hub id.
        max_length: tokens per sentence; None takes what the encoder itself says.
        device: to encode on.

    Raises:
        ValueError: if there is no such encoder.
    """
    tokenizer = load_encoder_tokenizer(encoder_name_or_path, max_length)
    model = HSVAEForPreTraining.from_encoder_pretrained(encoder_name_or_path, decoder_type="vector", latent_size=1)
    model.eval().to(torch.device(device))
    return lambda texts: embed_dataset(Dataset.from_dict({"text": texts}), model, tokenizer)


def find_tasks(suite: str | Path) -> dict[str, Path]:
    """Folders of tasks by name, in the order of their names; folders that are links too.

    Raises:
        ValueError: if there is none, or two have one name.
    """
    found: dict[str, Path] = {}
    for folder in sorted(_folders(Path(suite)), key=lambda folder: folder.name):
        if _kind(folder) is None:
            continue
        if folder.name in found:
            raise ValueError(
                f"`suite` must hold one task of each name, got {str(found[folder.name])!r} and {str(folder)!r}; rename "
                "one of them."
            )
        found[folder.name] = folder
    if not found:
        raise ValueError(
            f"`suite` must be a folder with tasks in .parquet files, got {str(suite)!r} with none; check the path."
        )
    return found


def _folders(top: Path) -> Iterator[Path]:
    """A folder and all in it, links too, each once, as a link may lead back up; `rglob` follows none."""
    seen = set()
    for place, inside, _ in os.walk(top, followlinks=True):
        inside.sort()
        real = os.path.realpath(place)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        yield Path(place)


def _kind(folder: Path) -> str | None:
    """The kind of the task in a folder, None if there is none."""
    files = {path.stem: path for path in folder.glob("*.parquet")}
    if files.keys() >= RETRIEVAL_FILES:
        return "retrieval"
    if "test" not in files:
        return None
    columns = set(pq.read_schema(files["test"]).names)
    if columns >= {"sentence1", "sentence2", "score"}:
        return "similarity"
    return "classification" if columns >= {"text", "label"} and "train" in files else None


@dataclass(frozen=True)
class _Vectors:
    """Where the vectors of a task come from."""

    task: str
    embed: Embed | None
    folder: str | Path | None

    def __call__(self, part: str, texts: list[str]) -> np.ndarray:
        if self.embed is not None:
            return np.asarray(self.embed(texts), dtype=np.float32)
        return self.read(f"{self.task}-{part}.npy")

    def shape(self, part: str) -> tuple[int, int]:
        """Rows and width of a file, read from its head.

        Raises:
            ValueError: if it holds no vectors.
        """
        found = self.read(f"{self.task}-{part}.npy", mmap_mode="r")
        if found.ndim != 2 or found.dtype.kind not in "fiu":
            raise ValueError(
                f"`vectors_dir` must hold numbers, (rows, size), got {found.dtype} of {found.shape} in "
                f"{self.task}-{part}.npy; encode the text again."
            )
        return len(found), found.shape[1]

    def own_labels(self, part: str) -> np.ndarray | None:
        """Classes of rows that are in an order of their own, None if they are not."""
        name = f"{self.task}-{part}-labels.npy"
        return self.read(name) if self.folder is not None and (Path(self.folder) / name).exists() else None

    def read(self, name: str, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
        path = Path(str(self.folder)) / name
        if not path.exists():
            raise ValueError(f"`vectors_dir` must hold {name}, got {str(self.folder)!r} without; add it.")
        try:
            return np.asarray(np.load(path, mmap_mode, allow_pickle=False))
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"`vectors_dir` must hold arrays of numbers, got {name}: {error}; mend it.") from error


def _check_files(folder: Path, vectors: _Vectors, split: str) -> dict[int, str]:
    """Refuse a task without a file, and one of other rows than its vectors, before anything is read or measured.

    Returns:
        The width of its vectors, and a file that has it; nothing where they are yet to be made.
    """
    kind, widths = _kind(folder), {}
    if kind == "retrieval":
        files = {name: name for name in ("corpus", "queries")}
    elif kind == "similarity":
        files = {f"{split}-1": split, f"{split}-2": split}
    else:
        held_out = split == "validation" and not (folder / "validation.parquet").exists()
        files = {name: name for name in ("train", "train" if held_out else split)}
    for part, file in files.items():
        rows = pq.read_metadata(_path(folder, file)).num_rows
        if vectors.embed is not None:
            continue
        labels = vectors.own_labels(part) if kind == "classification" else None
        rows = rows if labels is None else len(labels)
        found, width = vectors.shape(part)
        if found != rows:
            raise ValueError(
                f"`vectors_dir` must hold a vector for each of the {rows} rows of {folder.name}, {part}, got {found}; "
                "encode them again."
            )
        widths[width] = f"{folder.name}-{part}.npy"
    return widths


def _path(folder: Path, name: str) -> Path:
    path = folder / f"{name}.parquet"
    if not path.exists():
        raise ValueError(f"`split` must be one of {folder.name}'s, got {name!r}; name another, or leave the task out.")
    return path


def _load_task(folder: Path, vectors: _Vectors, split: str, limits: tuple[int | None, int | None]) -> Task:
    kind = _kind(folder)
    if kind == "retrieval":
        return _load_retrieval(folder, vectors)
    if kind == "similarity":
        return _load_similarity(folder, vectors, split)
    return _load_classification(folder, vectors, split, limits)


def _read(folder: Path, name: str) -> dict[str, list[Any]]:
    """The columns of a file."""
    columns: dict[str, list[Any]] = pq.read_table(_path(folder, name)).to_pydict()
    return columns


def _load_retrieval(folder: Path, vectors: _Vectors) -> RetrievalTask:
    corpus, queries, qrels = (_read(folder, name) for name in ("corpus", "queries", "qrels"))
    titles = corpus.get("title", [""] * len(corpus["id"]))
    texts = {
        "corpus": [f"{title or ''} {text}".strip() for title, text in zip(titles, corpus["text"], strict=True)],
        "queries": queries["text"],
    }
    rows, columns = ({name: row for row, name in enumerate(part["id"])} for part in (queries, corpus))
    try:
        place = [rows[name] for name in qrels["query"]], [columns[name] for name in qrels["document"]]
    except KeyError as error:
        raise ValueError(f"`qrels` of {folder.name} must name queries and documents, got {error}; mend it.") from error
    shape = len(rows), len(columns)
    relevance = sparse.csr_matrix((np.array(qrels["relevance"]), place), shape=shape)
    parts = {part: vectors(part, texts[part]) for part in texts}
    return RetrievalTask(name=folder.name, split="all", vectors=parts, texts=texts, relevance=relevance)


def _load_similarity(folder: Path, vectors: _Vectors, split: str) -> SimilarityTask:
    columns = _read(folder, split)
    texts = {"first": columns["sentence1"], "second": columns["sentence2"]}
    parts = {part: vectors(f"{split}-{number}", texts[part]) for number, part in enumerate(texts, 1)}
    scores = np.array(columns["score"], dtype=float)
    return SimilarityTask(name=folder.name, split=split, vectors=parts, texts=texts, scores=scores)


def _load_classification(
    folder: Path, vectors: _Vectors, split: str, limits: tuple[int | None, int | None]
) -> ClassificationTask:
    held_out = split == "validation" and not (folder / "validation.parquet").exists()
    files = {"train": "train", "test": "train" if held_out else split}
    parts, labels, texts = {}, {}, {}
    for (part, file), limit in zip(files.items(), limits, strict=True):
        columns = _read(folder, file)
        own = vectors.own_labels(file)
        classes, text = (np.array(columns["label"]), columns["text"]) if own is None else (own, [""] * len(own))
        rows = _chosen(len(classes), limit, part if held_out else None)
        if vectors.embed is None:
            parts[part] = vectors(file, text)[rows]
        else:
            parts[part] = vectors(file, [text[row] for row in rows])
        labels[part] = classes[rows]
        if own is None:
            texts[part] = [text[row] for row in rows]
    texts = texts if len(texts) == len(files) else {}
    names = np.unique(np.concatenate(list(labels.values())))
    labels = {part: np.searchsorted(names, classes) for part, classes in labels.items()}
    return ClassificationTask(name=folder.name, split=split, vectors=parts, texts=texts, labels=labels)


def _chosen(rows: int, limit: int | None, part: str | None) -> np.ndarray:
    """Numbers of the rows to use; `part` says which side of those held out, if that is how they are split."""
    numbers = np.arange(rows)
    if part is not None:
        held_out = numbers % HELD_OUT_EVERY == 0
        numbers = numbers[held_out if part == "test" else ~held_out]
    if limit is None or len(numbers) <= limit:
        return numbers
    return np.sort(np.random.default_rng(0).choice(numbers, limit, replace=False))


def word_counts(texts: Sequence[str]) -> np.ndarray:
    """Number of words of each text, `(rows,)`.

    >>> word_counts(["a plain sentence", ""])
    array([3, 0])
    """
    return np.array([len(text.split()) for text in texts], dtype=int)
