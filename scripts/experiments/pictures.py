"""Pictures of experiments: points, lines and heat maps, with deviations over seeds.

Colours are those of Okabe and Ito, which the colour-blind tell apart; marks differ too, for prints without colour.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tables import Spread

from hsvae_hf.plots import new_figure

STYLES = (  # colour, mark
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
    ("#777777", "*"),
)


def panels(rows: int, columns: int, width: float = 4.2, height: float = 2.8, **sharing: Any) -> tuple[Any, Any]:
    """A figure and its axes, an array `(rows, columns)`; `width` and `height` of a panel in inches."""
    figure = new_figure(figsize=(1 + width * columns, 0.6 + height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **sharing)


def error_bars(values: Iterable[Spread]) -> tuple[list[float], list[float]]:
    """Means, and the lengths of their error bars."""
    means, deviations = zip(*values, strict=True)
    return list(means), [deviation or 0.0 for deviation in deviations]


def points(axis: Any, names: Sequence[str], series: dict[str, Sequence[Spread | None]], reference: str = "") -> None:
    """A line for each name, from the top, with a point for each series that has a value there.

    Args:
        axis: of matplotlib.
        names: at the left.
        series: by label, a value for each name. Those of one name stand a little apart.
        reference: one of the names; its values are lines through the panel too, in the colours of their series.
    """
    series = {label: values for label, values in series.items() if any(values)}
    for index, (label, values) in enumerate(series.items()):
        shift = 0.2 * (index - (len(series) - 1) / 2)
        found = {place + shift: value for place, value in enumerate(values) if value is not None}
        means, deviations = error_bars(found.values())
        colour, mark = STYLES[index]
        style = {"color": colour, "fmt": mark, "markersize": 4, "elinewidth": 1, "capsize": 2}
        axis.errorbar(means, list(found), xerr=deviations if any(deviations) else None, label=label, **style)
        if reference in names and (value := values[names.index(reference)]) is not None:
            axis.axvline(value.mean, color=colour, linewidth=0.8, linestyle=":", zorder=0)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="y", alpha=0.25, linewidth=0.5)


def lines(axis: Any, rows: Sequence[dict[str, Any]], label: str, x: str, y: str) -> None:
    """A line with error bars for each `label` of the rows, whose values `y` are spreads."""
    for index, name in enumerate(dict.fromkeys(row[label] for row in rows)):
        line = [row for row in rows if row[label] == name]
        means, deviations = error_bars(row[y] for row in line)
        colour, mark = STYLES[index % len(STYLES)]
        style = {"color": colour, "marker": mark, "markersize": 4, "linewidth": 1.2, "capsize": 2}
        axis.errorbar([row[x] for row in line], means, deviations, label=name, **style)
    axis.grid(alpha=0.25, linewidth=0.5)


def level(axis: Any, value: float, text: str, side: str) -> None:
    """A horizontal line that says what it is, above its end at the `left` or the `right`."""
    axis.axhline(value, color="black", linewidth=0.8, linestyle="--", zorder=0)
    place = (0.01 if side == "left" else 0.99, value)
    axis.annotate(text, place, xycoords=("axes fraction", "data"), ha=side, va="bottom", fontsize=7)


def one_legend(figure: Any, axes: np.ndarray, title: str | None = None) -> None:
    """The entries of all panels, each once, beside them."""
    entries = {
        text: handle for axis in axes.flat for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    style = {"loc": "outside right center", "fontsize": 8, "frameon": False}
    figure.legend(list(entries.values()), list(entries), title=title, **style)


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
