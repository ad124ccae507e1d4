r"""Codes of sentence vectors against those that others publish, on tasks that no system was trained on.

    python scripts/experiments/compare_codes.py --training_vectors general.npy --suite data/eval \
        --vectors_dir vectors --output_dir runs/codes

This makes the table and the picture of `model_cards/codes`. One model of this package serves all budgets; each other
system is trained for each. Finished runs are kept.
"""

import json
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finished_runs import Runs
from peers import NAMES, train_peer
from pictures import lines, panels, powers_of_two
from tables import Spread, shown, spread, table

import hsvae_hf
from hsvae_hf.cli import run
from hsvae_hf.command_line import choose, parse
from hsvae_hf.evaluation import MAIN_SCORES, MEASURES, EvaluationProtocol, TaskEvaluation, model_systems
from hsvae_hf.evaluation_systems import System
from hsvae_hf.evaluation_tasks import Task, frozen_encoder, load_tasks
from hsvae_hf.extras import require
from hsvae_hf.files import load_vectors, staged_folder

OWN = "HSVAE"
BASELINES = "baselines"
WITHOUT_TRAINING = ("PCA-largest", "PCA", "Signs")  # which are among the baselines
SCORINGS = {"cosine": "symmetric", "asymmetric": "dense query"}


@dataclass(kw_only=True)
class CodesArguments:
    """What to compare, on what."""

    training_vectors: str = field(metadata={"help": "File of vectors that all systems are trained on."})
    suite: str = field(metadata={"help": "Folder of the tasks."})
    output_dir: str = field(metadata={"help": "Folder of table, figure and runs; finished runs are kept."})
    encoder_name_or_path: str | None = field(default=None, metadata={"help": "Frozen sentence encoder."})
    vectors_dir: str | None = field(default=None, metadata={"help": "Folder of vectors, TASK-PART.npy, instead."})
    tasks: list[str] | None = field(default=None, metadata={"help": "Which; else all that are found."})
    split: str = field(default="test", metadata={"help": "validation, to choose settings; or test."})
    systems: list[str] = field(
        default_factory=lambda: [OWN, *(name for name in NAMES if name not in WITHOUT_TRAINING), BASELINES],
        metadata={"help": "Which."},
    )
    width: int = field(default=512, metadata={"help": "Dimensions of the codes."})
    active_dims: list[int] = field(default_factory=lambda: [2, 4, 8, 16, 32, 64], metadata={"help": "Budgets."})
    seeds: int = field(default=3, metadata={"help": "Runs of each."})
    max_steps: int = field(default=1500, metadata={"help": "Training steps of 256 rows."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Rows to train on."})
    measures: list[str] = field(default_factory=lambda: ["neighbours", "knn"], metadata={"help": "Of the codes."})


def train_own(vectors: np.ndarray, options: CodesArguments, seed: int) -> Any:
    """A model of this package with the settings of `fit`; the last twentieth of the rows sets its threshold."""
    held_out = max(1, len(vectors) // 20)
    return hsvae_hf.fit(
        vectors[:-held_out],
        validation=vectors[-held_out:],
        latent_size=options.width,
        target_active_dims=16,
        max_steps=options.max_steps,
        eval_strategy="no",
        seed=seed,
        disable_tqdm=True,
    )


def systems_of(name: str, vectors: np.ndarray, options: CodesArguments, budget: int, seed: int) -> Iterator[System]:
    """What is measured of one run: our model at all budgets and by its own rule, another system at its budget."""
    if name == OWN:
        model = train_own(vectors, options, seed)
        yield from model_systems(model, vectors[-2000:], [*options.active_dims, None], (16, 32, 48, 96), name=OWN)
        return
    peer = train_peer(name, vectors, options.width, budget, seed, options.max_steps)
    yield System(name, {"active_dims": budget}, peer)


def one_run(
    tasks: list[TaskEvaluation], name: str, vectors: np.ndarray, options: CodesArguments, budget: int, seed: int
) -> dict[str, Any]:
    """Train, measure on every task."""
    started = time.process_time()
    systems = list(systems_of(name, vectors, options, budget, seed))
    seconds = time.process_time() - started
    rows = [task.row(system) for task in tasks for system in systems]
    return {"system": name, "seed": seed, "training_seconds": seconds, "rows": rows}


def baseline_run(tasks: list[TaskEvaluation], vectors: np.ndarray, options: CodesArguments) -> dict[str, Any]:
    """What needs no training, fitted on the training vectors; and words."""
    rows = [row for task in tasks for row in task.baseline_rows(vectors, options.active_dims)]
    return {"system": BASELINES, "seed": 0, "training_seconds": 0.0, "rows": rows}


def all_runs(options: CodesArguments, tasks: list[Task], vectors: np.ndarray) -> list[dict[str, Any]]:
    """The results of every run, from its file where it is finished."""
    protocol = EvaluationProtocol(measures=options.measures, query_active_dims=(32,))
    measured = [TaskEvaluation(task, protocol) for task in tasks]
    runs, results = Runs(options.output_dir), []
    settings = {"rows": len(vectors), "vectors": f"{zlib.crc32(vectors.tobytes()):08x}", "split": options.split}
    settings |= {"tasks": [task.name for task in tasks], "width": options.width, "max_steps": options.max_steps}
    settings |= {"measures": list(options.measures)}
    for seed in range(1, options.seeds + 1):
        for name in options.systems:
            if name == BASELINES:
                if seed == 1:
                    make: Callable[[], dict[str, Any]] = partial(baseline_run, measured, vectors, options)
                    results.append(runs.result(BASELINES, make, settings))
                continue
            for budget in [0] if name == OWN else options.active_dims:
                make = partial(one_run, measured, name, vectors, options, budget, seed)
                results.append(runs.result(f"{name}-{budget}-{seed}", make, settings))
    return results


def summarise(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each task, system and budget, with the spread of every score over the seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for row in result["rows"]:
            budget = {name: value for name, value in row["budget"].items() if name != "value_bits"}
            key = json.dumps([row["task"], row["system"], budget])
            numbers = {name: value for name, value in row["scores"].items() if value is not None}
            if "codes" in row:
                numbers["active_dims"] = row["codes"]["active_dims"]
            groups.setdefault(key, []).append(row | {"numbers": numbers | {"seconds": result["training_seconds"]}})
    summary = []
    for rows in groups.values():
        names = dict.fromkeys(name for row in rows for name in row["numbers"])
        scores = {name: spread([row["numbers"] for row in rows], name) for name in names}
        head = {name: rows[0][name] for name in ("task", "kind", "system", "budget")}
        summary.append(head | {"seeds": len(rows), "scores": scores})
    return summary


def main_score(row: dict[str, Any], scoring: str) -> Spread | None:
    """The score that a kind of task is judged by."""
    found: Spread | None = row["scores"].get(f"{scoring}_{MAIN_SCORES[row['kind']]}")
    return found


def markdown(summary: list[dict[str, Any]]) -> str:
    """For each task a table: systems down, budgets across, symmetric / dense query."""
    parts = []
    for task in dict.fromkeys(row["task"] for row in summary):
        rows = [row for row in summary if row["task"] == task]
        for title, pick in (("main score", main_score), ("neighbours kept", _neighbours)):
            lines_of: dict[str, dict[str, str]] = {}
            for row in rows:
                budget = ", ".join(f"{value} {name.split('_')[0]}" for name, value in row["budget"].items()) or "own"
                values = [pick(row, scoring) for scoring in SCORINGS]
                if values[0] is None:
                    values[0] = row["scores"].get(f"dot_{MAIN_SCORES[row['kind']]}") if pick is main_score else None
                if any(values):
                    cell = " / ".join(shown(value) for value in values if value is not None)
                    lines_of.setdefault(row["system"], {"system": row["system"]})[budget] = cell
            if lines_of:
                parts.append(f"### {task}: {title}\n\n{table(list(lines_of.values()))}\n")
    return "\n".join(parts)


def _neighbours(row: dict[str, Any], scoring: str) -> Spread | None:
    found: Spread | None = row["scores"].get(f"{scoring}_neighbours@10")
    return found


def share_of_dense(summary: list[dict[str, Any]], scoring: str) -> list[dict[str, Any]]:
    """The main score over that of the dense vectors, on average over tasks, for each system and number of non-zeros."""
    dense = {row["task"]: main_score(row, "cosine") for row in summary if row["system"] == "dense"}
    shares: dict[tuple[str, int], list[Spread]] = {}
    for row in summary:
        value, whole, budget = main_score(row, scoring), dense.get(row["task"]), row["budget"].get("active_dims")
        if value is not None and whole is not None and budget is not None and "bytes" not in row["budget"]:
            part = Spread(value.mean / whole.mean, (value.std or 0.0) / whole.mean)
            shares.setdefault((row["system"], budget), []).append(part)
    return [
        {"system": system, "place": budget, "share": Spread(*np.mean(parts, axis=0))}
        for (system, budget), parts in sorted(shares.items(), key=lambda item: (item[0][0] != OWN, item[0]))
        if len(parts) == len(dense)
    ]


def draw(summary: list[dict[str, Any]], path: Path) -> None:
    """Share of the dense score by number of non-zeros, symmetric and with a dense query."""
    figure, (axes,) = panels(1, 2, sharey=True)
    for axis, (scoring, title) in zip(axes, SCORINGS.items(), strict=True):
        lines(axis, share_of_dense(summary, scoring), "system", "place", "share")
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set(xlabel="non-zeros per sentence", title=title)
        powers_of_two(axis, "x")
    axes[0].set_ylabel("share of the dense score, mean over tasks")
    axes[1].legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train what is not there yet; write the table and the figure."""
    options = parse(CodesArguments, __doc__.partition("\n")[0])
    require("matplotlib", "sklearn", "bm25s", extra="eval")
    torch.set_flush_denormal(True)
    known = [OWN, *NAMES, BASELINES]
    options.systems = [choose("systems", system, known, rule="of") for system in options.systems]
    options.measures = [choose("measures", measure, MEASURES, rule="of") for measure in options.measures]
    if options.seeds < 1 or not 0 < min(options.active_dims) <= max(options.active_dims) <= options.width:
        raise ValueError(f"`active_dims` must be from 1 to {options.width}, and `seeds` at least 1; choose such.")
    if (options.encoder_name_or_path is None) == (options.vectors_dir is None):
        raise ValueError("Give exactly one of `encoder_name_or_path` and `vectors_dir`: the vectors of the tasks.")
    embed = None if options.encoder_name_or_path is None else frozen_encoder(options.encoder_name_or_path)
    tasks = load_tasks(options.suite, embed, options.vectors_dir, options.tasks, options.split)
    vectors = load_vectors(options.training_vectors)[: options.max_train_samples]
    summary = summarise(all_runs(options, list(tasks), np.asarray(vectors, dtype=np.float32)))
    with staged_folder(options.output_dir) as folder:
        (folder / "codes.json").write_text(json.dumps(summary) + "\n")
        (folder / "codes.md").write_text(markdown(summary) + "\n")
        draw(summary, folder / "codes.png")
    print(markdown(summary))


if __name__ == "__main__":
    run(main)
