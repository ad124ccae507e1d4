"""Training of a classifier on a trained model: K-sample Monte-Carlo marginalisation (Prokhorov et al. 2021, 4.2)."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import AutoModelForSequenceClassification, EvalPrediction, set_seed

from hsvae_hf.batching import TextCollator
from hsvae_hf.checkpoints import check_resumable, weights_fingerprint
from hsvae_hf.command_line import LabelledDatasetArguments
from hsvae_hf.console import data_facts, model_facts, say
from hsvae_hf.data import labelled, load_text_dataset, tokenize_dataset
from hsvae_hf.loading import load_for_inference
from hsvae_hf.models.sources import check_source
from hsvae_hf.runs import Run, claimed_output_dir, run_settings, save_run
from hsvae_hf.tokenization import warn_unknown
from hsvae_hf.trainer import WholeCheckpointTrainer
from hsvae_hf.training_arguments import RunArguments

KEPT = ("model_type", "vocab_size", "hidden_size", "latent_size", "num_samples", "freeze_encoder", "id2label")


@dataclass(kw_only=True)
class ClassifierArguments(LabelledDatasetArguments):
    """What to classify, with which model."""

    model_name_or_path: str = field(metadata={"help": "Trained model: a folder or a Hub id."})
    dataset: str = field(metadata={"help": "docstrings, yelp, dbpedia, yahoo, a Hub id, or a local folder or file."})
    num_samples: int = field(default=5, metadata={"help": "K draws of the code per sentence; 0: the code itself."})
    freeze_encoder: bool = field(default=True, metadata={"help": "Train the classifier alone."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Rows of the training split."})


@dataclass
class ClassifierTrainingArguments(RunArguments):
    """Training of the classifier: Adam 1e-3."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of Adam."})
    prediction_loss_only: bool = field(default=False, metadata={"help": "Leave the accuracy out."})


def train_classifier(options: ClassifierArguments, arguments: ClassifierTrainingArguments) -> Run:
    """Train a classifier on the draws of a trained model, in a folder that is this run's alone.

    Args:
        options: which model, which labelled data, K.
        arguments: of training, the folder of the run among them.

    Returns:
        The finished run; its metrics hold the accuracy on validation and test rows.

    Raises:
        ValueError: if the model reads no text, or the data hold no classes.
    """
    check_source(options.model_name_or_path, "model_name_or_path")  # before the data are read
    with claimed_output_dir(arguments, (options.dataset, options.model_name_or_path)) as checkpoint:
        return _train(options, arguments, checkpoint)


def _train(options: ClassifierArguments, arguments: ClassifierTrainingArguments, checkpoint: str | None) -> Run:
    """Train, evaluate on validation and test, save."""
    say(f"{options.dataset}: a classifier on {options.model_name_or_path}, to {arguments.output_dir}")
    set_seed(arguments.seed)
    with arguments.main_process_first():
        splits = load_classes(options, arguments.seed)
    names = splits["train"].features["label"].names
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
        tokens = {name: tokenize_dataset(split, tokenizer) for name, split in splits.items()}
    trainer = WholeCheckpointTrainer(
        model=model.float(),
        args=arguments,
        train_dataset=tokens["train"],
        eval_dataset=tokens["validation"],
        data_collator=TextCollator(tokenizer, with_labels=True),
        compute_metrics=accuracy,
        processing_class=tokenizer,
    )
    trainer.source = weights_fingerprint(model.base_model)
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    for name, split in tokens.items():  # in the same order in every process
        if name != "train":
            metrics |= trainer.evaluate(split, metric_key_prefix=name)
    if trainer.is_world_process_zero():
        save_run(arguments.output_dir, model, tokenizer, metrics, run_settings(arguments, **asdict(options)))
    return Run(model.eval(), tokenizer, metrics, str(arguments.output_dir))


def load_classes(options: ClassifierArguments, seed: int) -> dict[str, Dataset]:
    """The labelled rows of `train`, `validation` and, where there is one, `test`.

    Raises:
        ValueError: if there are too few rows or classes.
    """
    dataset: DatasetDict = load_text_dataset(**options.dataset_options(), seed=seed)
    if "validation" not in dataset:
        raise ValueError(f"`dataset` must have at least 2 rows, got 1 in {options.dataset!r}; some are held out.")
    if "label" not in dataset["train"].column_names:
        summary: Any = getattr(dataset, "summary")  # noqa: B009
        raise ValueError(
            f"`label_column` must name a column of classes, got none in {options.dataset!r} among the columns "
            f"{', '.join(summary.columns)}; name one."
        )
    splits = {name: labelled(dataset[name]) for name in ("train", "validation", "test") if name in dataset}
    found = {name: split for name, split in splits.items() if split is not None}
    if not {"train", "validation"} <= set(found):
        raise ValueError(
            f"`label_column` must hold classes in the rows of train and validation, got {options.dataset!r} without; "
            "add some."
        )
    if len(found["train"].unique("label")) < 2:
        names = found["train"].features["label"].names
        raise ValueError(
            f"`label_column` must hold at least 2 classes, got {names} in {options.dataset!r}; name another."
        )
    say(*data_facts(dataset))
    return found


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of sentences whose most probable class is theirs, for the Trainer's `compute_metrics`."""
    return {"accuracy": float((np.asarray(prediction.predictions).argmax(-1) == prediction.label_ids).mean())}
