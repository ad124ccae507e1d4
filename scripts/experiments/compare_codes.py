r"""Codes of sentence vectors against those that others publish, on tasks that no system was trained on.

    python scripts/experiments/compare_codes.py --training_vectors general.npy --suite data/eval \
        --vectors_dir vectors --output_dir runs/codes

This makes the tables and figures of `model_cards/codes` from the finished runs in `output_dir`, and first the runs
that are not there yet. One HSVAE serves all budgets; each other system is trained for each. Runs of a second width
(`--width 2048`) go to a folder of their own in `output_dir` and to tables of their own.

    ... --homes stsb banking77 cranfield cisi

trains on rows of each of these tasks, without --training_vectors on them alone, and measures on all.

    python scripts/experiments/compare_codes.py --output_dir runs/codes --only_tables

makes tables and figures of what is finished. `embed_suite.py` makes the vectors, of static encoders too.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from code_figures import draw_by_cost, draw_by_length
from code_results import HOMES, read_results, summarise
from code_tables import markdown
from finished_runs import Runs
from own_variants import OWN, TARGET, VARIANTS, measured_systems
from peers import NAMES, UNTRAINED, train_peer

from hsvae_hf.cli import run
from hsvae_hf.command_line import choose, parse
from hsvae_hf.evaluation import MEASURES, EvaluationProtocol, TaskEvaluation
from hsvae_hf.evaluation_systems import System, baselines
from hsvae_hf.evaluation_tasks import Embed, find_tasks, frozen_encoder, load_tasks
from hsvae_hf.extras import require
from hsvae_hf.files import load_vectors, staged_folder

BASELINES = "baselines"
DETERMINED = (BASELINES, "PCA", "PCA-largest")  # one run says all
HOME_ROWS = 10_000  # of a task that is trained on


@dataclass(kw_only=True)
class CodesArguments:
    """What to compare, on what."""

    output_dir: str = field(metadata={"help": "Folder of tables, figures and runs; finished runs are kept."})
    training_vectors: str | None = field(
        default=None, metadata={"help": "File of vectors that all systems are trained on."}
    )
    suite: str | None = field(default=None, metadata={"help": "Folder of the tasks."})
    encoder_name_or_path: str | None = field(default=None, metadata={"help": "Frozen sentence encoder."})
    vectors_dir: str | None = field(default=None, metadata={"help": "Folder of vectors, TASK-PART.npy, instead."})
    tasks: list[str] | None = field(default=None, metadata={"help": "Which; else all that are found."})
    split: str = field(default="test", metadata={"help": "validation, to choose settings; or test."})
    systems: list[str] = field(
        default_factory=lambda: [OWN, *(name for name in NAMES if name not in UNTRAINED), BASELINES],
        metadata={"help": f"Which; beside those of the default {', '.join(name for name in VARIANTS if name != OWN)}."},
    )
    homes: list[str] = field(
        default_factory=list, metadata={"help": "Tasks whose training rows are trained on, one after the other."}
    )
    only_tables: bool = field(default=False, metadata={"help": "Tables and figures of the finished runs, no run."})
    width: int = field(default=512, metadata={"help": "Dimensions of the codes."})
    active_dims: list[int] = field(default_factory=lambda: [2, 4, 8, 16, 32, 64], metadata={"help": "Budgets."})
    bytes_per_code: list[int] = field(
        default_factory=lambda: [16, 32, 48, 96], metadata={"help": "Budgets of bytes, of HSVAE by its defaults."}
    )
    seeds: int = field(default=3, metadata={"help": "Runs of each."})
    max_steps: int = field(default=1500, metadata={"help": "Training steps of 256 rows."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Rows to train on."})
    measures: list[str] = field(default_factory=lambda: ["neighbours", "knn"], metadata={"help": "Of the codes."})


@dataclass(frozen=True)
class Suite:
    """The tasks, each with all measures, and without the slowest, logistic regression, whose table is at `TARGET`."""

    tasks: Sequence[TaskEvaluation]
    without_probe: Sequence[TaskEvaluation]

    @classmethod
    def load(cls, options: CodesArguments, embed: Embed | None) -> "Suite":
        """All tasks of the options."""
        loaded = list(load_tasks(str(options.suite), embed, options.vectors_dir, options.tasks, options.split))
        measures = [measure for measure in options.measures if measure != "logistic"]
        return cls(
            *([TaskEvaluation(task, protocol_of(names)) for task in loaded] for names in (options.measures, measures))
        )

    def rows(self, system: System) -> list[dict[str, Any]]:
        """What is measured of a system, on every task."""
        tasks = self.tasks if system.budget.get("active_dims", TARGET) == TARGET else self.without_probe
        return [task.row(system) for task in tasks]


def protocol_of(measures: Sequence[str]) -> EvaluationProtocol:
    """What is measured beside retrieval and similarity."""
    return EvaluationProtocol(measures=measures, query_active_dims=(32,), scorings=("cosine", "asymmetric"))


def one_run(
    suite: Suite, name: str, vectors: np.ndarray, options: CodesArguments, budget: int, seed: int
) -> dict[str, Any]:
    """Train, measure on every task; a `budget` of 0 is a model for all of them."""
    wanted = budget or TARGET
    settings = VARIANTS[name].options(options.width, wanted) if name in VARIANTS else {}
    peer = train_peer(
        name.partition("-")[0] if name in VARIANTS else name,
        vectors,
        options.width,
        wanted,
        seed,
        options.max_steps,
        **settings,
    )
    if name in VARIANTS:
        budgets = [budget] if budget else options.active_dims
        systems = list(measured_systems(name, peer, vectors, budgets, options.bytes_per_code))
    else:
        systems = [System(name, {"active_dims": budget}, peer)]
    rows = [row for system in systems for row in suite.rows(system)]
    return {"system": name, "seed": seed, "training_seconds": peer.seconds, "rows": rows}


def baseline_run(suite: Suite, vectors: np.ndarray, options: CodesArguments) -> dict[str, Any]:
    """What needs no training, fitted on the training vectors; and words."""
    rows = [row for task in suite.tasks for row in task.text_rows()]
    rows += [row for system in baselines(vectors, options.active_dims) for row in suite.rows(system)]
    return {"system": BASELINES, "seed": 0, "training_seconds": 0.0, "rows": rows}


def fingerprint(vectors: np.ndarray) -> str:
    """What tells vectors from others, and is the same on a machine that rounds in another way.

    >>> fingerprint(np.array([[0.1, 0.9], [0.8, 0.2]]))
    '1 0'
    """
    return " ".join(map(str, np.abs(vectors[:8]).argmax(axis=1).tolist()))


def make_runs(options: CodesArguments, suite: Suite, vectors: np.ndarray, folder: Path) -> None:
    """Every run that is not finished, each to a file in `folder/runs`."""
    runs = Runs(folder)
    settings = {"rows": len(vectors), "vectors": fingerprint(vectors), "split": options.split}
    settings |= {
        "tasks": [task.task.name for task in suite.tasks],
        "width": options.width,
        "max_steps": options.max_steps,
    }
    settings |= {"measures": list(options.measures)}
    for seed in range(1, options.seeds + 1):
        for name in options.systems:
            if name in DETERMINED and seed > 1:
                continue
            if name == BASELINES:
                make: Callable[[], dict[str, Any]] = partial(baseline_run, suite, vectors, options)
                runs.result(BASELINES, make, settings)
                continue
            for budget in [0] if name in VARIANTS and not VARIANTS[name].each else options.active_dims:
                make = partial(one_run, suite, name, vectors, options, budget, seed)
                runs.result(f"{name}-{budget}-{seed}", make, settings)


def folder_of_width(output_dir: Path, width: int) -> Path:
    """Where runs of a width go: to the folder itself if its runs have it or there are none, else to one inside."""
    settings = Runs(output_dir).check({})
    return output_dir if settings.get("width", width) == width else output_dir / f"width-{width}"


def home_vectors(name: str, options: CodesArguments, embed: Embed | None) -> np.ndarray:
    """Rows of a task to train on, `(at most HOME_ROWS, size)`, drawn at random, none of them of its test split.

    They are those of NAME-train.npy if there is one; else the classification set's training rows, the pairs of the
    validation split, or the documents.
    """
    path = Path(options.vectors_dir or "") / f"{name}-train.npy"
    if options.vectors_dir is not None and path.exists():
        vectors = load_vectors(path)
    else:
        (task,) = load_tasks(
            str(options.suite), embed, options.vectors_dir, [name], "validation", max_train_samples=None
        )
        vectors = task.training
    chosen = np.random.default_rng(0).permutation(len(vectors))[:HOME_ROWS]
    return np.asarray(vectors[chosen], dtype=np.float32)


def make_all_runs(options: CodesArguments) -> None:
    """Those on the training vectors, and those on each of the homes."""
    embed = None if options.encoder_name_or_path is None else frozen_encoder(options.encoder_name_or_path)
    suite = Suite.load(options, embed)
    folder = folder_of_width(Path(options.output_dir), options.width)
    if options.training_vectors is not None:
        vectors = load_vectors(options.training_vectors)[: options.max_train_samples]
        make_runs(options, suite, np.asarray(vectors, dtype=np.float32), folder)
    systems = ["PCA-largest" if name == BASELINES else name for name in options.systems]  # the one that is compared
    at_target = replace(options, active_dims=[TARGET], bytes_per_code=[], systems=systems)
    for home in options.homes:
        make_runs(at_target, suite, home_vectors(home, options, embed), folder / HOMES / home)


def check(options: CodesArguments) -> None:
    """Refuse what cannot be, before anything is loaded.

    Raises:
        ValueError: naming the option.
    """
    known = [*VARIANTS, *NAMES, BASELINES]
    options.systems = [choose("systems", system, known, rule="of") for system in options.systems]
    options.measures = [choose("measures", measure, MEASURES, rule="of") for measure in options.measures]
    if options.seeds < 1 or not 0 < min(options.active_dims) <= max(options.active_dims) <= options.width:
        raise ValueError(f"`active_dims` must be from 1 to {options.width}, and `seeds` at least 1; choose such.")
    if options.suite is None:
        raise ValueError("`suite` must be given, the folder of the tasks; or add --only_tables.")
    if (options.encoder_name_or_path is None) == (options.vectors_dir is None):
        raise ValueError("Give exactly one of `encoder_name_or_path` and `vectors_dir`: the vectors of the tasks.")
    if options.training_vectors is None and not options.homes:
        raise ValueError("`training_vectors` must be given without `homes`: what to train on; give one or both.")
    options.homes = [choose("homes", home, find_tasks(options.suite), rule="of") for home in options.homes]


def write_page(output_dir: str) -> str:
    """Tables and figures of the finished runs in a folder; the tables."""
    results = read_results(Path(output_dir))
    text = markdown(results)
    with staged_folder(output_dir) as folder:
        (folder / "codes.json").write_text(json.dumps(summarise(results.runs)) + "\n")
        (folder / "codes.md").write_text(text + "\n")
        draw_by_length(results.runs, folder / "codes.png")
        draw_by_cost(results.runs, folder / "codes-cost.png")
    return text


def main() -> None:
    """Train what is not there yet; write the tables and the figures."""
    options = parse(CodesArguments, __doc__.partition("\n")[0])
    require("matplotlib")
    if not options.only_tables:
        torch.set_flush_denormal(True)
        check(options)
        require("sklearn", *(["bm25s"] if BASELINES in options.systems else []), extra="eval")
        started = time.process_time()
        make_all_runs(options)
        print(f"runs: {time.process_time() - started:.0f} s of CPU time")
    print(write_page(options.output_dir))


if __name__ == "__main__":
    run(main)
