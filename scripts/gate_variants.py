"""Rows of the gates' study that no configuration gives: relaxed gates, an annealed temperature, closed beginnings."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

if __name__ == "__main__":  # the imports take seconds: a signal ends them without a traceback
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

from unittest.mock import patch

import torch
from torch import Tensor

from hsvae_hf import modeling_hsvae
from hsvae_hf.arguments import parse
from hsvae_hf.cli import run
from hsvae_hf.distributions import sample_binary_concrete
from hsvae_hf.files import staged_folder
from hsvae_hf.modeling_hsvae import GateLinear, HSVAEHead
from hsvae_hf.reproduction import STUDIED, ReproduceArguments, comparison, results, shown, spread, table

VARIANTS = {
    "relaxed": "gates between 0 and 1 in training",
    "annealed": "Concrete temperature from 2 to 0.1",
    "closed": "gates begin as closed as the prior",
}


@dataclass
class Options:
    """On what, how often."""

    dataset: str = field(metadata={"help": "Short name, Hub id or local path, with labels."})
    output_dir: str = field(metadata={"help": "Folder of the table and of finished runs, as for reproduce.py."})
    latent_size: int = field(default=64, metadata={"help": "Latent dimensions."})
    seeds: int = field(default=1, metadata={"help": "Runs of each."})


@contextmanager
def variant(name: str) -> Iterator[None]:
    """HSVAE with such gates while this lasts."""
    done = 0.0

    def anneal(self: HSVAEHead, progress: float) -> None:
        nonlocal done
        done = progress

    def sample(logits: Tensor, temperature: float) -> Tensor:
        temperature = 2.0 * (0.1 / 2.0) ** done if "annealed" in name else temperature
        if "relaxed" not in name or not torch.is_grad_enabled():
            return sample_binary_concrete(logits, temperature)
        uniform = torch.rand_like(logits).clamp(1e-7, 1 - 1e-7)
        return torch.sigmoid((logits + torch.logit(uniform)) / temperature)

    def gate(features: int, size: int, start: float, low: float) -> GateLinear:
        return GateLinear(features, size, 0.2 if name == "closed" else start, low)

    changed = {"sample_binary_concrete": sample, "GateLinear": gate}
    with patch.multiple(modeling_hsvae, **changed), patch.object(HSVAEHead, "anneal", anneal):
        yield


def main() -> None:
    """Run what is missing, write the table."""
    options = parse(Options, __doc__)
    if options.seeds < 1:
        raise ValueError(f"`seeds` must be at least 1, got {options.seeds}; choose a positive number.")
    shared = ReproduceArguments("gates", [options.dataset], options.output_dir)
    numbers = []
    for name, meaning in VARIANTS.items():
        for system in ("HSVAE", "HSVAE-balanced"):
            made = comparison(shared, options.dataset, options.latent_size, f"study-{name}", models=[system])
            with variant(name):
                runs = results(made, system, options.seeds)
            found = {key: spread(runs, key) for key in STUDIED}
            numbers.append({"model": system, "gates": meaning, "seeds": len(runs)} | found)
    lines = [
        {"model": f"{row['model']}, {row['gates']}"}
        | {label: shown(row[key], digits) for key, (label, digits) in STUDIED.items()}
        for row in numbers
    ]
    with staged_folder(options.output_dir) as folder:
        (folder / "gate_variants.json").write_text(json.dumps(numbers, indent=1) + "\n")
        (folder / "gate_variants.md").write_text(table(lines) + "\n")
    print(table(lines))


if __name__ == "__main__":
    run(main)
