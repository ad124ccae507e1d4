"""Comparison of systems on one data set under one budget: a table, and a picture in the form of the paper's Figure 2.

    python scripts/experiments/compare.py --dataset yahoo --models HSVAE VAE MAT-VAE --output_dir runs/yahoo

A run of the default size takes some minutes on two cores: 1,000 steps of 64 sentences, then the K = 5 classifier.
Finished runs are kept; the same command goes on where it was interrupted.
"""

import json
from pathlib import Path
from typing import Any

from comparison import CompareArguments, Comparison
from figures import accuracy_and_hoyer
from tables import NOTES, Spread, cells, spreads, table

from hsvae_hf.cli import run
from hsvae_hf.command_line import parse
from hsvae_hf.console import finish, say
from hsvae_hf.extras import require
from hsvae_hf.files import staged_folder
from hsvae_hf.probes import tfidf_accuracy


def as_json(value: Any) -> Any:
    """A spread with the names of its parts."""
    return value._asdict() if isinstance(value, Spread) else value


def compare(options: CompareArguments) -> dict[str, Any]:
    """Run what is missing, then write `comparison.json`, `.md` and `.png` to the output folder.

    Returns:
        What `comparison.json` holds: `settings`, `models` (a row each) and `tfidf`, its accuracy on the same rows,
        their whole text.

    Raises:
        ImportError: without the extra `train`.
        ValueError: for data without labels, runs of other settings, or an encoder that cannot be read.
    """
    require("matplotlib", "sklearn")
    comparison = Comparison(options)
    rows = []
    for system in comparison.systems:
        runs = comparison.results(system)
        numbers = [name for name, value in runs[0].items() if isinstance(value, float | int)]
        rows.append({"model": system.name} | spreads(runs, numbers))
    models = [{name: as_json(value) for name, value in row.items()} for row in rows]
    tfidf = tfidf_accuracy(comparison.data["train"], comparison.data["test"])
    result: dict[str, Any] = {"settings": vars(options), "models": models, "tfidf": tfidf}
    lines = [{"model": row["model"], "dims": f"{row['latent_size'].mean:.0f}"} | cells(row) for row in rows]
    title = f"{Path(options.dataset).name}, mean of {options.seeds} seeds"
    bars = [row | {"dataset": title, "latent_size": options.latent_size} for row in rows]
    with staged_folder(options.output_dir) as folder:
        (folder / "comparison.json").write_text(json.dumps(result, indent=2) + "\n")
        (folder / "comparison.md").write_text(f"{table(lines)}\n\n{NOTES}\n")
        accuracy_and_hoyer(bars).savefig(folder / "comparison.png", dpi=150)
    return result


def main() -> None:
    """Run what is missing, write the table and the picture, print the table."""
    options = parse(CompareArguments, __doc__.partition("\n")[0])
    say(
        f"compare.py: {len(options.models)} models on {options.dataset}, to {options.output_dir}",
        f"training: {options.max_steps:,} steps of {options.batch_size:,} rows, {options.seeds} runs of each",
    )
    result = compare(options)
    print((Path(options.output_dir) / "comparison.md").read_text())
    print(f"TF-IDF with logistic regression on the same rows, untruncated: {result['tfidf']:.3f}")
    finish(f"{options.output_dir}: comparison.md and .json, comparison.png; finished runs are in runs/", {})


if __name__ == "__main__":
    run(main)
