"""Folder of an index: segments, and a list of them, which names what is whole.

`index.json` is replaced in one step, after everything that it names is written. So readers see an index before a change
or after it. A build that was interrupted leaves `unfinished.json` in its place, for `resume`.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hsvae_hf.files import UNFINISHED, claimed_folder, write_json
from hsvae_hf.index_segments import Segment

INDEX, PARTIAL, SEGMENTS = "index.json", "unfinished.json", "segments"
FORMAT = 1  # of the files


@dataclass(frozen=True)
class Manifest:
    """Settings of an index; see `Index`."""

    similarity: str
    keep: str | None
    precision: str
    vector_precision: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class IndexFolder:
    """The files of an index.

    Attributes:
        path: of the folder.
        entries: of the segments that are written: `name`, `rows`, and `removed`, the name of a file or None.
    """

    path: Path
    entries: list[dict[str, Any]] | None = None

    @classmethod
    @contextmanager
    def claim(cls, folder: "str | os.PathLike[str]", name: str) -> "Iterator[IndexFolder]":
        """Write as the only process.

        Raises:
            ValueError: if another one writes there, or the folder holds something else than an index.
        """
        path = Path(folder)
        with claimed_folder(path, name):
            foreign = [part.name for part in path.iterdir() if part.name not in (INDEX, PARTIAL, SEGMENTS, UNFINISHED)]
            if foreign:
                raise ValueError(
                    f"`{name}` must be a folder of an index, got {str(path)!r} with {foreign[0]}; name another."
                )
            yield cls(path)

    def resumed(self, settings: Manifest, resume: bool) -> list[Segment]:
        """What an interrupted build has written.

        Raises:
            ValueError: if there is an index; if there is a build that is not to go on, or was made in another way.
        """
        if (self.path / INDEX).exists():
            raise ValueError(f"`folder` must be new or empty, got {str(self.path)!r} with an index; name another.")
        self.entries = []
        if not (self.path / PARTIAL).exists():
            shutil.rmtree(self.path / SEGMENTS, ignore_errors=True)  # not yet named in the list
            return []
        content = self._read(PARTIAL)
        rows = sum(entry["rows"] for entry in content["segments"])
        if not resume:
            raise ValueError(
                f"`folder` must be new or empty, got {str(self.path)!r} with {rows:,} rows of an interrupted build; "
                "pass resume=True to go on, or delete it."
            )
        if content["settings"] != asdict(settings):
            raise ValueError(f"`resume` needs the settings of before, {content['settings']}, got {asdict(settings)}.")
        self.entries = content["segments"]
        return self._segments(content["segments"])

    def add(self, segment: Segment, settings: Manifest) -> Segment:
        """Write a segment of a build; the same, mapped into memory."""
        entries = self.entries or []
        name = f"{len(entries):06}"
        shutil.rmtree(self._place(name), ignore_errors=True)  # of a process that ended before the list was written
        segment.save(self._place(name))
        self.entries = [*entries, {"name": name, "rows": len(segment), "removed": None}]
        self._write(PARTIAL, settings)
        return Segment.load(self._place(name))

    def finish(self, settings: Manifest) -> None:
        """Make an index of what was added."""
        self._write(INDEX, settings)
        (self.path / PARTIAL).unlink(missing_ok=True)

    def replace(self, segments: Sequence[Segment], settings: Manifest) -> list[Segment]:
        """Make an index of these segments; those that are in the folder already stay where they are.

        Returns:
            The same, mapped into memory.
        """
        self.entries = []
        for segment in segments:
            name = segment.folder.name if segment.folder and segment.folder.parent == self.path / SEGMENTS else None
            if name is None:
                name = uuid.uuid4().hex[:12]
                segment.save(self._place(name))
            removed = None
            if segment.removed.any():
                removed = f"removed-{uuid.uuid4().hex[:12]}.npy"
                np.save(self.path / SEGMENTS / removed, segment.removed)
            self.entries.append({"name": name, "rows": len(segment), "removed": removed})
        self._write(INDEX, settings)
        (self.path / PARTIAL).unlink(missing_ok=True)
        used = {entry[key] for entry in self.entries for key in ("name", "removed")}
        for part in (self.path / SEGMENTS).glob("*"):
            if part.name not in used:  # who has it open reads on
                shutil.rmtree(part) if part.is_dir() else part.unlink()
        return self._segments(self.entries)

    def load(self) -> tuple[Manifest, list[Segment]]:
        """Settings and segments.

        Raises:
            ValueError: if there is no whole index.
        """
        if not (self.path / INDEX).exists():
            state = "an unfinished one; go on with `resume`" if (self.path / PARTIAL).exists() else "none; build one"
            raise ValueError(f"`folder` must hold an index, got {str(self.path)!r} with {state}.")
        content = self._read(INDEX)
        return Manifest(**content["settings"]), self._segments(content["segments"])

    def _segments(self, entries: Sequence[dict[str, Any]]) -> list[Segment]:
        try:
            return [self._segment(entry) for entry in entries]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ValueError(
                f"`folder` must hold a whole index, got {str(self.path)!r}: {error}; build it again."
            ) from error

    def _segment(self, entry: dict[str, Any]) -> Segment:
        segment = Segment.load(self._place(entry["name"]))
        if len(segment) != entry["rows"]:
            raise ValueError(f"{entry['name']} has {len(segment)} rows in place of {entry['rows']}")
        if entry["removed"] is None:
            return segment
        return replace(segment, removed=np.load(self.path / SEGMENTS / entry["removed"], allow_pickle=False))

    def _place(self, name: str) -> Path:
        return self.path / SEGMENTS / name

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_text())
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']} of another version of this package")
            return content
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"`folder` must hold an index, got {str(self.path / name)!r}: {error}; build it again."
            ) from error

    def _write(self, name: str, settings: Manifest) -> None:
        write_json(
            self.path / name, {"format": FORMAT, "settings": asdict(settings), "segments": self.entries}, "folder"
        )
