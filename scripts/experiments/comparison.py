"""Runs of systems on one data set under one budget: training, measurement, and results that are kept."""

import gc
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from finished_runs import Runs
from systems import SYSTEMS, TRAINING, System, find_system
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed

import hsvae_hf
from hsvae_hf.batching import TextCollator
from hsvae_hf.callbacks import CollapseMonitor
from hsvae_hf.classification import accuracy
from hsvae_hf.data import labelled, load_text_dataset, tokenize_dataset
from hsvae_hf.embedding_cache import embed_dataset, load_encoder_tokenizer
from hsvae_hf.models.vocabulary import special_token_ids
from hsvae_hf.probes import probe_accuracy, representations
from hsvae_hf.sparsity_measures import AverageHoyer
from hsvae_hf.statistics import class_gate_activity, corpus_statistics
from hsvae_hf.tokenization import train_tokenizer
from hsvae_hf.trainer import TextVAETrainer, WholeCheckpointTrainer
from hsvae_hf.training_arguments import RunArguments, TextVAETrainingArguments

MAY_CHANGE = ("dataset", "dataset_config_name", "output_dir", "models", "seeds")  # between calls on one folder
OF_ENCODERS = ("encoder_name_or_path", "encoder_max_length")
LOOK_ROWS = 1000  # validation rows that are looked at during training
BATCH_SIZE = 256  # of measurements


