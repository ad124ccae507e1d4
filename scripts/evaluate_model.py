"""One JSON report of a trained model on a data set."""

import before_imports  # noqa: F401 - first: see there

from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForPreTraining

import hsvae_hf
from hsvae_hf.argument_names import known_as
from hsvae_hf.cli import run
from hsvae_hf.command_line import LabelledDatasetArguments, parse
from hsvae_hf.console import command_line, data_facts, device_name, finish, model_facts, say
from hsvae_hf.data import load_text_dataset
from hsvae_hf.extras import require
from hsvae_hf.files import check_output, claimed_files, load_vectors, write_json
from hsvae_hf.input_checks import check_positive
from hsvae_hf.loading import load_for_inference
from hsvae_hf.report import draw_gates, evaluate_model, print_report
from hsvae_hf.tokenization import warn_unknown


@dataclass(kw_only=True)
class EvaluateArguments(LabelledDatasetArguments):
    """What to evaluate, on what."""

    model_name_or_path: str = field(metadata={"help": "Trained model: a folder or a Hub id."})
    output: str = field(metadata={"help": "JSON file of the report."})
    vectors: str | None = field(
        default=None, metadata={"help": "A .npy or .parquet file of sentence vectors, instead of a data set."}
    )
    split: str = field(
        default="test", metadata={"help": "Split to report on; validation for test where there is none."}
    )
    max_train_samples: int | None = field(default=20_000, metadata={"help": "Rows that the probes learn from."})
    num_samples: int = field(default=5, metadata={"help": "K, draws per sentence of the probe on samples."})
    batch_size: int = field(default=256, metadata={"help": "Sentences per forward pass."})
    heatmap: str | None = field(default=None, metadata={"help": "Also draw the class-by-dimension gates, to this PNG."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing report."})
    seed: int = field(default=42, metadata={"help": "Of samples and draws of rows."})


def load_splits(options: EvaluateArguments) -> tuple[str, Dataset | None, Dataset]:
    """Name of the split to report on, the rows that probes learn from, the rows to report on."""
    if (options.dataset is None) == (options.vectors is None):
        got = "neither" if options.dataset is None else "both"
        raise ValueError(f"Give exactly one of `dataset` and `vectors`, got {got}.")
    if options.vectors is not None:
        for name in ("max_samples", "text_column", "label_column", "dataset_config_name"):
            if getattr(options, name) is not None:
                raise ValueError(f"`{name}` must be left out with `vectors`: all rows are reported on, without text.")
        return "all", None, Dataset.from_dict({"vectors": load_vectors(options.vectors)})
    data = options.dataset_options()
    if options.split == "train":
        data["max_train_samples"] = options.max_samples
    splits = load_text_dataset(**data, seed=options.seed, needs_train=False)
    say(*data_facts(splits))
    name = "validation" if options.split == "test" and "test" not in splits else options.split
    if name not in splits:
        raise ValueError(f"`split` must be one of {sorted(splits)}, got {options.split!r}; name one of them.")
    if name != options.split:
        say(f"there is no split `{options.split}`: the report is on `{name}`, {len(splits[name]):,} rows")
    options.text_column, options.label_column = splits.summary.text_column, splits.summary.label_column
    return name, splits.get("train") if name != "train" else None, splits[name]


def main() -> None:
    """Parse, check, measure into files that are this process's alone."""
    options = parse(EvaluateArguments, __doc__)
    require("matplotlib", "sklearn")
    check_positive(num_samples=options.num_samples, batch_size=options.batch_size)
    inputs, picture = (options.dataset, options.vectors), None
    output = check_output(options.output, options.overwrite, ".json", inputs=inputs)
    if options.heatmap is not None:
        picture = check_output(options.heatmap, options.overwrite, ".png", "heatmap", inputs)
    with claimed_files(output=output, heatmap=picture):
        measure(options, output, picture)


def measure(options: EvaluateArguments, output: Path, picture: Path | None) -> None:
    """Load, measure, write, print."""
    source = options.dataset or options.vectors
    say(f"evaluate_model.py: {options.model_name_or_path} on {source}, to {options.output}")
    model, tokenizer = load_for_inference(options.model_name_or_path, AutoModelForPreTraining)
    name, train, test = load_splits(options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    say(model_facts(model), f"device: {device_name(device)}")
    if tokenizer is not None:
        warn_unknown(tokenizer, test["text"])
    names = {"model": "model_name_or_path", "dataset": "dataset" if options.vectors is None else "vectors"}
    with known_as(**names):
        if picture is not None:
            draw_gates(model, tokenizer, test, picture, options.batch_size)
        report = evaluate_model(model, tokenizer, train, test, options.num_samples, options.batch_size, options.seed)
    versions = {library.__name__: library.__version__ for library in (torch, transformers, hsvae_hf)}
    report["settings"] = vars(options) | {"split": name, "model_type": model.config.model_type} | versions
    write_json(output, report)
    print_report(report)
    names = ("model_name_or_path", "dataset", "dataset_config_name", "text_column")
    command = command_line("explain.py", **{name: getattr(options, name) for name in names})
    finish(f"{output}: all figures", {}, *([command] if tokenizer is not None and options.dataset is not None else []))


if __name__ == "__main__":
    run(main)
