"""`encode_corpus`: codes, or vectors, of millions of rows, by one process, several, or several machines."""

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from hsvae_hf.code_shards import ShardedCodes, ShardedVectors, load_shards
from hsvae_hf.console import RowProgress
from hsvae_hf.corpus_input import Block, check_same_rows, corpus_input, listed, other_rows
from hsvae_hf.files import claimed_folder
from hsvae_hf.input_checks import check_positive, check_switch
from hsvae_hf.shard_encoder import Job, Options, ShardEncoder, Task
from hsvae_hf.shard_files import ShardFolder
from hsvae_hf.shard_manifest import CONTENTS, FORMATS, Content, Manifest, Shard, finishing
from hsvae_hf.workers import in_processes

ENGINES = ("local", "ray")
SHARD_ROWS = 16_384  # an interruption costs so many rows of each process
_CHECKED_ROWS = 1000  # that are read before the model is loaded
_ARGUMENTS = {"files": "input"}  # of settings that have another name
_FREE = {"batch_size"}  # what may be another one when an interrupted call is gone on with


class Corpus(Protocol):
    """Rows, and the processes that encode them."""

    def described(self) -> dict[str, Any]:
        """What tells the input from others, fit for JSON."""

    def some(self, rows: int) -> Block:
        """The first rows, at most so many."""

    def shards(self, encoder: ShardEncoder, shard_rows: int, done: dict[int, Shard]) -> Iterator[Shard]:
        """Shards that are not done, as they are finished."""


class LocalCorpus:
    """Files of this machine, and its processes; see `encode_corpus`."""

    def __init__(self, places: Any, text_column: str | None, num_processes: int) -> None:
        self.input, self.num_processes = corpus_input(places, text_column), num_processes

    def described(self) -> dict[str, Any]:
        """Names and bytes of the files, and the column."""
        return {"files": self.input.described(), "text_column": self.input.column}

    def some(self, rows: int) -> Block:
        """The first rows, at most so many."""
        return self.input.some(rows)

    def shards(self, encoder: ShardEncoder, shard_rows: int, done: dict[int, Shard]) -> Iterator[Shard]:
        """Shards that are not done, as they are finished."""
        tasks = _tasks(self.input.blocks(shard_rows), done)
        if self.num_processes == 1:
            return map(encoder, tasks)
        job = replace(encoder.job, fingerprint=encoder.fingerprint)
        return in_processes(partial(ShardEncoder, job), tasks, self.num_processes)


def _tasks(blocks: Iterator[Block], done: dict[int, Shard]) -> Iterator[Task]:
    """Rows that are not encoded yet, a shard of them at a time.

    Raises:
        ValueError: if those that are were others.
    """
    first = count = 0
    for number, block in enumerate(blocks):
        found = done.get(number)
        if found is None:
            yield number, first, block
        else:
            check_same_rows(found, block)
        first, count = first + len(block), number + 1
    if any(number >= count for number in done):
        raise other_rows(first)


def encode_corpus(
    model_name_or_path: "str | os.PathLike[str]",
    input: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]",
    output: "str | os.PathLike[str]",
    *,
    content: Content = "codes",
    encoder_name_or_path: "str | os.PathLike[str] | None" = None,
    text_column: str | None = None,
    batch_size: int | None = None,
    max_active_dims: int | None = None,
    active_dims: int | None = None,
    prompt_name: str | None = None,
    normalize: bool = False,
    num_processes: int = 1,
    shard_rows: int = SHARD_ROWS,
    format: str | None = None,
    resume: bool = False,
    engine: str = "local",
    address: str | None = None,
    show_progress_bar: bool = False,
) -> ShardedCodes | ShardedVectors:
    """Encode files of any number of rows to a folder of shards, in memory that does not grow with them.

    A shard is a file of consecutive rows, whole or absent: `id`, the number of the row in the input, and `indices` and
    `values` of its code, or its `vectors`. `manifest.json` lists the shards with their checksums.

    Args:
        model_name_or_path: folder or Hub id of a model of this package; for vectors, of any text encoder.
        input: files, and folders of them: sentences as in `read_sentences`; or vectors, `.npy`, or the column `vectors`
            or `embedding` of `.parquet` and `.arrow`. For Ray: `.parquet` files and folders of them, paths or URIs.
        output: a new or empty folder, not in one of the input; for Ray also a URI, such as `s3://bucket/codes`.
        content: "codes", or "vectors" of the text encoder, which `hsvae_hf.fit` trains on.
        encoder_name_or_path: folder or Hub id of the text encoder whose vectors the model takes, to go from sentences
            to codes at once; None for a model that reads text, and for vectors.
        text_column: column of the sentences, if not found by name.
        batch_size: rows per forward pass; else chosen by their length.
        max_active_dims: of codes, as in `encode`.
        active_dims: of codes, as in `encode`.
        prompt_name: as in `encode`.
        normalize: of codes, as in `encode`.
        num_processes: that encode, each with a model of its own. They change nothing in the result but its rounding.
        shard_rows: rows of a shard. An interruption costs at most so many for each process.
        format: "arrow", which `load_codes` maps into memory, or "parquet", which more programs read. None is "arrow";
            with Ray "parquet".
        resume: go on where an interrupted call with the same arguments ended, and make files again that are missing or
            were changed. Another number of processes and another batch size are allowed.
        engine: "local", or "ray" for more than one machine (extra `ray`).
        address: of a Ray cluster, "auto" for the one of this machine; None starts one here.
        show_progress_bar: whether to show one; where nobody watches, a line each half a minute.

    Returns:
        The view of `load_codes`; for vectors of `hsvae_hf.code_shards.load_shards`.

    Raises:
        ImportError: without the extra `ray`, if it is asked for.
        ValueError: if an argument is out of range, does not fit the model, or is not that of the call to go on with; if
            the folder holds something else; if a file is damaged.
    """
    check_positive(batch_size=batch_size, max_active_dims=max_active_dims, active_dims=active_dims)
    check_positive(num_processes=num_processes, shard_rows=shard_rows)
    check_switch(normalize=normalize, resume=resume)
    form = ("parquet" if engine == "ray" else "arrow") if format is None else format
    for name, choice, allowed in (
        ("engine", engine, ENGINES),
        ("content", content, CONTENTS),
        ("format", form, FORMATS),
    ):
        if choice not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {choice!r}; choose one.")
    of_codes = {"max_active_dims": max_active_dims, "active_dims": active_dims, "normalize": normalize or None}
    for option, given, what in (
        *((name, number if content == "vectors" else None, "vectors") for name, number in of_codes.items()),
        ("address", address if engine == "local" else None, "the engine 'local'"),
    ):
        if given is not None:
            raise ValueError(f"`{option}` must be left out for {what}, got {given!r}; it would change nothing.")
    options = Options(content, batch_size, max_active_dims, active_dims, prompt_name, normalize)
    if content == "vectors" and encoder_name_or_path is not None:
        raise ValueError(
            "`encoder_name_or_path` must be left out for vectors, got one; name that encoder as `model_name_or_path`."
        )
    encoder = None if encoder_name_or_path is None else _from_anywhere(encoder_name_or_path)
    place = ShardFolder(output, "output")
    _check_apart(place, input)
    location = place.path if place.local else place.location
    job = Job(_from_anywhere(model_name_or_path), location, form, options, encoder)
    corpus: Corpus
    if engine == "ray":
        from hsvae_hf.ray_corpora import RayCorpus

        corpus = RayCorpus(input, text_column, num_processes, address)
    elif place.local:
        corpus = LocalCorpus(input, text_column, num_processes)
    else:
        raise ValueError(f"`output` must be a folder of this machine, got {place.location!r}; take `engine='ray'`.")
    with claimed_folder(place.path, "output") if place.local else nullcontext():
        _encode(job, corpus, place, shard_rows, resume, show_progress_bar)
    return load_shards(output)


