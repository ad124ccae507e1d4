"""The two figures of the page of codes: quality by non-zeros, and by what a code costs in bytes and postings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from code_results import SCORINGS, Place, Run, by_bytes, over_tasks, postings, share_of_dense
from code_tables import label, ordered
from own_variants import OWN, VARIANTS
from pictures import error_bars, panels, powers_of_two
from tables import Spread

# Colour (Okabe and Ito: told apart by the colour-blind too), mark and line; the same in every figure.
STYLES: dict[str, tuple[str, str, str]] = {
    OWN: ("#D55E00", "o", "-"),
    "HSVAE-each": ("#D55E00", "o", ":"),
    "CSR": ("#0072B2", "s", "-"),
    "CSRv2": ("#56B4E9", "s", "--"),
    "TopK": ("#009E73", "^", "-"),
    "BatchTopK": ("#009E73", "v", "--"),
    "Matryoshka": ("#CC79A7", "D", "-"),
    "JumpReLU": ("#E69F00", "P", "-"),
    "VSC": ("#777777", "<", "-"),
    "SDLGM": ("#777777", ">", "--"),
    "PCA, largest": ("#000000", "x", ":"),
    "PCA": ("#000000", "+", "--"),
    "sign projections": ("#0072B2", "d", "-."),
    "sign bits": ("#56B4E9", "d", ""),
    "int8": ("#009E73", "*", ""),
}
DENSE_IN_LENGTHS = ("PCA", "sign projections")  # whose numbers are not zero: no place beside non-zeros
Points = Mapping[Place, tuple[float, Spread]]  # where a system stands at a budget: its cost, its share of dense


def curves(axis: Any, points: Points) -> None:
    """A line for each system, by cost, with error bars; ours on top and thicker; dense vectors at 1."""
    axis.axhline(1, color="black", linewidth=0.8)
    axis.annotate("dense", (0.01, 1), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    for system in ordered({place.system for place in points if place.system in STYLES}):
        line = sorted(value for place, value in points.items() if place.system == system)
        means, deviations = error_bars(value for _, value in line)
        colour, mark, dashes = STYLES[system]
        ours = system in VARIANTS
        style = {"color": colour, "marker": mark, "linestyle": dashes or "none", "markersize": 6 if ours else 5}
        style |= {"markerfacecolor": "white" if dashes == ":" else colour}
        style |= {"linewidth": 2.2 if ours else 1.1, "zorder": 3 if ours else 2, "capsize": 2}
        axis.errorbar([cost for cost, _ in line], means, deviations, label=label(system), **style)
    powers_of_two(axis, "x")
    axis.grid(alpha=0.25, linewidth=0.5)


def save(figure: Any, axes: Sequence[Any], path: Path) -> None:
    """With one legend for all panels, beside them."""
    entries = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    names = [label(system) for system in ordered(STYLES) if label(system) in entries]
    if names:
        handles = [entries[name] for name in names]
        figure.legend(handles, names, loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def by_non_zeros(runs: Sequence[Run], scoring: str) -> Points:
    """Shares of dense by the wanted number of non-zeros."""
    shares = over_tasks(share_of_dense(runs, scoring))
    return {
        place: (float(place.budget), value)
        for place, value in shares.items()
        if place.budget.isdecimal() and place.system not in DENSE_IN_LENGTHS
    }


def draw_by_length(runs: Sequence[Run], path: Path) -> None:
    """Share of the dense score by number of non-zeros, symmetric and with a dense query."""
    figure, (axes,) = panels(1, 2, height=3.6, sharey=True)
    for axis, (scoring, title) in zip(axes, SCORINGS.items(), strict=True):
        curves(axis, by_non_zeros(runs, scoring))
        axis.set(xlabel="non-zeros of a code", title=title)
    axes[0].set_ylabel("share of the dense score, mean over tasks")
    save(figure, axes, path)


def draw_by_cost(runs: Sequence[Run], path: Path) -> None:
    """Share of the dense score by bytes of a code, under both scorings, and by postings that a query touches."""
    figure, (axes,) = panels(1, 3, height=3.6, sharey=True)
    for axis, (scoring, title) in zip(axes, SCORINGS.items(), strict=False):
        shares = over_tasks(share_of_dense(runs, scoring, by_bytes))
        curves(axis, {place: (float(place.budget), value) for place, value in shares.items()})
        axis.set(xlabel="bytes of a code", title=title)
    touched = over_tasks(postings(runs))
    points = by_non_zeros(runs, "cosine")
    curves(axes[2], {place: (touched[place].mean, value) for place, (_, value) in points.items() if place in touched})
    axes[2].set(xlabel="postings that a query touches, per document", title="symmetric")
    axes[0].set_ylabel("share of the dense score, mean over tasks")
    save(figure, axes, path)
