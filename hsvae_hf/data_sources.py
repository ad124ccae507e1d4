"""The place of a data set: a file, a folder, what `save_to_disk` wrote, or the Hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
from datasets import (
    DatasetBuilder,
    DatasetDict,
    Features,
    IterableDatasetDict,
    get_dataset_config_names,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.exceptions import DatasetsError
from huggingface_hub import DatasetCard, HfFileSystem, hf_hub_download

from hsvae_hf.docstrings import docstring_corpus
from hsvae_hf.models.sources import HubSilentError, advise, check_source
from hsvae_hf.text_files import SUFFIXES, VECTOR_FILES, check_one_kind, read_columns

HUB_IDS = {
    "yelp": "Yelp/yelp_review_full",
    "dbpedia": "fancyzhx/dbpedia_14",
    "yahoo": "community-datasets/yahoo_answers_topics",
}
_KNOWN = f"docstrings, {', '.join(HUB_IDS)}, a Hub id, or a local folder or file"
Splits: TypeAlias = "DatasetDict | IterableDatasetDict"
Source: TypeAlias = "dict[str, list[Path]] | Splits"  # files that `reading` reads, or splits that `datasets` read


def locate(dataset: str, config_name: str | None, streaming: bool) -> tuple[Source, Features | None]:
    """The files of every split, and the features that a card declares; or the splits, where `datasets` reads them."""
    if not dataset.strip():
        raise ValueError(f"`dataset` must be {_KNOWN}, got {dataset!r}; name one, such as '.' for this folder.")
    path = Path(dataset).expanduser()
    if config_name is not None and (dataset == "docstrings" or path.is_file()):
        raise ValueError(f"`dataset_config_name` must be left out for {dataset!r}, which has one configuration.")
    if dataset == "docstrings":
        return docstring_corpus(), None
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"`dataset` must be a {', '.join(SUFFIXES)} file, got {dataset!r}; convert it to one.")
        return {"train": [path]}, None
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _load_saved(dataset, path, streaming), None
    return _locate_files(dataset, path, config_name, streaming)


def _locate_files(dataset: str, path: Path, config_name: str | None, streaming: bool) -> tuple[Source, Features | None]:
    """The same for a folder and for the Hub, whose files `datasets` finds."""
    here = path.is_dir()
    name = str(path.resolve()) if here else HUB_IDS.get(dataset, os.path.expanduser(dataset))
    offline = False
    try:
        check_source(name, "dataset", "dataset", _KNOWN)
    except HubSilentError:
        offline = True
    with _one_line(dataset, name, config_name), _offline(offline):
        builder = load_dataset_builder(name, config_name)
        files = {str(split): list(paths) for split, paths in (builder.config.data_files or {}).items()}
        read = {file for paths in files.values() for file in paths}
        strays = _strays(path, builder, read) if here else []
    if here:
        _check_one_kind(read | {str(path.resolve() / stray) for stray in strays})
    with _one_line(dataset, name, config_name), _offline(offline):
        ours = SUFFIXES if here else (".csv", ".tsv")  # pandas takes a cell too many for an index
        if not strays and read and all(Path(file).suffix.lower() in ours for file in read):
            return {split: [_fetch(file) for file in paths] for split, paths in files.items()}, builder.info.features
        if not strays:
            return load_dataset(name, config_name, streaming=streaming), None
    raise ValueError(
        f"`dataset` must be a folder whose files are all of one kind of {', '.join(SUFFIXES)}, got {dataset!r} with "
        f"{strays[:3]}; decompress or convert such files, or move them away."
    )


def _check_one_kind(files: set[str]) -> None:
    """Refuse vectors beside files of sentences, or among them."""
    beside = sorted({path for file in files for path in Path(file).parent.glob("[!.]*")})
    vectors = [path for path in beside if _holds_vectors_alone(path)]
    sentences = [path for path in beside if path.suffix.lower() in SUFFIXES and path not in vectors]
    check_one_kind("dataset", [path for path in sentences if _is_like_ours(str(path))], vectors)


def _holds_vectors_alone(file: Path) -> bool:
    if file.suffix.lower() != ".parquet":
        return file.suffix.lower() in VECTOR_FILES
    columns = read_columns(file)
    return "vectors" in columns and "text" not in columns.values()


def _strays(path: Path, builder: DatasetBuilder, read: set[str]) -> list[str]:
    """Files of a folder that are none of `SUFFIXES` though like them, or that `datasets` would leave out."""
    wild = [file for file in read if Path(file).suffix.lower() not in SUFFIXES]
    strays = {file for file in wild if builder.name == "csv" or _is_like_ours(file)}
    card = path / "README.md"
    if not (card.is_file() and DatasetCard.load(card).data.get("configs")):  # else it says which files to read
        whole = str(path.resolve())
        listed = DataFilesDict.from_patterns(get_data_patterns(whole), base_path=whole)
        strays |= {file for files in listed.values() for file in files if file not in read and _is_like_ours(file)}
    return sorted(str(Path(file).relative_to(path.resolve())) for file in strays)


def _is_like_ours(file: str) -> bool:
    named = Path(file).stem.upper() not in ("README", "LICENSE")
    return named and any(suffix.lower() in SUFFIXES for suffix in Path(file).suffixes)


def _fetch(file: str) -> Path:
    """A file of a data set here, downloaded if it is on the Hub."""
    if not file.startswith("hf://"):
        return Path(file)
    place: Any = HfFileSystem().resolve_path(file)
    return Path(hf_hub_download(place.repo_id, place.path_in_repo, repo_type="dataset", revision=place.revision))


def _load_saved(dataset: str, path: Path, streaming: bool) -> Splits:
    try:
        saved = load_from_disk(str(path))
    except (DatasetsError, pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"`dataset` must be intact, got {dataset!r}, saved by `save_to_disk` and damaged ({first_line(error)})."
        ) from error
    saved = saved if isinstance(saved, DatasetDict) else DatasetDict({"train": saved})
    if streaming:
        return IterableDatasetDict({name: split.to_iterable_dataset() for name, split in saved.items()})
    return saved


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Have `datasets` look into its cache alone."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def _one_line(dataset: str, name: str, config_name: str | None) -> Iterator[None]:
    """Say in one line why `datasets` cannot read a data set."""
    try:
        yield
    except (DatasetsError, pa.ArrowException, OSError, ValueError, RuntimeError, KeyError) as error:
        text = str(error)
        if "scripts are no longer supported" in text:
            raise ValueError(
                f"`dataset` must hold data files, got {dataset!r} with a loading script, which `datasets` does not "
                "run; remove the script if the files lie beside it, else convert them to .parquet or .csv."
            ) from error
        if text.startswith(("Config name is missing", "BuilderConfig")):
            names = get_dataset_config_names(name)
            raise ValueError(
                f"`dataset_config_name` must be one of {names} for {dataset!r}, got {config_name!r}; name one."
            ) from error
        near = "" if Path(name).exists() else f"; {advise(str(Path(dataset).expanduser()))}"
        raise ValueError(
            f"`dataset` must be {_KNOWN}, got {dataset!r}, which could not be read ({first_line(error)}){near}."
        ) from error


def first_line(error: BaseException) -> str:
    """What is wrong; `datasets` wraps the cause of what goes wrong while it reads."""
    error = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ is not None else error
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