def _from_anywhere(name_or_path: "str | os.PathLike[str]") -> str:
    """The name of a model, as it is known from any folder: other processes may work in another one."""
    source = os.fspath(name_or_path)
    return os.path.abspath(source) if Path(source).exists() else source


def _encode(
    job: Job, corpus: Corpus, place: ShardFolder, shard_rows: int, resume: bool, show_progress_bar: bool
) -> None:
    """Write what is missing in the folder, and its manifest after each shard."""
    before = _before(place, resume)
    rows = corpus.some(min(shard_rows, _CHECKED_ROWS))
    encoder = ShardEncoder(job)
    encoder.check(rows)
    settings = {"model": encoder.fingerprint, "shard_rows": shard_rows, **asdict(job.options), **corpus.described()}
    manifest = Manifest(job.options.content, job.format, encoder.width, settings)
    if before is not None:
        _check_same(before, manifest)
        whole = [shard for shard in before.shards if place.is_whole(before, shard, content=True)]
        manifest = before if whole == before.shards else replace(before, shards=whole, complete=False)
    if manifest is not before:  # what was complete stays so, if it turns out that the input is another one
        place.write_manifest(manifest)
    place.remove_others(manifest)
    done = {shard.number: shard for shard in manifest.shards}
    rows_done = sum(shard.rows for shard in manifest.shards)
    with RowProgress("encode", done=rows_done, shown=show_progress_bar) as progress:
        for shard in corpus.shards(encoder, shard_rows, done):
            manifest = manifest.with_shard(place.finish(manifest, shard))
            place.write_manifest(manifest)
            progress.update(shard.rows)
    place.write_manifest(replace(manifest, complete=True))


def _check_apart(output: ShardFolder, input: Any) -> None:
    """Refuse an output among the files of the input: the next call would take it for more of them."""
    for place in listed(input):
        if output.is_within(place):
            raise ValueError(
                f"`output` must not be in a folder of `input`, got {output.location!r} in {place!r}; name another."
            )


def _before(place: ShardFolder, resume: bool) -> Manifest | None:
    """The manifest of an interrupted call.

    Raises:
        ValueError: if there is one and it is not to be gone on with, or the folder holds something else.
    """
    found = place.read_manifest()
    if found is not None and not found.shards and not found.complete:  # it failed before there was anything to keep
        return None
    if found is None and not place.is_empty():
        raise ValueError(f"`output` must be a new or empty folder, got {place.location!r} with files; name another.")
    if found is not None and not resume:
        state = "complete" if found.complete else "unfinished"
        raise ValueError(
            f"`output` must be a new or empty folder, got {place.location!r} with {len(found.shards)} shards, "
            f"{state}; {'' if found.complete else finishing(place.location) + '; or '}delete it, or name another."
        )
    return found


def _check_same(before: Manifest, now: Manifest) -> None:
    """Refuse to go on with another input, model or option."""
    old, new = ({"format": made.format, **made.settings} for made in (before, now))
    for name in new.keys() - _FREE:
        if name == "model" and old.get(name) != new[name]:
            raise ValueError(
                "`model_name_or_path` must be the model of before to resume, got one of other weights; name that one, "
                "or delete the output to begin anew."
            )
        if old.get(name) != new[name]:
            raise ValueError(
                f"`{_ARGUMENTS.get(name, name)}` must be that of before to resume, {_short(old.get(name))}, got "
                f"{_short(new[name])}; pass it again, or delete the output to begin anew."
            )


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
