"""Sparse codes of sentence vectors: this package against sentence-transformers' CSR, by number of non-zeros.

    python scripts/experiments/compare_vectors.py --dataset yahoo --encoder_name_or_path $MINILM --output_dir runs/vec

This makes the table and the picture of `model_cards/vectors`. A data set has 60 runs, which take hours on two cores.
Finished runs are kept.
"""

import itertools
import json
import zlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from comparison import encoder_vectors, load_labelled
from finished_runs import Runs
from peers import Peer, train_peer
from pictures import lines, panels, powers_of_two
from tables import MEASURES, Spread, cells, spreads, table

from hsvae_hf.cli import run
from hsvae_hf.command_line import choose, parse
from hsvae_hf.embedding_cache import load_encoder_tokenizer
from hsvae_hf.extras import require
from hsvae_hf.files import staged_folder
from hsvae_hf.probes import probe_accuracy
from hsvae_hf.statistics import neighbours_kept

SYSTEMS = ["HSVAE", "CSR", "VSC", "SDLGM"]
BATCH_SIZE = 128  # half of train.py's, and two thirds of its steps, so that a whole table takes hours, not days
CSR = {"inputs": "standardised", "learning_rate": 1e-3}  # better than 3e-3 on Yahoo at 16 non-zeros
COLUMNS = ("active_dims", "accuracy", "neighbours_kept", "squared_error", "dead_dims")


@dataclass
class VectorsArguments:
    """What to compare, on what."""

    dataset: list[str] = field(metadata={"help": "Short names, Hub ids or local paths, with labels."})
    encoder_name_or_path: str = field(metadata={"help": "The frozen sentence encoder."})
    output_dir: str = field(metadata={"help": "Folder of the table, the figure and every run; finished runs are kept."})
    dataset_config_name: str | None = field(
        default=None,
        metadata={"aliases": ["--dataset_config"], "help": "Configuration of a data set that has several."},
    )
    systems: list[str] = field(default_factory=lambda: list(SYSTEMS), metadata={"help": "Which."})
    latent_sizes: list[int] = field(default_factory=lambda: [512], metadata={"help": "Widths of the codes."})
    active_dims: list[int] = field(default_factory=lambda: [4, 8, 16, 32, 64], metadata={"help": "Non-zeros wanted."})
    seeds: int = field(default=3, metadata={"help": "Runs of each."})
    max_steps: int = field(default=1000, metadata={"help": "Training steps of 128 rows."})
    max_train_samples: int = field(default=8000, metadata={"help": "Rows to train on, codes and classifier."})
    max_samples: int = field(default=2500, metadata={"help": "Rows to test on."})
    max_length: int = field(default=128, metadata={"help": "Tokens per sentence."})


class Rows(NamedTuple):
    """Vectors `(rows, size)` and classes `(rows,)` by split; validation rows set thresholds."""

    vectors: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]

    def checksum(self) -> str:
        """What tells these rows from others, of another encoder for instance."""
        vectors, labels = self.vectors, self.labels
        parts = (vectors["train"], labels["train"], vectors["validation"], vectors["test"], labels["test"])
        return f"{zlib.crc32(b''.join(part.tobytes() for part in parts)):08x}"


def load_rows(options: VectorsArguments, dataset: str) -> Rows:
    """The vectors of a data set."""
    limits = {"max_train_samples": options.max_train_samples, "max_samples": options.max_samples}
    data = load_labelled(dataset, options.dataset_config_name, **limits)
    tokenizer = load_encoder_tokenizer(options.encoder_name_or_path, options.max_length)
    vectors = encoder_vectors(data, options.encoder_name_or_path, tokenizer)
    return Rows(vectors, {name: np.array(split["label"][:]) for name, split in data.items()})


def train_system(rows: Rows, system: str, size: int, wanted: int, seed: int, steps: int) -> Peer:
    """Train a system, with the weights and rates that `fit` has for vectors, or those of `CSR`."""
    settings = CSR if system == "CSR" else {"validation": rows.vectors["validation"]}
    return train_peer(system, rows.vectors["train"], size, wanted, seed, steps, BATCH_SIZE, **settings)


