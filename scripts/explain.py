"""What the dimensions of a trained model mean, from text: their words and sentences, and what the decoder says."""

import before_imports  # noqa: F401 - first: see there

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoModelForPreTraining

from hsvae_hf.argument_names import known_as
from hsvae_hf.cli import run
from hsvae_hf.command_line import DatasetArguments, parse
from hsvae_hf.console import command_line, data_facts, finish, model_facts, say
from hsvae_hf.data import load_text_dataset
from hsvae_hf.encoding import check_text_model, encode
from hsvae_hf.explanation import describe_dimensions
from hsvae_hf.extras import require
from hsvae_hf.files import check_output, claimed_files, write_json
from hsvae_hf.hub import REPORT
from hsvae_hf.loading import load_for_inference
from hsvae_hf.report import print_details, print_dimensions, print_explanation


@dataclass(kw_only=True)
class ExplainArguments(DatasetArguments):
    """Which model, which text, which dimension or which two sentences."""

    model_name_or_path: str = field(metadata={"help": "Trained model with its decoder: a folder or a Hub id."})
    dimension: int | None = field(default=None, metadata={"help": "One dimension, in detail; all in brief without."})
    sentences: list[str] | None = field(
        default=None,
        metadata={
            "help": "Two sentences, to explain their similarity instead, in the words of the data set if there is one."
        },
    )
    split: str = field(default="train", metadata={"help": "Split to look at."})
    max_samples: int | None = field(default=5000, metadata={"help": "Rows to look at."})
    num_words: int = field(default=8, metadata={"help": "Words for each end of a dimension."})
    num_sentences: int = field(default=3, metadata={"help": "Sentences for each end of a dimension."})
    output: str | None = field(default=None, metadata={"help": "JSON file of everything that was found, if wished."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing output."})


def describe(options: ExplainArguments, model: Any, tokenizer: Any) -> tuple[list[dict[str, Any]], int]:
    """The dimensions as the data set shows them, and the number of its rows."""
    data = options.dataset_options() | {"max_train_samples": options.max_samples}
    splits = load_text_dataset(**data, with_labels=False, needs_train=False)
    if options.split not in splits:
        raise ValueError(f"`split` must be one of {sorted(splits)}, got {options.split!r}; name one of them.")
    texts = splits[options.split]["text"][:]
    say(*data_facts(splits, labels=False), f"looked at: {len(texts):,} rows of `{options.split}`")
    codes = encode(model, tokenizer, texts, show_progress_bar=sys.stderr.isatty())
    return describe_dimensions(codes, texts, options.num_words, options.num_sentences), len(texts)


def explain_pair(options: ExplainArguments, model: Any, tokenizer: Any) -> dict[str, Any]:
    """What two sentences share, in words of the data set or of the report in the model's folder."""
    report, dimensions, source = Path(options.model_name_or_path) / REPORT, [], options.dataset
    if options.dataset is not None:
        dimensions, _ = describe(options, model, tokenizer)
    elif report.is_file():
        dimensions, source = json.loads(report.read_text()).get("dimensions", []), str(report)
    return vars(print_explanation(model, tokenizer, options.sentences or [], dimensions, source))


def explain_dimensions(options: ExplainArguments, model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """All dimensions in brief, or one in detail."""
    dimensions, rows = describe(options, model, tokenizer)
    if options.dimension is not None:
        dimensions = [one for one in dimensions if one["dimension"] == options.dimension]
    print_dimensions(dimensions, rows)
    if options.dimension is not None and dimensions:
        print_details(dimensions[0], model, tokenizer)
    return dimensions


def main() -> None:
    """Parse, check, explain into a file that is this process's alone."""
    options = parse(ExplainArguments, __doc__)
    if options.dataset is None and options.sentences is None:
        raise ValueError("Give `dataset`, `sentences`, or both, got neither.")
    if options.sentences is not None and options.dimension is not None:
        raise ValueError("`dimension` must be left out with `sentences`: all that they share are shown.")
    if options.sentences is not None and len(options.sentences) != 2:
        raise ValueError(f"`sentences` must be two, got {len(options.sentences)}; put each into quotation marks.")
    if options.dataset is not None:
        require("sklearn")
    inputs = (options.dataset,)
    output = check_output(options.output, options.overwrite, ".json", inputs=inputs) if options.output else None
    with known_as(model="model_name_or_path"), claimed_files(output=output):
        write(options, output)


def write(options: ExplainArguments, output: Path | None) -> None:
    """Load, explain, print, write."""
    say(f"explain.py: {options.model_name_or_path}" + (f" on {options.dataset}" if options.dataset else ""))
    model, tokenizer = load_for_inference(options.model_name_or_path, AutoModelForPreTraining)
    check_text_model(model, tokenizer)
    size = model.config.latent_size
    if options.dimension is not None and not 0 <= options.dimension < size:
        raise ValueError(f"`dimension` must be from 0 to {size - 1}, got {options.dimension}; leave it out for all.")
    say(model_facts(model))
    result: Any = (explain_dimensions if options.sentences is None else explain_pair)(options, model, tokenizer)
    if output is not None:
        write_json(output, result)
        finish(f"{output}: all that was found", {})
    if options.sentences is None and options.dimension is None and result:
        names = ("model_name_or_path", "dataset", "dataset_config_name", "text_column")
        example = {name: getattr(options, name) for name in names} | {"dimension": result[0]["dimension"]}
        finish(f"{len(result)} of {size} dimensions are ever on", {}, command_line("explain.py", **example))


if __name__ == "__main__":
    run(main)
