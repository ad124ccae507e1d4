"""Sparse codes of sentence vectors: this package against sentence-transformers' CSR, by number of non-zeros."""

import itertools
import json
import signal
import sys
import tempfile

if __name__ == "__main__":  # the imports take seconds: a signal ends them without a traceback
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from transformers import set_seed

import hsvae_hf
from hsvae_hf.active_dims import calibrate_threshold, fit_code_scale
from hsvae_hf.arguments import choose, parse
from hsvae_hf.batching import VectorDataset, collate_vectors
from hsvae_hf.cli import run
from hsvae_hf.data import labelled, load_text_dataset
from hsvae_hf.embedding_cache import embed_dataset, load_encoder_tokenizer
from hsvae_hf.encoding import encode_vectors
from hsvae_hf.extras import require
from hsvae_hf.files import staged_folder, write_json
from hsvae_hf.options import HEAD_DEFAULTS, VECTOR_DEFAULTS
from hsvae_hf.plots import new_figure
from hsvae_hf.probes import probe_accuracy
from hsvae_hf.statistics import neighbours_kept
from hsvae_hf.trainer import TextVAETrainer
from hsvae_hf.training_arguments import TextVAETrainingArguments

BATCH_SIZE = 128  # half of train.py's, and two thirds of its steps, so that a whole table takes hours, not days
CSR_LEARNING_RATE = 1e-3  # better than 3e-3 on Yahoo at 16 non-zeros
STYLES = {"HSVAE": "o-", "CSR": "s--", "VSC": "^:", "SDLGM": "v-."}
COLUMNS = {
    "active_dims": "non-zeros",
    "accuracy": "accuracy",
    "neighbours_kept": "neighbours kept",
    "squared_error": "squared error",
    "dead_dims": "dead dimensions",
}


