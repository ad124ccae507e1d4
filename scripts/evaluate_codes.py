"""Codes of models on tasks of retrieval, similarity and classification, at budgets of non-zeros and of bytes.

python scripts/evaluate_codes.py --model_name_or_path runs/codes --suite data/eval \
        --encoder_name_or_path sentence-transformers/all-MiniLM-L6-v2 --baselines --output report.json
"""

import before_imports  # noqa: F401 - first: see there

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForPreTraining

import hsvae_hf
from hsvae_hf.cli import run
from hsvae_hf.command_line import parse
from hsvae_hf.console import device_name, duration, finish, model_facts, say
from hsvae_hf.evaluation import (
    ACTIVE_DIMS,
    MEASURES,
    QUERY_ACTIVE_DIMS,
    EvaluationProtocol,
    TaskEvaluation,
    model_systems,
    table,
    usual_budgets,
)
from hsvae_hf.evaluation_checks import check_fits, check_systems, check_training
from hsvae_hf.evaluation_tasks import Embed, Task, frozen_encoder, load_tasks
from hsvae_hf.extras import require
from hsvae_hf.files import check_output, claimed_file, load_vectors, write_json
from hsvae_hf.input_checks import check_positive
from hsvae_hf.loading import load_for_inference


@dataclass(kw_only=True)
class EvaluateCodesArguments:
    """What to measure, on what."""

    suite: str = field(metadata={"help": "Folder of the tasks, each a folder of .parquet files."})
    output: str = field(metadata={"help": "JSON file of all rows."})
    model_name_or_path: list[str] = field(
        default_factory=list, metadata={"help": "Trained models: folders or Hub ids; none for baselines alone."}
    )
    encoder_name_or_path: str | None = field(
        default=None, metadata={"help": "Frozen sentence encoder that makes the vectors."}
    )
    vectors_dir: str | None = field(
        default=None, metadata={"help": "Folder of vectors, TASK-PART.npy, instead of an encoder."}
    )
    tasks: list[str] | None = field(default=None, metadata={"help": "Which; else all that are found."})
    split: str = field(default="test", metadata={"help": "validation, to choose settings; or test."})
    active_dims: list[int] | None = field(
        default=None,
        metadata={"help": f"Non-zeros per code; else those of {' '.join(map(str, ACTIVE_DIMS))} that codes can have."},
    )
    own_active_dims: bool = field(default=True, metadata={"help": "Measure codes by the model's own rule too."})
    bytes_per_code: list[int] = field(default_factory=list, metadata={"help": "Budgets of bytes, such as 16 32 48."})
    query_active_dims: list[int] = field(
        default_factory=lambda: list(QUERY_ACTIVE_DIMS), metadata={"help": "Dimensions that a dense query is cut to."}
    )
    measures: list[str] = field(default_factory=lambda: list(MEASURES), metadata={"help": "Of the codes."})
    baselines: bool = field(default=False, metadata={"help": "Measure what needs no training too."})
    training_vectors: str | None = field(
        default=None,
        metadata={"help": "File of vectors to fit baselines on and to choose bits by; else those of each task."},
    )
    max_samples: int | None = field(default=2500, metadata={"help": "Rows to classify, per task."})
    max_train_samples: int | None = field(default=8000, metadata={"help": "Rows to learn classes from, per task."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens per sentence; else as the encoder says."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing report."})
    seed: int = field(default=0, metadata={"help": "Of the draw of rows whose neighbours are looked at."})


def check(options: EvaluateCodesArguments) -> EvaluationProtocol:
    """What is measured, once the options are known to be sound."""
    require("sklearn", *(["bm25s"] if options.baselines else []), extra="eval")
    if not options.model_name_or_path and not options.baselines:
        raise ValueError("`model_name_or_path` must name a model, got none; name one, or add --baselines.")
    for name in ("active_dims", "bytes_per_code", "query_active_dims"):
        for number in getattr(options, name) or ():
            check_positive(**{name: number})
    if (options.encoder_name_or_path is None) == (options.vectors_dir is None):
        got = "neither" if options.vectors_dir is None else "both"
        raise ValueError(f"Give exactly one of `encoder_name_or_path` and `vectors_dir`, got {got}.")
    check_positive(max_samples=options.max_samples, max_train_samples=options.max_train_samples)
    return EvaluationProtocol(measures=options.measures, query_active_dims=options.query_active_dims, seed=options.seed)


def main() -> None:
    """Parse, check, measure into a file that is this process's alone."""
    options = parse(EvaluateCodesArguments, __doc__.partition("\n")[0])
    protocol = check(options)
    output = check_output(options.output, options.overwrite, ".json", inputs=[options.suite, options.vectors_dir])
    with claimed_file(output, "output"):
        measure(options, protocol, output)


def measure(options: EvaluateCodesArguments, protocol: EvaluationProtocol, output: Path) -> None:
    """Load, measure task by task, print, write."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    say(f"evaluate_codes.py: {options.suite}, {options.split} rows, on {device_name(device)}")
    models: dict[str, tuple[Any, Any]] = {}
    for name in options.model_name_or_path:
        model: Any
        model, tokenizer = load_for_inference(name, AutoModelForPreTraining)
        models[name] = model.to(device), tokenizer
        say(f"{name}: {model_facts(model)}")
    for model, tokenizer in models.values():
        check_systems(model, options.active_dims or (), options.bytes_per_code, tokenizer)
    training = None
    if options.training_vectors is not None:
        loaded = load_vectors(options.training_vectors, "training_vectors")
        training = check_training([model for model, _ in models.values()], loaded, "training_vectors")
    embed = None
    if options.encoder_name_or_path is not None:
        embed = frozen_encoder(options.encoder_name_or_path, options.max_length, device)
    rows = []
    for task in find(options, embed):
        started = time.perf_counter()
        for model, _ in models.values():
            check_fits(model, task)
        found = list(task_rows(options, TaskEvaluation(task, protocol), models, training))
        say("", *table(found), f"({duration(time.perf_counter() - started)})")
        rows += found
    versions = {library.__name__: library.__version__ for library in (torch, transformers, hsvae_hf, np)}
    write_json(output, {"rows": rows, "settings": vars(options) | {"protocol": asdict(protocol)} | versions})
    finish(f"{output}: all figures", {"rows": len(rows)})


def find(options: EvaluateCodesArguments, embed: Embed | None) -> Any:
    """The tasks, one after the other."""
    limits = {"max_samples": options.max_samples, "max_train_samples": options.max_train_samples}
    return load_tasks(options.suite, embed, options.vectors_dir, options.tasks, options.split, **limits)


def task_rows(
    options: EvaluateCodesArguments, measured: TaskEvaluation, models: dict[str, Any], training: np.ndarray | None
) -> Any:
    """Rows of one task: baselines, then each model at each budget."""
    task: Task = measured.task
    vectors = task.training if training is None else training
    if options.baselines:
        yield from measured.baseline_rows(vectors, ACTIVE_DIMS if options.active_dims is None else options.active_dims)
    own = [None] if options.own_active_dims else []
    for name, (model, tokenizer) in models.items():
        budgets = [*own, *(usual_budgets(model) if options.active_dims is None else options.active_dims)]
        for system in model_systems(model, vectors, budgets, options.bytes_per_code, tokenizer, name):
            yield measured.row(system)


if __name__ == "__main__":
    run(main)
