"""Comparison of models on one data set under one budget, in the form of the paper's Figure 2."""

import contextlib
import dataclasses
import gc
import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    set_seed,
)

import hsvae_hf
from hsvae_hf.active_dims import hold_target
from hsvae_hf.arguments import MODEL_NAMES, choose
from hsvae_hf.batching import TextCollator
from hsvae_hf.callbacks import CollapseMonitor, held_out_batches
from hsvae_hf.classification import accuracy
from hsvae_hf.data import labelled, load_text_dataset, tokenize_dataset
from hsvae_hf.embedding_cache import embed_dataset
from hsvae_hf.extras import require
from hsvae_hf.files import staged_folder, write_json
from hsvae_hf.loading import load_for_inference, load_tokenizer
from hsvae_hf.models.vocabulary import special_token_ids
from hsvae_hf.plots import new_figure
from hsvae_hf.probes import probe_accuracy, representations, tfidf_accuracy
from hsvae_hf.sparsity import AverageHoyer
from hsvae_hf.statistics import class_gate_activity, corpus_statistics
from hsvae_hf.tokenization import train_tokenizer
from hsvae_hf.trainer import TextVAETrainer, WholeCheckpointTrainer
from hsvae_hf.training_arguments import RunArguments, TextVAETrainingArguments

System = tuple[str, dict[str, Any], tuple[str, ...]]
# The released settings with an estimator of less noise; words are dropped alike for all.
PAPER = hsvae_hf.RELEASED | {"kl_estimator": "rao_blackwell"}
del PAPER["word_dropout"]
# Name in the table: model type, fields of its configuration; the weights of its costs, where they are to be searched.
# As HSVAE: weights of 0.01 where not searched, a fifth of the dimensions on by the prior.
SYSTEMS: dict[str, System] = {
    "HSVAE": ("hsvae", PAPER, ()),
    "HSVAE-balanced": ("hsvae", {}, ()),
    "VAE": ("gaussian-vae", {}, ("z_kl_weight",)),
    "VAE_L1": ("gaussian-vae", {"penalty_norm": 1, "penalty_weight": 0.01}, ("z_kl_weight", "penalty_weight")),
    "VAE_L2": ("gaussian-vae", {"penalty_norm": 2, "penalty_weight": 0.01}, ("z_kl_weight", "penalty_weight")),
    "MAT-VAE": ("mat-vae", {}, ("z_kl_weight", "penalty_weight")),
    "VSC": ("vsc", {"prior_activity": 0.2}, ("z_kl_weight", "gamma_kl_weight", "penalty_weight")),
    "SDLGM": ("sdlgm", {}, ("z_kl_weight", "gamma_kl_weight")),
    "Sparsemax": ("sparsemax-ae", {}, ()),
    "Simple": ("text-encoder", {}, ()),
    "B-HSVAE": ("hsvae", PAPER, ()),
    "B-HSVAE-balanced": ("hsvae", {}, ()),
    "B-VAE": ("gaussian-vae", {}, ()),
    "B-MAT-VAE": ("mat-vae", {}, ()),
    "BERT": ("text-encoder", {}, ()),
}
CLASSIFIERS = ("Simple", "BERT")  # no decoder is trained
# Training settings that a system may come with.
TRAINING: dict[str, type] = {"learning_rate": float, "weight_decay": float, "max_steps": int, "kl_warmup_steps": int}
TRAINING |= {"lr_scheduler_type": str, "kl_annealing": str}
# Fields of a configuration that a comparison sets itself.
OWN_FIELDS: tuple[str, ...] = ("model_type", "vocab_size", "num_labels", "num_samples", "freeze_encoder")
OWN_FIELDS += ("freeze_text_encoder", "encoder_type", "encoder_config", "decoder_type", "pad_token_id", "bos_token_id")
OWN_FIELDS += ("eos_token_id", "unk_token_id", "decoder_start_token_id")
NOT_SETTINGS = ("output_dir", "models", "seeds", "search_runs", "checkpoints")  # may change between calls on one folder
OF_ENCODERS = ("encoder_name_or_path", "encoder_max_length", "encoder_learning_rate", "freeze_text_encoder")
CURVE_ROWS = 1000  # held-out rows that are looked at during training
REFERENCE = "HSVAE"  # whose reconstruction the others are matched to


