"""Train a text VAE on raw sentences, or on sentence vectors: everything that the run leaves is in one folder."""

import before_imports  # noqa: F401 - first: see there

from dataclasses import fields
from pathlib import Path
from typing import Any

from hsvae_hf.cli import run
from hsvae_hf.command_line import MODEL_NAMES, OUTPUT_FIRST, TRAINING_FIRST, ScriptParser, choose, config_arguments
from hsvae_hf.console import command_line, finish
from hsvae_hf.models import MODELS
from hsvae_hf.options import DataArguments, open_options
from hsvae_hf.runs import Run
from hsvae_hf.training import run_training
from hsvae_hf.training_arguments import TextVAETrainingArguments

FIRST = {
    "data": ("dataset", "text_column", "vectors", "max_train_samples", "max_length"),
    "model": (
        "preset",
        "model_type",
        "encoder_name_or_path",
        "decoder_type",
        "latent_size",
        "hidden_size",
        "vocab_size",
    ),
    "sparsity": ("target_active_dims", "max_active_dims"),
    "training": TRAINING_FIRST,
    "output": OUTPUT_FIRST,
}
DECISIVE = (
    "model_type",
    "preset",
    "encoder_name_or_path",
    "decoder_type",
    "vectors",
    "num_train_epochs",
    "latent_size",
)
MODEL_HELP = f"With --model_type, the options are those of that model: {', '.join(MODELS)}."


def parse_arguments() -> tuple[DataArguments, dict[str, Any], TextVAETrainingArguments]:
    """The command line. Options that decide the defaults of others are read first."""
    first = ScriptParser()
    for name in DECISIVE:
        first.add_argument(f"--{name}", f"--{name.replace('_', '-')}")
    given = vars(first.parse_known_args()[0])
    model_type = choose("model_type", given.pop("model_type") or "hsvae", MODELS, MODEL_NAMES, "a text VAE of")
    kinds = {"data": DataArguments, "model": config_arguments(MODELS[model_type][0])}
    parser = ScriptParser(
        kinds | {"training": TextVAETrainingArguments}, FIRST, model_of, description=__doc__, epilog=MODEL_HELP
    )
    values = open_options(model_type, given, vectors=given["vectors"] is not None)
    parser.set_defaults(**{name: value for name, value in values.items() if parser.knows(name)})
    data, config_fields, arguments = parser.parse()
    data.model_type = model_type
    flags = vars(config_fields)
    for name in ("code_ridge", "code_budgets"):
        if flags[name] is None:
            del flags[name]  # not given; from Python, None is an answer
    return data, flags, arguments


def model_of(option: str) -> str | None:
    """The model that has a field of this name in its configuration, for the error."""
    names = [
        name for name, kinds in MODELS.items() if option in {item.name for item in fields(config_arguments(kinds[0]))}
    ]
    return f"--model_type {' and '.join(names)}" if names else None


def tell(data: DataArguments, result: Run) -> None:
    """Say where the run is, what came out, and how to look at it."""
    metrics, folder = result.metrics, result.output_dir
    figures = {
        "perplexity per word": metrics.get("eval_perplexity"),
        "neighbours kept": metrics.get("eval_neighbours_kept"),
        "non-zeros per code": metrics.get("eval_active_dims"),
        "mutual information": metrics.get("eval_mutual_information"),
    }
    if not any(value is not None for value in figures.values()):
        figures = {"loss": metrics["train_loss"]}
    names = ("dataset", "dataset_config_name", "vectors", "text_column")
    source = {name: getattr(data, name) for name in names}
    report = Path(folder) / "report.json"
    command = command_line("evaluate_model.py", model_name_or_path=folder, **source, output=report)
    if data.vectors is not None and not (len(data.vectors) == 1 and Path(data.vectors[0]).is_file()):  # not in memory
        codes = f"{folder.rstrip('/')}-codes"
        command = command_line("embed.py", model_name_or_path=folder, input=data.vectors, output=codes)
    text = f"{folder}: the model{'' if data.vectors else ', its tokenizer'}, and all figures in all_results.json"
    finish(text, figures, command)


def main() -> None:
    """Parse, train, say what came out."""
    data, config_fields, arguments = parse_arguments()
    result = run_training(data, config_fields, arguments)
    if arguments.process_index == 0:
        tell(data, result)


if __name__ == "__main__":
    run(main)
