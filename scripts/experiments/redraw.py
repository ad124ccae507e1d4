"""The pictures of figures, drawn again from their numbers, without a run.

    python scripts/experiments/redraw.py --path model_cards/reproduction/figure2.json

Each PNG goes beside its JSON.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from figures import accuracy_and_hoyer, draw_figure3
from finished_runs import read_json
from studies import draw_dial, draw_gates, draw_nonzeros
from tables import Spread

from hsvae_hf.cli import run
from hsvae_hf.command_line import parse
from hsvae_hf.files import staged_file

DRAW: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "figure2": accuracy_and_hoyer,
    "figure3": draw_figure3,
    "gates": draw_gates,
    "dial": draw_dial,
    "nonzeros": draw_nonzeros,
}


@dataclass
class RedrawArguments:
    """What to draw."""

    path: list[str] = field(metadata={"help": "JSON files that reproduce.py wrote."})


def redraw(path: Path) -> Path:
    """Draw one figure.

    Args:
        path: JSON of `reproduce.py`.

    Returns:
        The PNG.

    Raises:
        ValueError: if the file is not one, or of a figure that is not drawn again.
    """
    content = read_json(path, "path")
    figure = content.get("settings", {}).get("figure")
    if figure not in DRAW:
        raise ValueError(f"`path` must be the JSON of {', '.join(DRAW)}, got {str(path)!r}; name another.")
    rows = [{name: _spread(value) for name, value in row.items()} for row in content["numbers"]]
    picture = path.with_suffix(".png")
    with staged_file(picture) as unfinished:
        DRAW[figure](rows).savefig(unfinished, dpi=150, format="png")
    return picture


def _spread(value: Any) -> Any:
    """A mean and its deviation are a list of two numbers in JSON, the second null for one seed."""
    pair = isinstance(value, list) and len(value) == 2 and isinstance(value[0], float)
    return Spread(*value) if pair else value


def main() -> None:
    """Draw the figures that the command names."""
    for name in parse(RedrawArguments, __doc__.partition("\n")[0]).path:
        print(redraw(Path(name)))


if __name__ == "__main__":
    run(main)