class CSRModel(torch.nn.Module):
    """What sentence-transformers' CSRLoss asks of a SparseEncoder: its SparseAutoEncoder, and dot products."""

    def __init__(self, autoencoder: torch.nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The autoencoder's outputs."""
        return self.autoencoder(features)

    def similarity(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Dot products."""
        return a @ b.T


@dataclass
class Options:
    """What to compare, on what."""

    dataset: list[str] = field(metadata={"help": "Short names, Hub ids or local paths, with labels."})
    encoder_name_or_path: str = field(metadata={"help": "The frozen sentence encoder."})
    output_dir: str = field(
        metadata={"help": "Folder of the table, the figure, and finished runs, which are not repeated."}
    )
    dataset_config_name: str | None = field(
        default=None,
        metadata={"aliases": ["--dataset_config"], "help": "Configuration of a data set that has several."},
    )
    systems: list[str] = field(default_factory=lambda: ["HSVAE", "CSR", "VSC", "SDLGM"], metadata={"help": "Which."})
    latent_sizes: list[int] = field(default_factory=lambda: [512], metadata={"help": "Widths of the codes."})
    active_dims: list[int] = field(default_factory=lambda: [4, 8, 16, 32, 64], metadata={"help": "Non-zeros wanted."})
    seeds: int = field(default=3, metadata={"help": "Runs of each."})
    max_steps: int = field(default=1000, metadata={"help": "Training steps of 128 rows."})
    max_train_samples: int = field(default=8000, metadata={"help": "Rows to train on, codes and classifier."})
    max_samples: int = field(default=2500, metadata={"help": "Rows to test on."})
    max_length: int = field(default=128, metadata={"help": "Tokens per sentence."})


@dataclass
class Rows:
    """Vectors `(rows, size)`, and classes where they are needed; thresholds are set on validation rows."""

    train: np.ndarray
    train_labels: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray

    def checksum(self) -> str:
        """What tells these rows from others, of another encoder, say."""
        parts = (self.train, self.train_labels, self.validation, self.test, self.test_labels)
        return f"{zlib.crc32(b''.join(part.tobytes() for part in parts)):08x}"


Coder = Callable[[np.ndarray], tuple[sparse.csr_matrix, float]]  # vectors to codes, and their squared error


def load_rows(options: Options, dataset: str) -> Rows:
    """The vectors of a data set, computed once."""
    model = hsvae_hf.HSVAEForPreTraining.from_encoder_pretrained(
        options.encoder_name_or_path, decoder_type="vector", latent_size=1
    )
    tokenizer = load_encoder_tokenizer(options.encoder_name_or_path, options.max_length)
    limits = {"max_train_samples": options.max_train_samples, "max_samples": options.max_samples}
    splits = load_text_dataset(dataset, dataset_config_name=options.dataset_config_name, **limits)
    names = ("train", "validation", "test")
    splits = {name: labelled(splits[name]) for name in names if name in splits}
    if any(splits.get(name) is None for name in names):
        raise ValueError(f"`dataset` must have a test split and labels, got {dataset!r} without; choose another.")
    train, validation, test = (embed_dataset(splits[name], model.eval(), tokenizer) for name in names)
    labels = [np.array(splits[name]["label"][:]) for name in ("train", "test")]
    return Rows(train, labels[0], validation, test, labels[1])


def train_own(model_type: str, rows: Rows, size: int, wanted: int, seed: int, steps: int) -> Coder:
    """Train a model of this package with the weights and rates of `train.py --decoder_type vector`."""
    set_seed(seed)
    config_class, _, model_class, _ = hsvae_hf.MODELS[model_type]
    # No threshold gives VSC's codes so many: its gates are fully on or off.
    own = {"hsvae": {"target_active_dims": wanted}, "sdlgm": {"sparsity_cap": wanted}}
    own["vsc"] = {"prior_activity": wanted / size, "penalty_weight": 1.0, "max_active_dims": wanted}
    names = ("z_kl_weight", "gamma_kl_weight", "similarity_weight", "tie_word_embeddings")
    fields = {name: VECTOR_DEFAULTS[name] for name in names} | HEAD_DEFAULTS.get(model_type, {}) | own[model_type]
    fields |= {"encoder_type": "vector", "decoder_type": "vector", "vector_size": rows.train.shape[1]}
    model = model_class(config_class(**fields, latent_size=size))
    model.model.standardizer.fit(torch.from_numpy(rows.train))
    settings = ("learning_rate", "lr_scheduler_type", "weight_decay", "kl_annealing")
    settings += ("train_sampling_strategy",)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TextVAETrainingArguments(
            output_dir=folder,
            max_steps=steps,
            kl_warmup_steps=max(1, 3 * steps // 10),
            per_device_train_batch_size=BATCH_SIZE,
            eval_strategy="no",
            save_strategy="no",
            report_to="none",
            seed=seed,
            disable_tqdm=True,
            logging_steps=steps,
            **{name: VECTOR_DEFAULTS[name] for name in settings},
        )
        TextVAETrainer(model, arguments, collate_vectors, VectorDataset(rows.train)).train()
    model.eval()
    if model_type == "hsvae":
        calibrate_threshold(model, None, rows.validation, wanted)
    fit_code_scale(model, rows.train)

    def code(vectors: np.ndarray) -> tuple[sparse.csr_matrix, float]:
        with torch.inference_mode():
            posterior = model.model(vectors=torch.from_numpy(vectors))
            latents = posterior.sparse_embedding / model.model.code_scale
            error = (model.decoder.mean(latents) - posterior.features).square().mean()
        return encode_vectors(model, vectors), float(error)

    return code


def train_csr(rows: Rows, size: int, wanted: int, seed: int, steps: int) -> Coder:
    """Train sentence-transformers' SparseAutoEncoder with its CSRLoss; a sentence is its own positive."""
    from sentence_transformers.sparse_encoder.losses import CSRLoss
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

    set_seed(seed)
    train = torch.from_numpy(rows.train)
    mean, std = train.mean(0), train.std(0)
    autoencoder = SparseAutoEncoder(train.shape[1], hidden_dim=size, k=wanted, k_aux=min(512, size))
    loss = CSRLoss(CSRModel(autoencoder))
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=CSR_LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    autoencoder.train()
    for _ in range(steps):
        batch = (train[torch.randint(len(train), (BATCH_SIZE,), generator=generator)] - mean) / std
        total = sum(loss([{"sentence_embedding": batch}, {"sentence_embedding": batch}]).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    autoencoder.eval()

    def code(vectors: np.ndarray) -> tuple[sparse.csr_matrix, float]:
        with torch.inference_mode():
            features = (torch.from_numpy(vectors) - mean) / std
            codes = autoencoder({"sentence_embedding": features})["sentence_embedding"]
            error = (autoencoder.decode(codes) - features).square().mean()
        return sparse.csr_matrix(codes.numpy()), float(error)

    return code


def measure(rows: Rows, code: Coder) -> dict[str, float]:
    """Everything in the table."""
    (train, _), (test, error) = code(rows.train), code(rows.test)
    return {
        "active_dims": test.nnz / test.shape[0],
        "accuracy": probe_accuracy(train, rows.train_labels, test, rows.test_labels),
        "neighbours_kept": neighbours_kept(rows.test, test),
        "squared_error": error,
        "dead_dims": int((train.getnnz(axis=0) == 0).sum()),
    }


def run_all(options: Options, dataset: str, rows: Rows) -> list[dict[str, Any]]:
    """Every system, width, number of non-zeros and seed; what is done is read from its file."""
    folder = Path(options.output_dir) / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    grid = itertools.product(range(1, options.seeds + 1), options.latent_sizes, options.active_dims, options.systems)
    for seed, size, wanted, system in grid:
        settings = {"dataset": Path(dataset).name, "system": system, "latent_size": size, "wanted": wanted}
        settings |= {"seed": seed, "max_steps": options.max_steps, "rows": len(rows.train), "vectors": rows.checksum()}
        path = folder / ("-".join(str(value) for value in settings.values()) + ".json")
        if not path.is_file():
            arguments = (rows, size, wanted, seed, options.max_steps)
            coder = train_csr(*arguments) if system == "CSR" else train_own(system.lower(), *arguments)
            write_json(path, settings | measure(rows, coder))
        results.append(json.loads(path.read_text()))
        print(json.dumps(results[-1]), flush=True)
    dense = probe_accuracy(rows.train, rows.train_labels, rows.test, rows.test_labels)
    return [*results, {"dataset": Path(dataset).name, "system": "dense", "accuracy": dense}]


def summarise(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, a row for each data set, width, number of non-zeros and system."""
    keys = ("dataset", "latent_size", "wanted", "system")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(result.get(key) for key in keys), []).append(result)
    summary = []
    for group, members in groups.items():
        row: dict[str, Any] = dict(zip(keys, group, strict=True)) | {"seeds": len(members)}
        for name in COLUMNS:
            values = [member[name] for member in members if name in member]
            if values:
                row |= {
                    name: float(np.mean(values)),
                    f"{name}_std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                }
        summary.append(row)
    return summary


def markdown(summary: list[dict[str, Any]]) -> str:
    """The table."""
    head = ["data", "width", "system", "seeds", *COLUMNS.values()]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in summary:
        cells = [row["dataset"], row["latent_size"] or "", row["system"], row["seeds"]]
        for name in COLUMNS:
            digits = 1 if name in ("active_dims", "dead_dims") else 3
            spread = f" ± {row[f'{name}_std']:.{digits}f}" if row["seeds"] > 1 and name in row else ""
            cells.append(f"{row[name]:.{digits}f}{spread}" if name in row else "")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def plot(summary: list[dict[str, Any]], path: Path) -> None:
    """Accuracy and neighbours kept by number of non-zeros, a column for each data set and width."""
    coded = [row for row in summary if row["system"] != "dense"]
    panels = sorted({(row["dataset"], row["latent_size"]) for row in coded})
    figure = new_figure(figsize=(3.2 * len(panels), 5.6), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, sharex=True)
    for column, (dataset, size) in enumerate(panels):
        for line, name in enumerate(("accuracy", "neighbours_kept")):
            axis = axes[line, column]
            for system, style in STYLES.items():
                rows = [
                    row
                    for row in coded
                    if (row["dataset"], row["latent_size"], row["system"]) == (dataset, size, system)
                ]
                x, y = ([row[key] for row in rows] for key in ("active_dims", name))
                spread = [row[f"{name}_std"] or 0.0 for row in rows]
                if rows:
                    axis.errorbar(x, y, spread, fmt=style, label=system, capsize=2, markersize=4)
            if name == "accuracy":
                dense = [row[name] for row in summary if (row["dataset"], row["system"]) == (dataset, "dense")]
                axis.axhline(dense[0], color="grey", linewidth=0.8, label="dense")
                axis.set_title(f"{dataset}, {size} dimensions")
            axis.set_xscale("log", base=2)
            axis.set_ylabel(COLUMNS[name])
        axes[1, column].set_xlabel("non-zeros per sentence")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train what is not there yet; write the table and the figure."""
    options = parse(Options, __doc__)
    require("accelerate", "matplotlib", "sklearn")
    require("sentence_transformers", extra="dev")
    torch.set_flush_denormal(True)
    options.systems = [choose("systems", system, STYLES, rule="of") for system in options.systems]
    most = min(options.latent_sizes)
    if options.seeds < 1 or not 0 < min(options.active_dims) <= max(options.active_dims) < most:
        raise ValueError(f"`active_dims` must be from 1 to {most - 1}, and `seeds` at least 1; choose such.")
    results = [row for name in options.dataset for row in run_all(options, name, load_rows(options, name))]
    summary = summarise(results)
    with staged_folder(options.output_dir) as folder:
        (folder / "vectors.json").write_text(json.dumps(summary, indent=1) + "\n")
        (folder / "vectors.md").write_text(markdown(summary))
        plot(summary, folder / "vectors.png")
    print(markdown(summary))


if __name__ == "__main__":
    run(main)
