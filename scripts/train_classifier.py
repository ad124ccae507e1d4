"""Train a classifier on the samples of a trained text VAE: K-sample Monte-Carlo marginalisation (paper, 4.2)."""

import shlex
import signal
import sys
from dataclasses import dataclass, field

if __name__ == "__main__":  # the imports take seconds: a signal ends them without a traceback
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

from transformers import AutoModelForSequenceClassification, set_seed

from hsvae_hf.arguments import OUTPUT_FIRST, TRAINING_FIRST, ScriptParser
from hsvae_hf.batching import TextCollator
from hsvae_hf.checkpoints import check_resumable, claimed_output_dir, weights_fingerprint
from hsvae_hf.cli import run
from hsvae_hf.data import labelled, load_text_dataset, tokenize_dataset
from hsvae_hf.loading import load_for_inference
from hsvae_hf.models.sources import check_source
from hsvae_hf.reporting import data_facts, finish, model_facts, say
from hsvae_hf.tokenization import warn_unknown
from hsvae_hf.trainer import WholeCheckpointTrainer
from hsvae_hf.training import accuracy, run_settings, save_run
from hsvae_hf.training_arguments import RunArguments

KEPT = ("model_type", "vocab_size", "hidden_size", "latent_size", "num_samples", "freeze_encoder", "id2label")
FIRST = {
    "data": ("model_name_or_path", "dataset", "text_column", "label_column", "max_train_samples", "max_samples"),
    "classifier": ("num_samples", "freeze_encoder"),
    "training": TRAINING_FIRST,
    "output": OUTPUT_FIRST,
}


@dataclass
class ClassifierArguments:
    """What to classify, with which model."""

    model_name_or_path: str = field(metadata={"help": "Trained model: a folder or a Hub id."})
    dataset: str = field(metadata={"help": "docstrings, yelp, dbpedia, yahoo, a Hub id, or a local folder or file."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the sentences, if not found by name."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the classes, if not found by name."})
    dataset_config_name: str | None = field(
        default=None,
        metadata={"aliases": ["--dataset_config"], "help": "Configuration of a data set that has several."},
    )
    num_samples: int = field(default=5, metadata={"help": "K draws of the code per sentence; 0: the code itself."})
    freeze_encoder: bool = field(default=True, metadata={"help": "Train the classifier alone."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Rows of the training split."})
    max_samples: int | None = field(default=None, metadata={"help": "Rows of every other split."})


@dataclass
class ClassifierTrainingArguments(RunArguments):
    """Training of the classifier: Adam 1e-3."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of Adam."})
    prediction_loss_only: bool = field(default=False, metadata={"help": "Leave the accuracy out."})


def main() -> None:
    """Parse, train in a folder that is this run's alone."""
    kinds = {"data": ClassifierArguments, "training": ClassifierTrainingArguments}
    options, arguments = ScriptParser(kinds, FIRST, description=__doc__).parse()
    check_source(options.model_name_or_path, "model_name_or_path")  # before the data are read
    with claimed_output_dir(arguments, (options.dataset, options.model_name_or_path)) as checkpoint:
        train(options, arguments, checkpoint)


def train(options: ClassifierArguments, arguments: ClassifierTrainingArguments, checkpoint: str | None) -> None:
    """Train, evaluate on validation and test, save."""
    say(f"train_classifier.py: {options.model_name_or_path} on {options.dataset}, to {arguments.output_dir}")
    set_seed(arguments.seed)
    limits = {"max_train_samples": options.max_train_samples, "max_samples": options.max_samples}
    columns = {name: getattr(options, name) for name in ("text_column", "label_column", "dataset_config_name")}
    with arguments.main_process_first():
        dataset = load_text_dataset(options.dataset, seed=arguments.seed, **limits, **columns)
    if "validation" not in dataset:
        raise ValueError(f"`dataset` must have at least 2 rows, got 1 in {options.dataset!r}; some are held out.")
    if "label" not in dataset["train"].column_names:
        raise ValueError(
            f"`label_column` must name a column of classes, got none in {options.dataset!r} among the columns "
            f"{', '.join(dataset.summary.columns)}; name one."
        )
    splits = {name: labelled(dataset[name]) for name in ("train", "validation", "test") if name in dataset}
    if splits["train"] is None or splits["validation"] is None:
        raise ValueError(
            f"`label_column` must hold classes in the rows of train and validation, got {options.dataset!r} without; "
            "add some."
        )
    splits = {name: split for name, split in splits.items() if split is not None}
    say(*data_facts(dataset))
    names = splits["train"].features["label"].names
    if len(splits["train"].unique("label")) < 2:
        raise ValueError(
            f"`label_column` must hold at least 2 classes, got {names} in {options.dataset!r}; name another."
        )
    model, tokenizer = load_for_inference(
        options.model_name_or_path,
        AutoModelForSequenceClassification,
        new_classifier=True,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        num_samples=options.num_samples,
        freeze_encoder=options.freeze_encoder,
    )
    if tokenizer is None:
        raise ValueError(
            f"`model_name_or_path` must be a model that reads text, got {options.model_name_or_path!r}, which takes "
            "vectors alone; use one with its encoder."
        )
    say(model_facts(model))
    if checkpoint is not None:
        check_resumable(checkpoint, {name: getattr(model.config, name) for name in KEPT})
    warn_unknown(tokenizer, splits["train"]["text"])
    with arguments.main_process_first():
        splits = {name: tokenize_dataset(split, tokenizer) for name, split in splits.items()}
    trainer = WholeCheckpointTrainer(
        model=model.float(),
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=TextCollator(tokenizer, with_labels=True),
        compute_metrics=accuracy,
        processing_class=tokenizer,
    )
    trainer.source = weights_fingerprint(model.model)
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    for name, split in splits.items():  # in the same order in every process
        if name != "train":
            metrics |= trainer.evaluate(split, metric_key_prefix=name)
    if trainer.is_world_process_zero():
        settings = run_settings(arguments, **vars(options))
        save_run(arguments.output_dir, trainer.accelerator.unwrap_model(trainer.model), tokenizer, metrics, settings)
        figures = {f"accuracy on {name}": metrics.get(f"{name}_accuracy") for name in ("validation", "test")}
        loss = {"training loss": metrics["train_loss"]}
        result = f"{arguments.output_dir}: the classifier, its tokenizer, and all figures in all_results.json"
        finish(result, figures | loss, classify_command(arguments.output_dir, dataset["validation"]["text"][0]))


def classify_command(folder: str, sentence: str) -> str:
    """A command that classifies a sentence."""
    code = (
        f"import hsvae_hf, transformers; print(transformers.pipeline('text-classification', {folder!r})({sentence!r}))"
    )
    return shlex.join(["python", "-c", code])


if __name__ == "__main__":
    run(main)