@dataclass
class CompareArguments:
    """What to compare, on what, how long."""

    dataset: str = field(metadata={"help": "docstrings, yelp, dbpedia, yahoo, a Hub id, or a local folder or file."})
    output_dir: str = field(metadata={"help": "Folder of the table, the figure and every run; finished runs are kept."})
    models: list[str] = field(
        default_factory=lambda: list(SYSTEMS),
        metadata={
            "help": f"Of {', '.join(SYSTEMS)}; all by default. A system may come with fields of its configuration, or "
            f"{', '.join(TRAINING)}: 'HSVAE prior_alpha=1 prior_beta=4'."
        },
    )
    dataset_config_name: str | None = field(
        default=None,
        metadata={"aliases": ["--dataset_config"], "help": "Configuration of a data set that has several."},
    )
    seeds: int = field(default=3, metadata={"help": "Runs per model."})
    max_steps: int = field(default=1000, metadata={"help": "Training steps of every model."})
    classifier_epochs: int = field(default=5, metadata={"help": "Passes of the K = 5 classifier over the rows."})
    curve_points: int = field(default=0, metadata={"help": "Times to look at the codes during training."})
    batch_size: int = field(default=64, metadata={"help": "Sentences per step."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Of every model."})
    encoder_name_or_path: str = field(
        default="bert-base-uncased", metadata={"help": "Frozen encoder of BERT and of the models that begin with B-."}
    )
    encoder_max_length: int | None = field(
        default=None, metadata={"help": "Tokens that it reads; max_length by default, which all decode."}
    )
    vocab_size: int = field(default=5000, metadata={"help": "Word types."})
    embedding_size: int = field(default=64, metadata={"help": "Width of the word embeddings."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the GRUs."})
    latent_size: int = field(default=32, metadata={"help": "Latent dimensions."})
    word_dropout: float = field(default=0.5, metadata={"help": "Of every decoder."})
    max_length: int = field(default=30, metadata={"help": "Tokens per sentence."})
    max_train_samples: int | None = field(default=8000, metadata={"help": "Rows to train on."})
    max_samples: int | None = field(default=3000, metadata={"help": "Rows of the other splits."})

    def __post_init__(self) -> None:
        """Refuse numbers below 1; give each system one spelling, whichever was given."""
        for name in ("seeds", "max_steps", "classifier_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}; choose a positive number.")
        self.models = [find_system(name).name for name in self.models]


class RowCollator(TextCollator):
    """Batches of words; or of a frozen encoder's vectors, with the words that are reconstructed from them."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The model's input."""
        batch = super().__call__(rows)
        if "vectors" in rows[0]:
            del batch["input_ids"], batch["attention_mask"]
            batch["vectors"] = torch.tensor([row["vectors"] for row in rows])
        if "labels" in rows[0] and not self.with_labels:
            words = [torch.tensor(row["labels"]) for row in rows]
            batch["labels"] = torch.nn.utils.rnn.pad_sequence(words, batch_first=True, padding_value=-100)
        return batch


def load_labelled(dataset: str, config_name: str | None, **limits: Any) -> DatasetDict:
    """The rows that have a class, in the splits `train`, `validation` and `test`.

    Args:
        dataset: short name, Hub id or path.
        config_name: of a data set that has several configurations.
        limits: `max_train_samples` and `max_samples`.

    Raises:
        ValueError: if there are no labels, less than two classes or too few rows.
    """
    splits = load_text_dataset(dataset, dataset_config_name=config_name, **limits)
    rows = {name: labelled(split) for name, split in splits.items()}
    data = DatasetDict({name: split for name, split in rows.items() if split is not None})
    if not {"train", "validation"} <= set(data):
        raise ValueError(
            f"`dataset` must have labels in train and validation rows, got {dataset!r} without; choose another."
        )
    if len(data["train"].unique("label")) < 2:
        raise ValueError(f"`dataset` must have rows of two classes, got {dataset!r}; choose another.")
    if len(data["validation"]) < 2:
        raise ValueError(f"`dataset` must have more rows, got {len(data['train'])}; one is left to validate on.")
    if "test" not in data:  # accuracies are not of the rows that thresholds are set on
        halves = data["validation"].train_test_split(0.5, seed=42)
        data["validation"], data["test"] = halves["train"], halves["test"]
    return data


def encoder_vectors(
    data: DatasetDict, encoder_name_or_path: str, tokenizer: PreTrainedTokenizerBase
) -> dict[str, np.ndarray]:
    """The vectors of a frozen encoder, `(rows, size)`, for each split; they are computed once and kept on disk."""
    encoder = hsvae_hf.HSVAEForPreTraining.from_encoder_pretrained(
        encoder_name_or_path, decoder_type="vector", latent_size=1
    )
    return {name: embed_dataset(split, encoder.eval(), tokenizer) for name, split in data.items()}


class Comparison:
    """One data set, the systems to compare on it, and their results.

    What is wrong with the systems, the rows, the encoder or the output folder is told here, before the first run.

    Raises:
        ValueError: for what is wrong.
    """

    def __init__(self, options: CompareArguments) -> None:
        self.options = options
        self.systems = [find_system(name) for name in options.models]
        self.runs = Runs(options.output_dir)
        for system in self.systems:
            hsvae_hf.MODELS[system.model_type].config(**self._fields(system))
            self._arguments(TextVAETrainingArguments, **system.training)
        limits = {"max_train_samples": options.max_train_samples, "max_samples": options.max_samples}
        self.data = load_labelled(options.dataset, options.dataset_config_name, **limits)
        self.names: list[str] = self.data["train"].features["label"].names
        self.checksum = 0
        for split in self.data.values():
            for text, label in zip(split["text"][:], split["label"][:], strict=True):
                self.checksum = zlib.crc32(f"{label} {text}\n".encode(), self.checksum)
        validation = self.data["validation"].shuffle(seed=42)
        self.data["validation"] = validation.select(range(min(LOOK_ROWS, len(validation))))
        texts = self.data["train"]["text"][:]  # ASCII alone, as the paper's
        self.words = train_tokenizer(texts, options.vocab_size, options.max_length, ascii_only=True)
        for system in self.systems:
            self.runs.check(self._shared_settings(system))
        pretrained = [system for system in self.systems if system.pretrained]
        missing = [system for system in pretrained if not all(map(self.runs.has, self._run_names(system)))]
        if missing:
            self.new_model(missing[0])

    def _shared_settings(self, system: System) -> dict[str, Any]:
        """What must be the same for all runs of a folder; options of the encoder matter to systems that have one."""
        skip = MAY_CHANGE if system.pretrained else MAY_CHANGE + OF_ENCODERS
        settings = {name: value for name, value in vars(self.options).items() if name not in skip}
        return settings | {"dataset_checksum": self.checksum}  # the same rows may lie elsewhere

    def _run_names(self, system: System) -> list[str]:
        return [f"{system.name}-{seed}" for seed in range(1, self.options.seeds + 1)]

    def _fields(self, system: System) -> dict[str, Any]:
        """The fields of a system's configuration."""
        options = self.options
        fields = {name: getattr(options, name) for name in ("embedding_size", "hidden_size", "word_dropout")}
        if not system.classifier:
            fields["latent_size"] = options.latent_size
        fields |= system.fields
        if system.model_type == "sdlgm":
            fields.setdefault("sparsity_cap", max(1, fields["latent_size"] // 2))
        return fields

    def _arguments(self, kind: type[RunArguments], **settings: Any) -> RunArguments:
        """Training settings, alike for all systems but for `settings`."""
        shared: dict[str, Any] = {
            "output_dir": str(self.runs.folder),
            "per_device_train_batch_size": self.options.batch_size,
            "learning_rate": self.options.learning_rate,
            "eval_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "logging_steps": 500,
            "disable_tqdm": True,
        }
        return kind(**(shared | settings))

    @cached_property
    def word_rows(self) -> DatasetDict:
        """The splits as words, which all models decode."""
        return tokenize_dataset(self.data, self.words)

    @cached_property
    def vector_rows(self) -> DatasetDict:
        """The splits as tokens and vectors of the encoder, with the words as `labels`."""
        source, length = self.options.encoder_name_or_path, self.options.encoder_max_length or self.options.max_length
        tokenizer = load_encoder_tokenizer(source, length)
        rows = tokenize_dataset(self.data, tokenizer)
        for name, vectors in encoder_vectors(self.data, source, tokenizer).items():
            rows[name] = rows[name].add_column("labels", self.word_rows[name]["input_ids"][:])
            rows[name] = rows[name].add_column("vectors", list(vectors))
        return rows

    def rows(self, system: System) -> DatasetDict:
        """The splits as a system takes them."""
        return self.vector_rows if system.pretrained else self.word_rows

    def new_model(self, system: System) -> PreTrainedModel:
        """The model of a system, untrained."""
        classes = hsvae_hf.MODELS[system.model_type]
        model_class = classes.classification if system.classifier else classes.pretraining
        fields = self._fields(system)
        if system.classifier:
            fields |= {"num_labels": len(self.names), "num_samples": 0}
        if not (system.classifier and system.pretrained):  # which neither decodes nor reads words
            fields |= {"vocab_size": len(self.words), **special_token_ids(self.words)}
        if not system.pretrained:
            return model_class(classes.config(**fields))
        source = self.options.encoder_name_or_path
        return model_class.from_encoder_pretrained(source, freeze_text_encoder=True, **fields)

    def results(self, system: System) -> list[dict[str, Any]]:
        """The result of every seed; what is missing is trained and measured."""
        settings = self._shared_settings(system)
        return [
            self.runs.result(name, partial(self._run, system, seed), settings)
            for seed, name in enumerate(self._run_names(system), 1)
        ]

    def _run(self, system: System, seed: int) -> dict[str, Any]:
        gc.collect()  # earlier models hold themselves in cycles
        self.rows(system)  # before the seed, which is that of the training
        set_seed(seed)
        model = self.new_model(system)
        result: dict[str, Any] = {"latent_size": model.config.latent_size}
        if system.classifier:
            model.config.num_samples = 0
            settings = {"max_steps": self.options.max_steps, "seed": seed} | system.training
            result["accuracy"] = self._classify(system, model, **settings)
            return result | self._measure(system, model)
        result["curve"] = self._train(system, model, seed)
        result |= self._measure(system, model)
        # The paper's classifier: on the model as it is, with K = 5 draws of a sentence.
        config = model.config.to_dict() | {"num_samples": 5, "freeze_encoder": True, "id2label": None, "label2id": None}
        config = type(model.config)(**config, num_labels=len(self.names))
        classifier = AutoModelForSequenceClassification.from_config(config)
        classifier.model.load_state_dict(model.model.state_dict())
        settings = {"num_train_epochs": self.options.classifier_epochs, "learning_rate": 2e-3, "seed": seed}
        result["accuracy"] = self._classify(system, classifier, **settings)
        if hasattr(model.config, "active_threshold"):
            result["threshold"] = model.config.active_threshold
        return result

    def _classify(self, system: System, model: PreTrainedModel, **settings: Any) -> float:
        """Train a classifier and give its accuracy on the test rows."""
        arguments = self._arguments(RunArguments, prediction_loss_only=False, **settings)
        collate, rows = RowCollator(self.words, with_labels=True), self.rows(system)
        trainer = WholeCheckpointTrainer(model, arguments, collate, rows["train"], compute_metrics=accuracy)
        trainer.train()
        return trainer.evaluate(rows["test"])["eval_accuracy"]

    def _train(self, system: System, model: PreTrainedModel, seed: int) -> list[dict[str, Any]]:
        """Train without labels, and give what the looks at the codes have shown."""
        settings = {"max_steps": self.options.max_steps, "seed": seed} | system.training
        if self.options.curve_points:
            interval = max(1, settings["max_steps"] // self.options.curve_points)
            settings |= {"eval_strategy": "steps", "eval_steps": interval}
        arguments, rows = self._arguments(TextVAETrainingArguments, **settings), self.rows(system)
        trainer = TextVAETrainer(model, arguments, RowCollator(self.words), rows["train"], rows["validation"])
        trainer.add_callback(CollapseMonitor(trainer, LOOK_ROWS))
        trainer.train()
        return [look for look in trainer.state.log_history if "eval_active_dims" in look]

    def batches(
        self, system: System, split: str, model: PreTrainedModel
    ) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
        """The rows of a split in batches: their numbers, and the model's input."""
        rows = self.rows(system)[split]
        for place, batch in enumerate(DataLoader(rows, BATCH_SIZE, collate_fn=RowCollator(self.words))):
            numbers = np.arange(len(rows))[place * BATCH_SIZE :][:BATCH_SIZE]
            yield numbers, {name: value.to(model.device) for name, value in batch.items()}

    def _measure(self, system: System, model: PreTrainedModel) -> dict[str, Any]:
        """Sparsity, gates, linear probes, and with a decoder the terms of the loss, on the test rows."""
        model.eval()
        train, test = (
            representations(model, self.batches(system, split, model), num_samples=1) for split in ("train", "test")
        )
        if system.classifier:
            code: Any = test["code"]
            hoyer = AverageHoyer()
            hoyer.update(code)
            result = {"average_hoyer_posterior_means": hoyer.compute()["average_hoyer"]}
            result["active_dims"] = code.nnz / code.shape[0]
        else:
            result = corpus_statistics(model, (batch for _, batch in self.batches(system, "test", model)))
        labels, truth = (np.array(self.data[split]["label"][:]) for split in ("train", "test"))
        if "gate" in test:
            activity = class_gate_activity(test["gate"], truth, len(self.names)).round(4).tolist()
            result["class_activity"] = [[None if np.isnan(share) else share for share in row] for row in activity]
        for name in ("code", "gate", "samples"):
            if name in train:
                result[f"accuracy_{name}"] = probe_accuracy(train[name], labels, test[name], truth)
        return result
