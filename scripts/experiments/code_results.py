"""Finished runs of `compare_codes.py`, and what their rows say: a number by system, budget, seed and task."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from finished_runs import Runs, read_json
from tables import Spread, spread

from hsvae_hf.evaluation import MAIN_SCORES

Row: TypeAlias = dict[str, Any]
Run: TypeAlias = dict[str, Any]
Number: TypeAlias = Callable[[Row], float | None]

SCORINGS = {"cosine": "symmetric", "asymmetric": "dense query"}
HOMES = "homes"  # folder of runs that are trained on a task


class Place(NamedTuple):
    """A system and its budget: a number of non-zeros, `48 bytes`, or `own`, the model's own rule."""

    system: str
    budget: str


Numbers: TypeAlias = dict[Place, dict[int, dict[str, float]]]  # by seed and task


@dataclass(frozen=True)
class Results:
    """What is finished in a folder.

    Attributes:
        settings: that its runs share; empty where there is none.
        runs: trained on the training vectors.
        homes: trained on rows of a task, by its name.
        widths: results of other widths of codes.
    """

    settings: dict[str, Any]
    runs: list[Run]
    homes: dict[str, list[Run]]
    widths: list["Results"]


def read_results(folder: Path) -> Results:
    """The finished runs in a folder of `compare_codes.py`.

    Raises:
        ValueError: if there is none, or a file is damaged.
    """
    homes = {path.name: _read_runs(path) for path in sorted((folder / HOMES).glob("*")) if path.is_dir()}
    widths = [read_results(path) for path in sorted(folder.glob("width-*")) if _read_runs(path)]
    runs = _read_runs(folder)
    if not (runs or homes or widths):
        raise ValueError(f"`output_dir` must hold finished runs, got {str(folder)!r} without; leave out --only_tables.")
    settings = [Runs(place).check({}) for place in (folder, *((folder / HOMES / home) for home in homes))]
    return Results(next(filter(None, settings), {}), runs, homes, widths)


def _read_runs(folder: Path) -> list[Run]:
    paths = sorted((folder / "runs").glob("*.json"))
    return [read_json(path) for path in paths if path.stem != "settings"]


def place_of(row: Row) -> Place:
    """The system and budget of a row.

    >>> place_of({"system": "HSVAE", "budget": {"bytes": 48, "value_bits": 4, "active_dims": 27}})
    Place(system='HSVAE', budget='48 bytes')
    """
    budget = row["budget"]
    if "active_dims" in budget and "value_bits" not in budget:
        return Place(row["system"], str(budget["active_dims"]))
    return Place(row["system"], f"{budget['bytes']} bytes" if "bytes" in budget else "own")


def by_bytes(row: Row) -> Place | None:
    """The system and the bytes of a code, where they are known; signs and the first coordinates of PCA have both."""
    size = row["budget"].get("bytes")
    return None if size is None else Place(row["system"], str(size))


def collect(runs: Sequence[Run], number: Number, place_of: Callable[[Row], Place | None] = place_of) -> Numbers:
    """A number of every row that has it and a place."""
    found: Numbers = {}
    for run in runs:
        for row in run["rows"]:
            value, place = number(row), place_of(row)
            if value is not None and place is not None:
                found.setdefault(place, {}).setdefault(run["seed"], {})[row["task"]] = value
    return found


def task_score(scoring: str) -> Number:
    """The score that a kind of task is judged by; of words, which have dot products alone, by these."""

    def number(row: Row) -> float | None:
        scores, name = row["scores"], MAIN_SCORES[row["kind"]]
        value: float | None = scores.get(f"{scoring}_{name}")
        return scores.get(f"dot_{name}") if value is None and scoring == "cosine" else value

    return number


def neighbours(scoring: str) -> Number:
    """Share of the ten nearest rows by the dense vectors that are found again."""
    return lambda row: row["scores"].get(f"{scoring}_neighbours@10")


def logistic(scoring: str) -> Number:
    """Accuracy of logistic regression on the codes, which knows no scoring: it stands under the symmetric one."""
    return lambda row: row["scores"].get("logistic_accuracy") if scoring == "cosine" else None


def of_codes(name: str) -> Number:
    """One of the figures of `sparsity_scores`."""
    return lambda row: row.get("codes", {}).get(name)


def share_of_dense(runs: Sequence[Run], scoring: str, place_of: Callable[[Row], Place | None] = place_of) -> Numbers:
    """The main score over that of the dense vectors by cosine; nothing where these are not measured."""
    by_cosine = collect(runs, task_score("cosine"))
    dense = next((by_seed for place, by_seed in by_cosine.items() if place.system == "dense"), {})
    whole = next(iter(dense.values()), {})

    def number(row: Row) -> float | None:
        value = task_score(scoring)(row)
        return None if value is None or row["task"] not in whole else value / whole[row["task"]]

    return collect(runs, number, place_of)


def postings(runs: Sequence[Run]) -> Numbers:
    """Entries of an inverted index that a code touches as a query, for each document in it, expected.

    Where rows do not say how many documents there were (`pool_rows`), another row of the task does.
    """
    sizes = {row["task"]: row["pool_rows"] for run in runs for row in run["rows"] if "pool_rows" in row}

    def number(row: Row) -> float | None:
        touched, size = row["scores"].get("pool_postings"), sizes.get(row["task"])
        return None if touched is None or size is None else touched / size

    return collect(runs, number)


def over_tasks(numbers: Numbers) -> dict[Place, Spread]:
    """The mean over all tasks, and its spread over seeds; of what was measured on all of them."""
    tasks = {task for by_seed in numbers.values() for values in by_seed.values() for task in values}
    means = {
        place: [
            {"mean": float(np.mean(list(values.values())))} for values in by_seed.values() if values.keys() == tasks
        ]
        for place, by_seed in numbers.items()
    }
    return {place: value for place, runs in means.items() if (value := spread(runs, "mean")) is not None}


def of_task(numbers: Numbers, task: str) -> dict[Place, Spread]:
    """The spread over seeds on one task."""
    found = {
        place: [{"value": values[task]} for values in by_seed.values() if task in values]
        for place, by_seed in numbers.items()
    }
    return {place: value for place, runs in found.items() if (value := spread(runs, "value")) is not None}


def seconds(runs: Sequence[Run], budget: str) -> dict[str, Spread]:
    """CPU seconds of training, by system; of those that were trained for this budget, or for all."""
    found: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        budgets = {place_of(row).budget for row in run["rows"]}
        if run["training_seconds"] and budget in budgets:
            found.setdefault(run["system"], []).append({"seconds": run["training_seconds"]})
    return {name: value for name, times in found.items() if (value := spread(times, "seconds")) is not None}


def summarise(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each task, system and budget, with the spread of every score over the seeds; for JSON."""
    groups: dict[str, list[Row]] = {}
    for run in runs:
        for row in run["rows"]:
            numbers = {name: value for name, value in row["scores"].items() if value is not None}
            numbers |= {name: value for name, value in row.get("codes", {}).items() if isinstance(value, int | float)}
            key = json.dumps([row["task"], *place_of(row)])
            groups.setdefault(key, []).append(row | {"numbers": numbers | {"seconds": run["training_seconds"]}})
    summary = []
    for rows in groups.values():
        names = dict.fromkeys(name for row in rows for name in row["numbers"])
        scores = {name: spread([row["numbers"] for row in rows], name) for name in names}
        head = {name: rows[0][name] for name in ("task", "kind", "system", "budget")}
        summary.append(head | {"seeds": len(rows), "scores": scores})
    return summary
