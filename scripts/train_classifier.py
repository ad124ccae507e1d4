"""Train a classifier on the samples of a trained text VAE: K-sample Monte-Carlo marginalisation (paper, 4.2)."""

import before_imports  # noqa: F401 - first: see there

import shlex

from hsvae_hf.classification import ClassifierArguments, ClassifierTrainingArguments, train_classifier
from hsvae_hf.cli import run
from hsvae_hf.command_line import OUTPUT_FIRST, TRAINING_FIRST, ScriptParser
from hsvae_hf.console import finish

FIRST = {
    "data": ("model_name_or_path", "dataset", "text_column", "label_column", "max_train_samples", "max_samples"),
    "classifier": ("num_samples", "freeze_encoder"),
    "training": TRAINING_FIRST,
    "output": OUTPUT_FIRST,
}


def classify_command(folder: str) -> str:
    """A command that classifies a sentence."""
    code = (
        f"import hsvae_hf, transformers; print(transformers.pipeline('text-classification', {folder!r})('A sentence.'))"
    )
    return shlex.join(["python", "-c", code])


def main() -> None:
    """Parse, train, say what came out."""
    kinds = {"data": ClassifierArguments, "training": ClassifierTrainingArguments}
    options, arguments = ScriptParser(kinds, FIRST, description=__doc__).parse()
    result = train_classifier(options, arguments)
    if arguments.process_index == 0:
        figures = {f"accuracy on {name}": result.metrics.get(f"{name}_accuracy") for name in ("validation", "test")}
        figures["training loss"] = result.metrics["train_loss"]
        folder = result.output_dir
        text = f"{folder}: the classifier, its tokenizer, and all figures in all_results.json"
        finish(text, figures, classify_command(folder))


if __name__ == "__main__":
    run(main)
