"""Mean and deviation over seeds, and tables of them in Markdown."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Number of a run: its name in tables, and its digits there.
MEASURES: dict[str, tuple[str, int]] = {
    "accuracy": ("accuracy", 3),
    "accuracy_code": ("code", 3),
    "accuracy_gate": ("gate", 3),
    "accuracy_samples": ("draw", 3),
    "average_hoyer_samples": ("AH, samples", 3),
    "average_hoyer_posterior_means": ("AH, means", 3),
    "threshold": ("threshold", 2),
    "active_dims": ("active", 2),
    "gate_std": ("std", 3),
    "switching_fraction": ("switch", 2),
    "dead_dims": ("dead", 0),
    "always_on_dims": ("always on", 0),
    "mutual_information": ("MI", 2),
    "neighbours_kept": ("neighbours kept", 3),
    "squared_error": ("squared error", 3),
    "reconstruction_loss": ("nats", 1),
}
NOTES = """Mean and deviation over the seeds. `accuracy` is that of the K = 5 classifier, or of a model that trains with
labels; `code`, `gate` and `draw` that of a linear probe on the code, on its binarised gates and on one draw. AH is
Average Hoyer, which does not compare across numbers of dimensions. `active` are the non-zeros of a code, `std` is that
of a gate over sentences, `switch` the share of the dimensions that are on for 5% to 95% of the sentences. MI is mutual
information, `nats` the reconstruction of a sentence."""


class Spread(NamedTuple):
    """Mean and sample deviation over the seeds; there is no deviation of one seed."""

    mean: float
    std: float | None = None


def spread(runs: Sequence[dict[str, Any]], name: str) -> Spread | None:
    """Of a number of the runs; None if they have no such number."""
    values = [run[name] for run in runs if name in run]
    if not values:
        return None
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def spreads(runs: Sequence[dict[str, Any]], names: Iterable[str] = MEASURES) -> dict[str, Any]:
    """Of several numbers, with the number of seeds."""
    return {"seeds": len(runs)} | {name: spread(runs, name) for name in names}


def shown(value: Spread | None, digits: int = 3) -> str:
    """A cell of a table; a dash for what a system does not have.

    Example:
        >>> shown(Spread(0.5, 0.01))
        '0.500 ± 0.010'
    """
    if value is None:
        return "-"
    deviation = "" if value.std is None else f" ± {value.std:.{digits}f}"
    return f"{value.mean:.{digits}f}{deviation}"


def cells(row: dict[str, Any], names: Iterable[str] = MEASURES) -> dict[str, str]:
    """Some numbers of a row, by their names in tables; those that it has."""
    return {MEASURES[name][0]: shown(row[name], MEASURES[name][1]) for name in names if row.get(name) is not None}


def table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown; the keys of the rows are its head."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([row.get(name, "-") for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def side_by_side(
    rows: Sequence[dict[str, Any]], heads: Sequence[str], others: Callable[[dict[str, Any]], dict[str, str]]
) -> str:
    """Markdown; rows that agree in `heads` share a line, and `others` gives the other cells of a row."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        head = {name: "-" if row[name] is None else str(row[name]) for name in heads}
        lines.setdefault(tuple(head.values()), head).update(others(row))
    return table(list(lines.values()))
