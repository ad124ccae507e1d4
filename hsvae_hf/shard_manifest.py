"""The manifest of a folder of shards: which files are whole, with which rows, and what made them."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

MANIFEST = "manifest.json"
FORMATS = ("arrow", "parquet")
CONTENTS = ("codes", "vectors")
VERSION = 1  # of the manifest
Content: TypeAlias = Literal["codes", "vectors"]
SHARD_FILE = re.compile(r"part-\d{5,}\.(arrow|parquet)")  # of a shard
_NUMBERS = ("number", "first_row", "rows", "nonzeros", "empty", "rows_checksum", "bytes")


@dataclass(frozen=True)
class Shard:
    """A file of consecutive rows.

    Attributes:
        number: of the shard, from 0.
        first_row: number of its first row.
        rows: how many.
        nonzeros: of its codes; of vectors 0.
        empty: codes without a non-zero.
        rows_checksum: of what was encoded, CRC-32.
        bytes: of the file; 0 before it is written.
        sha256: of the file; empty before it is written.
        staged: its name until it is whole; None from then on.
    """

    number: int
    first_row: int
    rows: int
    nonzeros: int
    empty: int
    rows_checksum: int
    bytes: int = 0
    sha256: str = ""
    staged: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    Attributes:
        content: "codes" or "vectors".
        format: suffix of the files.
        width: numbers of a row: `latent_size` or `feature_size`.
        settings: the input, the model and the options that made it.
        shards: those that are whole, in order.
        complete: whether these are all.
    """

    content: str
    format: str
    width: int
    settings: dict[str, Any]
    shards: list[Shard] = field(default_factory=list)
    complete: bool = False

    def name(self, shard: Shard) -> str:
        """The file of a shard."""
        return file_name(shard.number, self.format)

    def with_shard(self, shard: Shard) -> "Manifest":
        """The same with another shard."""
        return replace(self, shards=sorted([*self.shards, shard], key=lambda one: one.number))


def file_name(number: int, form: str) -> str:
    """The file of a shard by its number."""
    return f"part-{number:05d}.{form}"


def parse_manifest(text: bytes) -> Manifest:
    """The manifest that was written as `text`.

    Raises:
        ValueError: saying what in it is no manifest of this version, or was changed.
    """
    try:
        content = json.loads(text)
        if (version := content.pop("version")) != VERSION:
            raise ValueError(f"version {version}, of another version of this package")
        entries = [{name: entry[name] for name in entry if name != "file"} for entry in content.pop("shards")]
        manifest = Manifest(**content, shards=[Shard(**entry) for entry in entries])
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it has other fields ({error})") from error
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    """Refuse fields of other kinds, and shards that do not follow each other: rows would be lost or counted twice."""
    kinds = isinstance(manifest.width, int) and isinstance(manifest.complete, bool)
    if not kinds or manifest.content not in CONTENTS or manifest.format not in FORMATS:
        raise ValueError("its content, format, width or complete is none")
    row, last = 0, -1
    for place, shard in enumerate(manifest.shards):
        numbers = [getattr(shard, name) for name in _NUMBERS]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"its shard {place} has numbers that are none")
        follows = (shard.number, shard.first_row) == (last + 1, row) if manifest.complete else shard.number > last
        if not follows:
            raise ValueError(f"its shards do not follow each other at {manifest.name(shard)}")
        row, last = row + shard.rows, shard.number


def vector_shards(sizes: Mapping[str, int], read: Callable[[], bytes], folder: str, argument: str) -> list[str] | None:
    """Files of a folder of shards of vectors in order, that of their rows; None of a folder of other files.

    Args:
        sizes: bytes of the files in the folder, by name.
        read: gives the content of `manifest.json` in it.
        folder: for errors.
        argument: that gave it, for errors.

    Raises:
        ValueError: if its shards are codes, are not all, or are not those of the manifest.
    """
    if MANIFEST not in sizes or not any(map(SHARD_FILE.fullmatch, sizes)):
        return None
    try:
        manifest = parse_manifest(read())
    except ValueError as error:
        raise ValueError(
            f"`{argument}` must hold a manifest of this package, got {folder!r} with a {MANIFEST} that is none: "
            f"{error}; make the folder anew, or remove that file to take all others as they are."
        ) from error
    if manifest.content != "vectors":
        raise ValueError(f"`{argument}` must hold vectors, got {folder!r} with codes; name what they were made of.")
    if not manifest.complete:
        raise ValueError(
            f"`{argument}` must be complete, got {folder!r} with {len(manifest.shards)} shards, unfinished; "
            f"{finishing(folder)}."
        )
    for shard in manifest.shards:
        if sizes.get(manifest.name(shard)) != shard.bytes:
            raise damage(folder, manifest.name(shard), argument)
    return [manifest.name(shard) for shard in manifest.shards]


def files_inside(
    folder: Path, suffixes: Collection[str], argument: str, above: tuple[Path, ...] = ()
) -> Iterator[Path]:
    """Files in a folder of this machine and in folders in it, by name; hidden ones are passed over, links are followed.

    Args:
        folder: of which, if it is one of shards of vectors, exactly those of its manifest are given.
        suffixes: in lower case, of the files.
        argument: that gave it, for errors.
        above: folders that it is in, for itself.

    Raises:
        ValueError: as `vector_shards`; for a link that leads nowhere, or to a folder that it is in.
    """
    above = (*above, folder.resolve())
    paths = sorted(folder.iterdir())
    sizes = {path.name: path.stat().st_size for path in paths if path.is_file()}
    shards = vector_shards(sizes, (folder / MANIFEST).read_bytes, str(folder), argument)
    if shards is not None:
        yield from (folder / name for name in shards)
        return
    for path in paths:
        if path.name.startswith(".") or path.name == MANIFEST:
            continue
        if path.is_dir():
            if path.resolve() in above:
                raise ValueError(
                    f"`{argument}` must be a folder without links to what it is in, got {str(path)!r}; remove it."
                )
            yield from files_inside(path, suffixes, argument, above)
        elif path.suffix.lower() in suffixes:
            if not path.is_file():
                raise ValueError(f"`{argument}` must be files that are there, got the link {str(path)!r}; remove it.")
            yield path


def finishing(location: str) -> str:
    """What makes the shards of a folder that are missing, for errors."""
    return (
        f"finish it by the `embed.py ... --output {location}` that began it, with `--resume` added, or by that "
        "`encode_corpus(...)` with `resume=True`"
    )


def damage(folder: str, name: str, argument: str) -> ValueError:
    """The error for a file that is not that of the manifest."""
    return ValueError(
        f"`{argument}` must hold the files of its {MANIFEST}, got {folder!r}, where {name} is missing or was changed; "
        f"{finishing(folder)}."
    )
