"""Pictures of experiments: bars, lines and heat maps, with deviations over seeds."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tables import Spread

from hsvae_hf.plots import new_figure

MARKS = ("o-", "s--", "^:", "v-.", "D-", "x--", "*:", "P-.")
GREYS = ("0.15", "0.6", "0.85", "0.4")


def panels(rows: int, columns: int, width: float = 4.2, height: float = 2.8, **sharing: Any) -> tuple[Any, Any]:
    """A figure and its axes, an array `(rows, columns)`; `width` and `height` of a panel in inches."""
    figure = new_figure(figsize=(1 + width * columns, 0.6 + height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **sharing)


def error_bars(values: Iterable[Spread]) -> tuple[list[float], list[float]]:
    """Means, and the lengths of their error bars."""
    means, deviations = zip(*values, strict=True)
    return list(means), [deviation or 0.0 for deviation in deviations]


def bars(axis: Any, names: Sequence[str], series: dict[str, Sequence[Spread | None]]) -> None:
    """A group of bars for each name, a bar for each series that has a value there."""
    width = 0.8 / len(series)
    for index, (label, values) in enumerate(series.items()):
        shift = width * (index - (len(series) - 1) / 2)
        found = {place + shift: value for place, value in enumerate(values) if value is not None}
        if found:
            means, deviations = error_bars(found.values())
            axis.bar(list(found), means, width, yerr=deviations, color=GREYS[index], label=label, capsize=2)
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right")


def lines(axis: Any, rows: Sequence[dict[str, Any]], label: str, x: str, y: str) -> None:
    """A line with error bars for each `label` of the rows, whose values `y` are spreads."""
    for index, name in enumerate(dict.fromkeys(row[label] for row in rows)):
        line = [row for row in rows if row[label] == name]
        means, deviations = error_bars(row[y] for row in line)
        style = {"fmt": MARKS[index % len(MARKS)], "color": str(0.09 * (index % 8)), "markersize": 4}
        axis.errorbar([row[x] for row in line], means, deviations, label=name, linewidth=1, capsize=2, **style)


def powers_of_two(axis: Any, *sides: str) -> None:
    """Make the sides `x` and `y` of a picture logarithmic."""
    for side in sides:
        getattr(axis, f"set_{side}scale")("log", base=2)
        getattr(axis, f"{side}axis").set_major_formatter("{x:g}")


def heat_maps(images: dict[str, np.ndarray], names: Sequence[Sequence[str]], label: str, **options: Any) -> Any:
    """A figure of heat maps with one scale, and its axes.

    Args:
        images: by title.
        names: of the rows of each image.
        label: of the scale.
        options: of `imshow`.
    """
    figure, (axes,) = panels(1, len(images), height=3.4)
    for axis, rows, (title, image) in zip(axes, names, images.items(), strict=True):
        drawn = axis.imshow(image, interpolation="nearest", **options)
        axis.set_yticks(range(len(rows)), rows, fontsize=6)
        axis.set_title(title)
    figure.colorbar(drawn, ax=list(axes), label=label)
    return figure, axes