def train_and_measure(rows: Rows, settings: dict[str, Any]) -> dict[str, Any]:
    """The result of a run: its settings, and every number in the table."""
    peer = train_system(rows, *(settings[name] for name in ("system", "latent_size", "wanted", "seed", "max_steps")))
    train, test = (peer.encode(rows.vectors[split]) for split in ("train", "test"))
    residual = (peer.decode(test) - rows.vectors["test"]) / rows.vectors["train"].std(0)
    return settings | {
        "active_dims": test.nnz / test.shape[0],
        "accuracy": probe_accuracy(train, rows.labels["train"], test, rows.labels["test"]),
        "neighbours_kept": neighbours_kept(rows.vectors["test"], test),
        "squared_error": float(np.square(residual).mean()),
        "dead_dims": int((train.getnnz(axis=0) == 0).sum()),
    }


def summarise(options: VectorsArguments, dataset: str) -> list[dict[str, Any]]:
    """Rows of the table: one for each width, number of non-zeros and system, and one for the vectors themselves."""
    rows, runs = load_rows(options, dataset), Runs(options.output_dir)
    name, checksum = Path(dataset).name, rows.checksum()
    summary = []
    for size, wanted, system in itertools.product(options.latent_sizes, options.active_dims, options.systems):
        results = []
        for seed in range(1, options.seeds + 1):
            settings = {"dataset": name, "system": system, "latent_size": size, "wanted": wanted, "seed": seed}
            settings |= {"max_steps": options.max_steps, "rows": len(rows.vectors["train"]), "vectors": checksum}
            file_name = "-".join(map(str, settings.values()))
            results.append(runs.result(file_name, partial(train_and_measure, rows, settings)))
        row = {"dataset": name, "latent_size": size, "wanted": wanted, "system": system}
        summary.append(row | spreads(results, COLUMNS))
    vectors, labels = rows
    accuracy = Spread(probe_accuracy(vectors["train"], labels["train"], vectors["test"], labels["test"]))
    dense = {"dataset": name, "latent_size": None, "wanted": None, "system": "dense", "seeds": 1}
    return [*summary, dense | {"accuracy": accuracy}]


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row with a field for each mean and each deviation."""
    spreads = {name: value for name, value in row.items() if isinstance(value, Spread)}
    deviations = {f"{name}_std": value.std for name, value in spreads.items()}
    return row | {name: value.mean for name, value in spreads.items()} | deviations


def markdown(summary: list[dict[str, Any]]) -> str:
    """The table."""
    heads = {"data": "dataset", "width": "latent_size", "system": "system", "seeds": "seeds"}
    return table(
        [{title: str(row[name] or "-") for title, name in heads.items()} | cells(row, COLUMNS) for row in summary]
    )


def draw(summary: list[dict[str, Any]], path: Path) -> None:
    """Accuracy and neighbours kept by number of non-zeros, a column for each data set and width."""
    dense = {row["dataset"]: row["accuracy"].mean for row in summary if row["system"] == "dense"}
    coded = [row | {"place": row["active_dims"].mean} for row in summary if row["system"] != "dense"]
    columns = sorted({(row["dataset"], row["latent_size"]) for row in coded})
    figure, axes = panels(2, len(columns), width=3.2, sharex=True)
    for (line, column), axis in np.ndenumerate(axes):
        (dataset, size), measure = columns[column], ("accuracy", "neighbours_kept")[line]
        rows = [row for row in coded if (row["dataset"], row["latent_size"]) == (dataset, size)]
        lines(axis, rows, "system", "place", measure)
        axis.set(xlabel="non-zeros per sentence", ylabel=MEASURES[measure][0], title=f"{dataset}, {size} dimensions")
        powers_of_two(axis, "x")
        if measure == "accuracy":
            axis.axhline(dense[dataset], color="grey", linewidth=0.8, label="dense")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train what is not there yet; write the table and the figure."""
    options = parse(VectorsArguments, __doc__.partition("\n")[0])
    require("matplotlib", "sklearn")
    require("sentence_transformers", extra="dev")
    torch.set_flush_denormal(True)
    options.systems = [choose("systems", system, SYSTEMS, rule="of") for system in options.systems]
    most = min(options.latent_sizes)
    if options.seeds < 1 or not 0 < min(options.active_dims) <= max(options.active_dims) < most:
        raise ValueError(f"`active_dims` must be from 1 to {most - 1}, and `seeds` at least 1; choose such.")
    summary = [row for dataset in options.dataset for row in summarise(options, dataset)]
    with staged_folder(options.output_dir) as folder:
        (folder / "vectors.json").write_text(json.dumps([as_json(row) for row in summary], indent=1) + "\n")
        (folder / "vectors.md").write_text(markdown(summary) + "\n")
        draw(summary, folder / "vectors.png")
    print(markdown(summary))


if __name__ == "__main__":
    run(main)
