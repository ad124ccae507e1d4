"""Finished runs of an experiment: a JSON file each, whole or absent, so that an interrupted experiment goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsvae_hf.files import write_json


class Runs:
    """The folder `runs` of an output folder. No run is repeated, and runs of other settings do not mix in."""

    def __init__(self, output_dir: str | Path) -> None:
        self.folder = Path(output_dir) / "runs"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def has(self, name: str) -> bool:
        """Whether a run is finished."""
        return self._path(name).is_file()

    def check(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings of the runs in the folder and these together.

        Raises:
            ValueError: if one differs.
        """
        kept = read_json(self._path("settings")) if self.has("settings") else {}
        for name, value in settings.items():
            if kept.get(name, value) != value:
                raise ValueError(
                    f"`{name}` must stay {kept[name]!r}, as in {str(self.folder.parent)!r}, got {value!r}; name "
                    "another output_dir."
                )
        return kept | settings

    def result(
        self, name: str, run: Callable[[], dict[str, Any]], settings: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The result of a run, from its file if it is there.

        Args:
            name: of the file.
            run: gives the result.
            settings: that must be the same for all runs in the folder, if the name does not say them all.
        """
        if not self.has(name):
            if settings is not None:
                write_json(self._path("settings"), self.check(settings))
            print(f"{name} ...", flush=True)
            write_json(self._path(name), run())
        return read_json(self._path(name))


def read_json(path: Path, argument: str = "output_dir") -> Any:
    """The content of a result file, which `argument` led to.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"`{argument}` must hold whole results, got {str(path)!r}: {error}; delete it.") from error
