"""Folder of an index: segments, and a list of them, which names what is whole.

`index.json` is replaced in one step, after everything that it names is written. So readers see an index before a change
or after it. Each version has a number of its own, so that nobody overwrites what he has not seen. A build that was
interrupted leaves `unfinished.json` in its place, for `resume`.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hsvae_hf.dimension_names import DimensionNames
from hsvae_hf.files import UNFINISHED, claimed_folder, write_json
from hsvae_hf.index_segments import Segment
from hsvae_hf.models.saving import DIMENSIONS_FILE

INDEX, PARTIAL, SEGMENTS = "index.json", "unfinished.json", "segments"
FORMAT = 1  # of the files
OWN = re.compile(r"[0-9a-f]{12}(\.unfinished)?|removed-[0-9a-f]{12}\.npy")  # names in the folder of segments


@dataclass(frozen=True)
class Manifest:
    """Settings of an index; see `Index`."""

    similarity: str
    keep: str | None
    precision: str
    vector_precision: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """What a list of segments says.

    Attributes:
        settings: of the index.
        segments: `name`, `rows`, and `removed`, the name of a file or None.
        next_id: of a row without an id of its own.
        generation: another one for every version.
        checksum: of the rows of a build.
    """

    settings: Manifest
    segments: list[dict[str, Any]] = field(default_factory=list)
    next_id: int = 0
    generation: str = field(default_factory=lambda: uuid.uuid4().hex)
    checksum: int = 0


@dataclass(frozen=True)
class IndexFolder:
    """The files of an index at `path`."""

    path: Path

    @classmethod
    @contextmanager
    def claim(cls, folder: "str | os.PathLike[str]") -> "Iterator[IndexFolder]":
        """Write as the only process.

        Raises:
            ValueError: if another one writes there, or the folder holds something else than an index.
        """
        path = Path(folder)
        with claimed_folder(path, "folder"):
            known = (INDEX, PARTIAL, SEGMENTS, UNFINISHED, DIMENSIONS_FILE)
            foreign = [part for part in path.iterdir() if part.name not in known]
            foreign += [part for part in (path / SEGMENTS).glob("*") if not OWN.fullmatch(part.name)]
            if foreign:
                raise ValueError(
                    f"`folder` must hold an index alone, got {str(path)!r} with {str(foreign[0].relative_to(path))!r}; "
                    "move that away, or name another folder."
                )
            yield cls(path)

    def generation(self) -> str | None:
        """Which version of an index is there; None if there is none."""
        return self._read(INDEX).generation if (self.path / INDEX).exists() else None

    def unfinished(self, settings: Manifest, resume: bool) -> Version:
        """What an interrupted build has written.

        Raises:
            ValueError: if there is an index; if there is a build that is not to go on, or was made in another way.
        """
        if (self.path / INDEX).exists():
            raise ValueError(f"`folder` must be new or empty, got {str(self.path)!r} with an index; name another.")
        if not (self.path / PARTIAL).exists():
            self._clean([])
            return Version(settings)
        found = self._read(PARTIAL)
        if not resume:
            rows = sum(entry["rows"] for entry in found.segments)
            raise ValueError(
                f"`folder` must be new or empty, got {str(self.path)!r} with {rows:,} rows of an interrupted build; "
                "pass resume=True to go on, or delete it."
            )
        if found.settings != settings:
            raise ValueError(
                f"`resume` needs the settings of before, {asdict(found.settings)}, got {asdict(settings)}; pass them."
            )
        return found

    def add(self, version: Version, segment: Segment, checksum: int, next_id: int) -> Version:
        """Write a segment of a build."""
        entry = {"name": self._write_segment(segment), "rows": len(segment), "removed": None}
        version = replace(version, segments=[*version.segments, entry], checksum=checksum, next_id=next_id)
        self._write(PARTIAL, version)
        return version

    def finish(self, version: Version) -> None:
        """Make an index of what was added."""
        self._write(INDEX, version)
        (self.path / PARTIAL).unlink(missing_ok=True)
        self._clean(version.segments)

    def replace(self, segments: Sequence[Segment], settings: Manifest, next_id: int) -> Version:
        """Make an index of these segments; those that are in the folder already stay where they are.

        Raises:
            ValueError: if an interrupted build is there.
        """
        if (self.path / PARTIAL).exists():
            raise ValueError(
                f"`folder` must be without an unfinished build, got {str(self.path)!r}; finish or delete it."
            )
        entries = []
        for segment in segments:
            place = segment.folder
            there = place is not None and place.parent == self.path / SEGMENTS and place.exists()
            name = place.name if place is not None and there else self._write_segment(segment)
            removed = None
            if segment.removed.any():
                removed = f"removed-{uuid.uuid4().hex[:12]}.npy"
                np.save(self.path / SEGMENTS / removed, segment.removed)
            entries.append({"name": name, "rows": len(segment), "removed": removed})
        version = Version(settings, entries, next_id)
        self._write(INDEX, version)
        self._clean(entries)
        return version

    def load(self) -> tuple[Version, list[Segment]]:
        """The version that is there, and its segments.

        Raises:
            ValueError: if there is no whole index.
        """
        if not (self.path / INDEX).exists():
            state = (
                f"an unfinished one; finish it by the `search.py index ... --index {self.path}` that began it, with "
                "`--resume` added, or by that `Index.build(...)` with `resume=True`"
            )
            state = state if (self.path / PARTIAL).exists() else "none; build one"
            raise ValueError(f"`folder` must hold an index, got {str(self.path)!r} with {state}.")
        version = self._read(INDEX)
        return version, self.segments(version)

    def names(self, latent_size: int) -> DimensionNames | None:
        """Names of dimensions that `DimensionNames.save` has put beside the index.

        Raises:
            ValueError: if they are of another number of dimensions.
        """
        if not (self.path / DIMENSIONS_FILE).exists():
            return None
        names = DimensionNames.load(self.path)
        if names.latent_size != latent_size:
            raise ValueError(
                f"`folder` must have names of its {latent_size} dimensions, got {str(self.path)!r} with names of "
                f"{names.latent_size}; name them again, or delete {DIMENSIONS_FILE}."
            )
        return names

    def segments(self, version: Version) -> list[Segment]:
        """The segments of a version, mapped into memory.

        Raises:
            ValueError: if one is damaged.
        """
        try:
            return [self._segment(entry) for entry in version.segments]
        except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
            raise ValueError(
                f"`folder` must hold a whole index, got {str(self.path)!r}: {error}; build it again."
            ) from error

    def _segment(self, entry: dict[str, Any]) -> Segment:
        segment = Segment.load(self._place(entry["name"]))
        if len(segment) != entry["rows"]:
            raise ValueError(f"{entry['name']} has {len(segment)} rows in place of {entry['rows']}")
        if entry["removed"] is None:
            return segment
        removed = np.load(self.path / SEGMENTS / entry["removed"], allow_pickle=False)
        if removed.shape != (len(segment),):
            raise ValueError(f"{entry['removed']} has {len(removed)} rows in place of {len(segment)}")
        return replace(segment, removed=removed.astype(bool))

    def _place(self, name: str) -> Path:
        return self.path / SEGMENTS / name

    def _write_segment(self, segment: Segment) -> str:
        name = uuid.uuid4().hex[:12]
        segment.save(self._place(name))
        return name

    def _clean(self, entries: Sequence[dict[str, Any]]) -> None:
        """Remove segments of before, and of writers that did not come to their end; who has one open reads on."""
        used = {entry[key] for entry in entries for key in ("name", "removed")}
        for part in (self.path / SEGMENTS).glob("*"):
            if part.name not in used:
                shutil.rmtree(part) if part.is_dir() else part.unlink()

    def _read(self, name: str) -> Version:
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
            if (found := content.pop("format")) != FORMAT:
                raise ValueError(f"format {found} of another version of this package")
            version = Version(**content | {"settings": Manifest(**content["settings"])})
            if not {"segments", "next_id", "generation"} <= content.keys() or not isinstance(version.generation, str):
                raise ValueError("a list without segments")
            names = [entry["name"] for entry in version.segments]
            if len(set(names)) < len(names) or not all(isinstance(entry["rows"], int) for entry in version.segments):
                raise ValueError("a list of segments that is none")
            return version
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"`folder` must hold an index, got {str(self.path / name)!r}: {error}; build it again."
            ) from error

    def _write(self, name: str, version: Version) -> None:
        write_json(self.path / name, {"format": FORMAT} | asdict(version), "folder")