@dataclass
class CompareArguments:
    """What to compare, on what, how long."""

    dataset: str = field(metadata={"help": "docstrings, yelp, dbpedia, yahoo, a Hub id, or a local folder or file."})
    output_dir: str = field(metadata={"help": "Folder of the table, the figure and every run; finished runs are kept."})
    models: list[str] = field(
        default_factory=lambda: list(SYSTEMS),
        metadata={
            "help": f"Of {', '.join(SYSTEMS)}, or folders of trained models. All systems by default. A system may come "
            f"with fields of its configuration, or {', '.join(TRAINING)}: 'HSVAE prior_alpha=1 prior_beta=4'."
        },
    )
    dataset_config_name: str | None = field(
        default=None,
        metadata={"aliases": ["--dataset_config"], "help": "Configuration of a data set that has several."},
    )
    seeds: int = field(default=3, metadata={"help": "Runs per model."})
    max_steps: int = field(default=1000, metadata={"help": "Training steps of every model."})
    classifier_epochs: int = field(default=5, metadata={"help": "Passes of the K = 5 classifier over the rows."})
    search_runs: int = field(default=3, metadata={"help": "Runs to match a model's reconstruction; 0 leaves weights."})
    curve_points: int = field(default=0, metadata={"help": "Times to look at the codes during training."})
    checkpoints: bool = field(
        default=False, metadata={"help": "Save at each look: an interrupted run goes on from it."}
    )
    batch_size: int = field(default=64, metadata={"help": "Sentences per step."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Of every model, unless the next is in its place."})
    encoder_learning_rate: float | None = field(
        default=None, metadata={"help": "Of models on a pretrained encoder; 8e-5 if that is not frozen."}
    )
    encoder_name_or_path: str = field(default="bert-base-uncased", metadata={"help": "Encoder of B-HSVAE and BERT."})
    encoder_max_length: int | None = field(
        default=None, metadata={"help": "Tokens that it reads; max_length by default, which all decode."}
    )
    freeze_text_encoder: bool = field(default=True, metadata={"help": "Keep that encoder as it is."})
    vocab_size: int = field(default=5000, metadata={"help": "Word types."})
    embedding_size: int = field(default=64, metadata={"help": "Width of the word embeddings."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the GRUs."})
    latent_size: int = field(default=32, metadata={"help": "Latent dimensions."})
    word_dropout: float = field(default=0.5, metadata={"help": "Of every decoder."})
    max_length: int = field(default=30, metadata={"help": "Tokens per sentence."})
    max_train_samples: int | None = field(default=8000, metadata={"help": "Rows to train on."})
    max_samples: int | None = field(default=3000, metadata={"help": "Rows of the other splits."})

    def __post_init__(self) -> None:
        """One spelling for each system, whichever was given."""
        self.models = [system_name(name) for name in self.models]


class RowCollator(TextCollator):
    """Batches of text, or of a frozen encoder's vectors, with the words to reconstruct where those are others."""

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


def load_labelled(options: CompareArguments) -> DatasetDict:
    """The rows of a comparison: `train`, `validation` and `test`, with classes.

    Raises:
        ValueError: if there are no labels, less than two classes or too few rows.
    """
    limits: dict[str, Any] = {"max_train_samples": options.max_train_samples, "max_samples": options.max_samples}
    config = options.dataset_config_name
    data: DatasetDict = load_text_dataset(options.dataset, dataset_config_name=config, **limits)
    found = {name: labelled(split) for name, split in data.items()}
    data = DatasetDict({name: split for name, split in found.items() if split is not None})
    if not {"train", "validation"} <= set(data):
        raise ValueError(
            f"`dataset` must have labels in train and validation rows, got {options.dataset!r} without; choose another."
        )
    if len(data["train"].unique("label")) < 2:
        raise ValueError(f"`dataset` must have rows of two classes, got {options.dataset!r}; choose another.")
    if len(data["validation"]) < 2:
        raise ValueError(f"`dataset` must have more rows, got {len(data['train'])}; one is left to validate on.")
    if "test" not in data:  # rows that thresholds are set on are no test
        halves = data["validation"].train_test_split(0.5, seed=42)
        data["validation"], data["test"] = halves["train"], halves["test"]
    return data


class Comparison:
    """One data set, its tokenizers, and the runs on it; results are files, so an interrupted comparison goes on."""

    def __init__(self, options: CompareArguments) -> None:
        self.options, self.folder = options, Path(options.output_dir)
        systems = [name for name in options.models if base_of(name) or not Path(name).is_dir()]
        self.systems = SYSTEMS | {name: find_system(name) for name in systems}
        if options.curve_points < (1 if options.checkpoints else 0):
            raise ValueError("`curve_points` must be at least 1 with `checkpoints`, which are written at them; else 0.")
        if self.folder.is_file():
            raise ValueError(f"`output_dir` must be a folder, got the file {str(self.folder)!r}; name another.")
        for name in options.models:
            self._check(name)
        self.data = load_labelled(options)
        self.names, self.test = self.data["train"].features["label"].names, self.data["test"]
        self.checksum = 0
        for split in self.data.values():
            for text, label in zip(split["text"][:], split["label"][:], strict=True):
                self.checksum = zlib.crc32(f"{label} {text}\n".encode(), self.checksum)
        texts = self.data["train"]["text"][:]  # as the paper's: its figures are to be reproduced
        self.words = train_tokenizer(texts, options.vocab_size, options.max_length, ascii_only=True)
        self._check_settings(options.models)

    def check_encoder(self) -> None:
        """Open the pretrained encoder where a run that needs it is missing: what cannot be read is told now."""
        for system in filter(is_pretrained, self.options.models):
            files = [self.folder / "runs" / f"{system}-{seed}.json" for seed in range(1, self.options.seeds + 1)]
            if not all(path.is_file() for path in files):
                self.new_model(system, None)
                return

    def _check(self, model: str) -> None:
        """Tell what cannot be built or trained, before the first run."""
        if model not in self.systems:
            _fingerprint(model)
            if not AutoConfig.from_pretrained(model).decodes_words:
                raise ValueError(f"`models` must decode words, got {model!r}, which decodes vectors; leave it out.")
            return
        config = hsvae_hf.MODELS[self.systems[model][0]][0](**self.fields(model, None))
        if getattr(config, "wanted_active_dims", None) is not None and config.active_threshold != 0.5:
            raise ValueError(
                f"`models` must leave out active_threshold where a number of active dimensions is held, got {model!r}."
            )
        self.settings(model, TextVAETrainingArguments, **self.training_changes(model))

    def _check_settings(self, models: Sequence[str]) -> dict[str, Any]:
        """What must not change between calls on one folder; results of other settings must not mix in."""
        skip = NOT_SETTINGS + (() if any(map(is_pretrained, models)) else OF_ENCODERS)
        settings = {name: value for name, value in vars(self.options).items() if name not in skip}
        settings["dataset_checksum"] = self.checksum
        for name in {"dataset", "encoder_name_or_path"} & settings.keys():  # a folder is the same by every path
            if Path(settings[name]).exists():
                settings[name] = str(Path(settings[name]).resolve())
        path = self.folder / "runs" / "settings.json"
        found = read_json(path) if path.is_file() else {}
        for name, value in settings.items():
            if name in found and found[name] != value:
                raise ValueError(
                    f"`{name}` must stay {found[name]!r}, as in {str(self.folder)!r}, got {value!r}; "
                    "name another output_dir."
                )
        return found | settings

    def fields(self, system: str, weight: float | None) -> dict[str, Any]:
        """The configuration of a system, its searched weights set."""
        _, fixed, searched = self.systems[system]
        fixed = {name: value for name, value in fixed.items() if name not in TRAINING}
        options = self.options
        fields = {name: getattr(options, name) for name in ("embedding_size", "hidden_size", "word_dropout")}
        if not is_classifier(system):
            fields["latent_size"] = options.latent_size
        if base_of(system) == "SDLGM":
            fields["sparsity_cap"] = max(1, fixed.get("latent_size", options.latent_size) // 2)
        return fields | fixed | ({} if weight is None else dict.fromkeys(searched, weight))

    def new_model(self, system: str, weight: float | None) -> tuple[Any, Any]:
        """An untrained model and its tokenizer."""
        config_class, _, pretraining, classification = hsvae_hf.MODELS[self.systems[system][0]]
        model_class = classification if is_classifier(system) else pretraining
        fields = self.fields(system, weight)
        if is_classifier(system):
            fields |= {"num_labels": len(self.names), "num_samples": 0}
        if not (is_classifier(system) and is_pretrained(system)):  # all decode, or read, the same words
            fields |= {"vocab_size": len(self.words), **special_token_ids(self.words)}
        if not is_pretrained(system):
            return model_class(config_class(**fields)), self.words
        source, frozen = self.options.encoder_name_or_path, self.options.freeze_text_encoder
        model = model_class.from_encoder_pretrained(source, freeze_text_encoder=frozen, **fields)
        tokenizer, length = load_tokenizer(source), self.options.encoder_max_length
        longest = getattr(model.config.encoder_config, "max_position_embeddings", None)
        if length is not None and not 2 <= length <= (longest or length):
            raise ValueError(
                f"`encoder_max_length` must be from 2 to {longest}, which the encoder reads, got {length}."
            )
        tokenizer.model_max_length = self.options.max_length if length is None else length
        return model, tokenizer

    def settings(self, system: str, kind: type[RunArguments], **changes: Any) -> RunArguments:
        """Training settings, alike for all."""
        options = self.options
        rate = options.learning_rate
        if is_pretrained(system):
            own = options.encoder_learning_rate
            rate = own if own is not None else (rate if options.freeze_text_encoder else 8e-5)
        fixed: dict[str, Any] = {"output_dir": str(self.folder / "runs"), "eval_strategy": "no", "save_strategy": "no"}
        fixed |= {"report_to": "none", "logging_steps": 500, "learning_rate": rate, "disable_tqdm": True}
        return kind(per_device_train_batch_size=options.batch_size, **(fixed | changes))

    def training_changes(self, system: str) -> dict[str, Any]:
        """The training settings that a system comes with."""
        return {name: value for name, value in self.systems[system][1].items() if name in TRAINING}

    def rows(self, system: str, split: Dataset, model: Any, tokenizer: Any) -> Dataset:
        """A split, tokenized; for a pretrained encoder with the words to reconstruct, and if frozen, its vectors."""
        rows, frozen = tokenize_dataset(split, tokenizer), model.config.freeze_text_encoder
        if is_pretrained(system) or frozen:
            words = self.words if is_pretrained(system) else tokenizer
            rows = rows.add_column("labels", tokenize_dataset(split.select_columns(["text"]), words)["input_ids"][:])
        if frozen:  # computed once for all runs
            rows = rows.add_column("vectors", list(embed_dataset(split, model.eval(), tokenizer)))
        return rows

    def batches(
        self, system: str, split: Dataset, model: Any, tokenizer: Any
    ) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
        """A split as the model takes it, with row numbers."""
        rows, size = self.rows(system, split.select_columns(["text"]), model, tokenizer), 256
        for place, batch in enumerate(DataLoader(rows, size, collate_fn=RowCollator(tokenizer))):
            numbers = np.arange(place * size, min((place + 1) * size, len(rows)))
            yield numbers, {name: value.to(model.device) for name, value in batch.items()}

    def classify(self, system: str, model: Any, tokenizer: Any, **budget: Any) -> float:
        """Train a classifier and give its accuracy on the test rows."""
        train, test = (self.rows(system, split, model, tokenizer) for split in (self.data["train"], self.test))
        arguments = self.settings(system, RunArguments, prediction_loss_only=False, **budget)
        collate = RowCollator(tokenizer, with_labels=True)
        trainer = WholeCheckpointTrainer(
            model, arguments, collate, train, processing_class=tokenizer, compute_metrics=accuracy
        )
        trainer.train()
        return trainer.evaluate(test)["eval_accuracy"]

    def train(self, system: str, model: Any, tokenizer: Any, seed: int, checkpoints: Path) -> dict[str, Any]:
        """Train without labels, and look at the codes of validation rows on the way; go on from a checkpoint."""
        changes = {"max_steps": self.options.max_steps, "seed": seed} | self.training_changes(system)
        if self.options.curve_points:
            changes |= {
                "eval_strategy": "steps",
                "eval_steps": max(1, changes["max_steps"] // self.options.curve_points),
            }
            if self.options.checkpoints:
                changes |= {"output_dir": str(checkpoints), "save_strategy": "steps", "save_total_limit": 2}
                changes["save_steps"] = changes["eval_steps"]
        arguments = self.settings(system, TextVAETrainingArguments, **changes)
        validation = self.data["validation"].shuffle(seed=42)
        validation = validation.select(range(min(CURVE_ROWS, len(validation))))
        rows, looked = (
            self.rows(system, split.select_columns(["text"]), model, tokenizer)
            for split in (self.data["train"], validation)
        )
        trainer = TextVAETrainer(model, arguments, RowCollator(tokenizer), rows, looked, processing_class=tokenizer)
        trainer.add_callback(CollapseMonitor(trainer, CURVE_ROWS))
        saved = {int(folder.name.rpartition("-")[2]): str(folder) for folder in checkpoints.glob("checkpoint-*")}
        last = max((step for step in saved if step < changes["max_steps"]), default=None)
        trainer.train(None if last is None else saved[last])
        hold_target(model, held_out_batches(trainer, CURVE_ROWS))
        looks = [look for look in trainer.state.log_history if "eval_active_dims" in look]
        return {"curve": looks}

    def measure(self, system: str, model: Any, tokenizer: Any) -> dict[str, Any]:
        """Sparsity, gates, a linear probe on the code, and with a decoder the loss terms, on the test rows."""
        model.eval()
        splits: Any = [
            representations(model, self.batches(system, split, model, tokenizer), num_samples=1)
            for split in (self.data["train"], self.test)
        ]
        if not is_classifier(system):
            batches = self.batches(system, self.test, model, tokenizer)
            found = corpus_statistics(model, (inputs for _, inputs in batches))
        else:
            hoyer = AverageHoyer()
            hoyer.update(splits[1]["code"])
            found = {
                "average_hoyer_posterior_means": hoyer.compute()["average_hoyer"],
                "active_dims": splits[1]["code"].nnz / len(self.test),
            }
        labels = [np.array(split["label"][:]) for split in (self.data["train"], self.test)]
        if "gate" in splits[1]:
            activity = class_gate_activity(splits[1]["gate"], labels[1], len(self.names))
            rows = activity.round(4).tolist()
            found["class_activity"] = [[None if np.isnan(share) else share for share in row] for row in rows]
        for name in ("code", "gate", "samples"):
            if name in splits[0]:
                found[f"accuracy_{name}"] = probe_accuracy(splits[0][name], labels[0], splits[1][name], labels[1])
        return found

    def result(self, system: str, weight: float | None, seed: int) -> dict[str, Any]:
        """Train and measure once; read back if that is done."""
        trained = system not in self.systems
        name = f"{_fingerprint(system) if trained else system}{'' if weight is None else f'-{weight:.4g}'}-{seed}"
        path = self.folder / "runs" / f"{name}.json"
        if path.is_file():
            return read_json(path)
        write_json(path.with_name("settings.json"), self._check_settings([system]))
        print(f"{name} ...", flush=True)
        set_seed(seed)
        if trained:
            model, tokenizer = load_for_inference(system, AutoModelForPreTraining)
            model = model.float()  # of half precision a classifier would learn in that
        else:
            model, tokenizer = self.new_model(system, weight)
        found: dict[str, Any] = {"weight": weight, "latent_size": model.config.latent_size}
        if is_classifier(system):
            model.config.num_samples = 0
            changes = {"max_steps": self.options.max_steps, "seed": seed} | self.training_changes(system)
            found["accuracy"] = self.classify(system, model, tokenizer, **changes)
        elif not trained:
            found |= self.train(system, model, tokenizer, seed, path.with_suffix(""))
        found |= self.measure(system, model, tokenizer)
        if "accuracy" not in found:
            classifier = AutoModelForSequenceClassification.from_config(self.classifier_config(model.config))
            classifier.model.load_state_dict(model.model.state_dict())
            epochs = {"num_train_epochs": self.options.classifier_epochs, "learning_rate": 2e-3, "seed": seed}
            found["accuracy"] = self.classify(system, classifier, tokenizer, **epochs)
        if hasattr(model.config, "active_threshold"):
            found["threshold"] = model.config.active_threshold
        write_json(path, found)
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        del model
        gc.collect()
        return found

    def classifier_config(self, config: Any) -> Any:
        """The same model with a K = 5 classifier."""
        fields = config.to_dict() | {"id2label": None, "label2id": None, "freeze_encoder": True, "num_samples": 5}
        return type(config)(**fields, num_labels=len(self.names))

    def matched_weight(self, system: str, target: float) -> float | None:
        """The weight at which the test reconstruction comes nearest to `target`, by bisection of its logarithm."""
        if not self.systems[system][2] or self.options.search_runs == 0:
            return None
        low, high, best = 1e-3, 1.0, (float("inf"), 0.0)
        for _ in range(self.options.search_runs):
            weight = float(f"{np.sqrt(low * high):.3g}")
            loss = self.result(system, weight, 1)["reconstruction_loss"]
            best = min(best, (abs(loss - target), weight))
            low, high = (low, weight) if loss > target else (weight, high)
        return best[1]

    def table(self) -> list[dict[str, Any]]:
        """Every model's means and standard deviations over its seeds."""
        self.check_encoder()
        target, rows = None, []
        if self.options.search_runs and any(
            self.systems[name][2] for name in self.options.models if name in self.systems
        ):
            target = self.result(REFERENCE, None, 1)["reconstruction_loss"]
        for system in self.options.models:
            weight = self.matched_weight(system, target) if system in self.systems and target is not None else None
            runs = [self.result(system, weight, seed) for seed in range(1, self.options.seeds + 1)]
            names = sorted({name for found in runs for name, value in found.items() if isinstance(value, float | int)})
            values = {name: [found[name] for found in runs] for name in names if name != "weight"}
            row = {
                name: {"mean": float(np.mean(v)), "std": float(np.std(v, ddof=1)) if len(v) > 1 else None}
                for name, v in values.items()
            }
            rows.append({"model": system, "weight": weight, "seeds": len(runs), **row})
        return rows


def read_json(path: Path, name: str = "output_dir") -> Any:
    """What `write_json` wrote, at a path that the argument `name` says.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"`{name}` must hold whole results, got {str(path)!r}: {error}; delete it.") from error


def system_name(name: str) -> str:
    """The name of a system in the table, fields included, for any spelling of it; folders stay.

    Raises:
        ValueError: if there is no such system.
    """
    base, *changes = name.split() or [name]
    if base not in SYSTEMS and Path(name).is_dir():
        return name
    types = {model_type: other for other, model_type in reversed(MODEL_NAMES.items())}
    return " ".join([choose("models", base, SYSTEMS, types, "of folders of trained models, or of"), *changes])


def base_of(system: str) -> str:
    """Its name in `SYSTEMS`, without the fields that it comes with; nothing for the folder of a trained model."""
    name = next(iter(system.split()), "")
    return name if name in SYSTEMS else ""


def is_classifier(system: str) -> bool:
    """Whether a system is trained with labels, without a decoder."""
    return base_of(system) in CLASSIFIERS


def is_pretrained(system: str) -> bool:
    """Whether a system stands on a pretrained text encoder."""
    return base_of(system).startswith("B-") or base_of(system) == "BERT"


def find_system(name: str) -> System:
    """A system by its name and fields of its configuration, which are then not searched.

    Raises:
        ValueError: if there is no such system or field.
    """
    base, *changes = system_name(name).split()
    model_type, fixed, searched = SYSTEMS[base]
    names = {item.name for item in dataclasses.fields(hsvae_hf.MODELS[model_type][0])}
    names -= {item.name for item in dataclasses.fields(PreTrainedConfig)} | set(OWN_FIELDS)
    fields: dict[str, Any] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or key not in names | TRAINING.keys() or (base in CLASSIFIERS and key.startswith("kl_")):
            raise ValueError(f"`models` must give fields of {model_type} as name=value, got {change!r} in {name!r}.")
        fields[key] = yaml.safe_load(value)
        with contextlib.suppress(TypeError, ValueError):  # of 1e-3 YAML makes a string
            fields[key] = float(value) if isinstance(fields[key], str) else fields[key]
        kind = TRAINING.get(key)
        if kind is float and type(fields[key]) is int:
            fields[key] = float(value)
        if kind is not None and type(fields[key]) is not kind:
            raise ValueError(f"`models` must give {key} as {kind.__name__}, got {change!r} in {name!r}.")
    return model_type, fixed | fields, tuple(weight for weight in searched if weight not in fields)


def _fingerprint(folder: str) -> str:
    """Name of a trained model that tells it from others of that name, and from itself before another training."""
    path = Path(folder).resolve()
    if not any(path.glob("*.safetensors")):
        raise ValueError(f"`models` must be systems or folders of trained models, got {folder!r} without weights.")
    changed = max(file.stat().st_mtime_ns for file in path.glob("*.safetensors"))
    return f"{path.name}-{zlib.crc32(f'{path} {changed}'.encode()):08x}"


COLUMNS = {
    "reconstruction_loss": "reconstruction",
    "accuracy": "accuracy",
    "accuracy_code": "probe on the code",
    "accuracy_gate": "probe on the gate",
    "accuracy_samples": "probe on a draw",
    "average_hoyer_samples": "AH, samples",
    "average_hoyer_posterior_means": "AH, means",
    "active_dims": "active dims",
    "gate_std": "gate std",
    "switching_fraction": "switching",
    "mutual_information": "MI, nats",
}


def cell(value: dict[str, Any] | None, digits: int) -> str:
    """Mean and deviation, or a dash for what this model does not have."""
    if value is None:
        return "-"
    spread = "" if value["std"] is None else f" ± {value['std']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{spread}"


NOTES = (
    "Mean and standard deviation over the seeds. Reconstruction in nats per sentence, of the same words for all but "
    "folders of trained models, which decode their own. "
    "Average Hoyer does not compare across different numbers of dimensions. `weight`: of the costs, where it was "
    "searched to match HSVAE's reconstruction."
)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, and how to read it."""
    lines = ["| model | dims | weight | " + " | ".join(COLUMNS.values()) + " |"]
    lines.append("| --- " * (len(COLUMNS) + 3) + "|")
    for row in rows:
        cells = [cell(row.get(name), 1 if name in ("reconstruction_loss", "active_dims") else 3) for name in COLUMNS]
        weight = "-" if row["weight"] is None else f"{row['weight']:.3g}"
        dims = f"{row['latent_size']['mean']:.0f}"
        lines.append(f"| {row['model']} | {dims} | {weight} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", NOTES, ""])


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Accuracy and Average Hoyer per model, with deviations over seeds."""
    names = [Path(row["model"]).name for row in rows]
    figure = new_figure(figsize=(8, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    _bars(top, rows, {"accuracy": ("K = 5 classifier", "0.35"), "accuracy_code": ("probe on the code", "0.75")})
    samples, means = ("samples", "0.35"), ("means", "0.75")
    _bars(bottom, rows, {"average_hoyer_samples": samples, "average_hoyer_posterior_means": means})
    top.set(title=title, ylabel="accuracy")
    bottom.set_ylabel("Average Hoyer")
    bottom.set_xticks(range(len(names)), names, rotation=30, ha="right")
    figure.savefig(path, dpi=150)


def _bars(axis: Any, rows: list[dict[str, Any]], series: dict[str, tuple[str, str]]) -> None:
    for place, (name, (label, grey)) in enumerate(series.items()):
        shown = [(index, row[name]) for index, row in enumerate(rows) if name in row]
        positions = [index + 0.4 * (place - 0.5) for index, _ in shown]
        spread = [value["std"] or 0.0 for _, value in shown]
        axis.bar(
            positions, [value["mean"] for _, value in shown], 0.38, yerr=spread, color=grey, label=label, capsize=2
        )
    axis.legend(frameon=False, ncols=2)


def compare(options: CompareArguments) -> dict[str, Any]:
    """Run what is missing, then write `comparison.json`, `.md` and `.png` to the output folder.

    Returns:
        What `comparison.json` holds: `settings`, `models` (a row each) and `tfidf`, its accuracy on the same rows,
        their whole text.

    Raises:
        ImportError: without the extra `train`.
        ValueError: for an unknown model, a number below 1, or data without labels.
    """
    require("accelerate", "matplotlib", "sklearn")
    for name in ("seeds", "max_steps", "classifier_epochs", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(options, name)}; choose a positive number.")
    if options.search_runs < 0:
        raise ValueError(f"`search_runs` must be at least 0, got {options.search_runs}; 0 leaves the weights.")
    comparison = Comparison(options)
    rows = comparison.table()
    result: dict[str, Any] = {"settings": vars(options), "models": rows}
    result["tfidf"] = tfidf_accuracy(comparison.data["train"], comparison.test)
    with staged_folder(options.output_dir) as folder:
        (folder / "comparison.json").write_text(json.dumps(result, indent=2) + "\n")
        (folder / "comparison.md").write_text(markdown(rows))
        title = f"{Path(options.dataset).name}, latent size {options.latent_size}, mean of {options.seeds} seeds"
        draw(rows, folder / "comparison.png", title)
    return result
