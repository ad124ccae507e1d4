"""Sparse codes of sentence vectors that others publish, behind one interface; and their tuning.

    python scripts/experiments/peers.py tune --vectors train.npy --validation val.npy --output runs/tune.json

`train_peer("TopK", vectors, width=512, active_dims=16, seed=1, steps=1500)` gives a `Peer` that encodes and decodes.
`tune` tries the settings of `TRIES` and chooses by the neighbours that the codes keep on validation rows. `DEFAULTS`
are what it chose.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sparse_autoencoders
import torch
from peer_coders import Autoencoder, OwnModel, PrincipalComponents, SignProjections
from scipy import sparse

from hsvae_hf.cli import run
from hsvae_hf.command_line import choose, parse
from hsvae_hf.evaluation_scores import cosine, neighbour_scores, reference_neighbours
from hsvae_hf.files import claimed_file, load_vectors, write_json

# What `tune` chose from; the last two of eight were added when a rate of 3e-3 was the best of six.
TRIES: dict[str, list[dict[str, Any]]] = {
    "CSR": [
        {"inputs": "standardised", "learning_rate": 1e-3},
        {"inputs": "centred", "learning_rate": 1e-3},
        {"inputs": "centred", "learning_rate": 3e-3},
        {"inputs": "centred", "learning_rate": 1e-3, "contrast_weight": 0.1},
        {"inputs": "centred", "learning_rate": 1e-3, "temperature": 10.0},
        {"inputs": "raw", "learning_rate": 1e-3},
        {"inputs": "centred", "learning_rate": 1e-2},
        {"inputs": "centred", "learning_rate": 3e-3, "contrast_weight": 0.1},
    ],
    "CSRv2": [
        {"inputs": "standardised", "learning_rate": 1e-3},
        {"inputs": "centred", "learning_rate": 1e-3},
        {"inputs": "centred", "learning_rate": 3e-3},
        {"inputs": "centred", "learning_rate": 1e-3, "contrast_weight": 1.0},
        {"inputs": "centred", "learning_rate": 1e-3, "contrast_weight": 0.01},
        {"inputs": "raw", "learning_rate": 1e-3},
        {"inputs": "centred", "learning_rate": 1e-2},
        {"inputs": "centred", "learning_rate": 3e-3, "contrast_weight": 1.0},
    ],
    "TopK": [
        {"inputs": "standardised", "learning_rate": 1e-3},
        {"inputs": "centred", "learning_rate": 1e-3},
        {"inputs": "centred", "learning_rate": 3e-3},
        {"inputs": "centred", "learning_rate": 5e-4},
        {"inputs": "centred", "learning_rate": 1e-3, "aux_weight": 0.1},
        {"inputs": "raw", "learning_rate": 1e-3},
        {"inputs": "centred", "learning_rate": 1e-2},
        {"inputs": "standardised", "learning_rate": 3e-3},
    ],
    "BatchTopK": [
        {"inputs": "standardised", "learning_rate": 1e-3},
        {"inputs": "centred", "learning_rate": 1e-3},
        {"inputs": "centred", "learning_rate": 3e-3},
        {"inputs": "centred", "learning_rate": 5e-4},
        {"inputs": "centred", "learning_rate": 1e-3, "aux_weight": 0.1},
        {"inputs": "raw", "learning_rate": 1e-3},
        {"inputs": "centred", "learning_rate": 1e-2},
        {"inputs": "standardised", "learning_rate": 3e-3},
    ],
    "Matryoshka": [
        {"inputs": "centred", "learning_rate": 3e-3},
        {"inputs": "centred", "learning_rate": 1e-2},
        {"inputs": "standardised", "learning_rate": 3e-3},
        {"inputs": "centred", "learning_rate": 3e-3, "prefixes": (1 / 4, 1 / 2, 1.0)},
        {"inputs": "centred", "learning_rate": 3e-3, "prefixes": (1 / 2, 1.0)},
        {"inputs": "centred", "learning_rate": 3e-3, "aux_weight": 0.1},
    ],
    "JumpReLU": [
        {"inputs": "centred", "learning_rate": 1e-3},
        {"inputs": "centred", "learning_rate": 3e-3},
        {"inputs": "centred", "learning_rate": 1e-2},
        {"inputs": "standardised", "learning_rate": 3e-3},
        {"inputs": "centred", "learning_rate": 3e-3, "bandwidth": 0.2},
        {"inputs": "centred", "learning_rate": 3e-3, "bandwidth": 1.0},
    ],
    "VSC": [{}, {"learning_rate": 3e-3}],
    "SDLGM": [{}, {"learning_rate": 3e-3}],
    "PCA-largest": [{}, {"whiten": True}],
    "PCA": [{}, {"whiten": True}],
    "Signs": [{}],
}
# The best of the tries, trained for 600 steps of 256 rows; the best then for 1,500. 512 wide, 16 non-zeros, one seed;
# MiniLM vectors of 20,000 rows of general text; judged on 3,000 others, on 2,000 of Banking77 and on 2,000 of Yelp.
DEFAULTS: dict[str, dict[str, Any]] = {
    "CSR": {"inputs": "centred", "learning_rate": 3e-3, "contrast_weight": 0.1},
    "CSRv2": {"inputs": "centred", "learning_rate": 1e-2},
    "TopK": {"inputs": "centred", "learning_rate": 3e-3},
    "BatchTopK": {"inputs": "centred", "learning_rate": 3e-3},
    "Matryoshka": {"inputs": "centred", "learning_rate": 3e-3, "prefixes": (1 / 4, 1 / 2, 1.0)},
    "JumpReLU": {"inputs": "centred", "learning_rate": 3e-3},  # six tries before, with penalties too weak for 16
    "VSC": {},
    "SDLGM": {},
    "PCA-largest": {},
    "PCA": {},
    "Signs": {},
}


class Coder(Protocol):
    """What has learnt to code vectors."""

    def encode(self, vectors: np.ndarray, active_dims: int | None = None) -> sparse.csr_matrix:
        """Codes `(rows, width)` of vectors `(rows, size)`; `active_dims` asks for a number of non-zeros by rank."""

    def decode(self, codes: sparse.csr_matrix) -> np.ndarray:
        """Vectors `(rows, size)` of codes `(rows, width)`, in the units of the encoder."""


@dataclass(frozen=True)
class Peer:
    """A trained system.

    Args:
        name: one of `NAMES`.
        settings: that it was trained with, beside width, non-zeros, seed and steps.
        coder: codes and decodes.
        seconds: CPU time of the process while it trained.
    """

    name: str
    settings: dict[str, Any]
    coder: Coder
    seconds: float

    def encode(self, vectors: np.ndarray, active_dims: int | None = None) -> sparse.csr_matrix:
        """Codes `(rows, width)` of vectors.

        Args:
            vectors: `(rows, size)`, of the encoder whose vectors it was trained on.
            active_dims: as many non-zeros at most, the largest of a row; None keeps to the system's own rule.
        """
        return self.coder.encode(np.asarray(vectors, dtype=np.float32), active_dims)

    def decode(self, codes: sparse.csr_matrix) -> np.ndarray:
        """Vectors `(rows, size)` of codes `(rows, width)`, in the units of the encoder."""
        return self.coder.decode(codes)


AUTOENCODERS = tuple(sparse_autoencoders.METHODS)
OWN = ("VSC", "SDLGM")  # models of this package that are no HSVAE
UNTRAINED = ("PCA-largest", "PCA", "Signs")
NAMES = (*AUTOENCODERS, *OWN, *UNTRAINED)


def train_peer(
    name: str,
    vectors: np.ndarray,
    width: int,
    active_dims: int,
    seed: int,
    steps: int,
    batch_size: int = 256,
    **settings: Any,
) -> Peer:
    """Train one of the systems on vectors.

    Args:
        name: one of `NAMES`, or HSVAE.
        vectors: `(rows, size)`, finite.
        width: dimensions of a code, at least `active_dims`. PCA has at most `size`, `Signs` its bits.
        active_dims: non-zeros of a code; on average for BatchTopK, Matryoshka and JumpReLU, which decide by row, and at
            most for VSC and SDLGM.
        seed: of the weights and the order of the rows.
        steps: batches to train on (>= 1).
        batch_size: rows of a batch (>= 1).
        settings: of the system; what is left out is that of `DEFAULTS`.

    Raises:
        ValueError: for a name that is not known, vectors that are no finite matrix, or numbers that do not go together.

    Example:
        >>> peer = train_peer("TopK", np.random.default_rng(0).normal(size=(64, 8)), 16, 4, seed=1, steps=2)
        >>> peer.encode(np.ones((3, 8))).shape
        (3, 16)
    """
    name = choose("name", name, (*NAMES, "HSVAE"))
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or not len(vectors) or not np.isfinite(vectors).all():
        raise ValueError(f"`vectors` must be finite numbers, (rows, size), got shape {vectors.shape}; look at them.")
    if not 1 <= active_dims <= width:
        raise ValueError(f"`active_dims` must be from 1 to `width` ({width}), got {active_dims}; choose such.")
    if min(steps, batch_size) < 1:
        raise ValueError(f"`steps` and `batch_size` must be at least 1, got {steps} and {batch_size}; raise them.")
    torch.set_flush_denormal(True)  # denormals make CPU kernels many times slower
    settings = DEFAULTS.get(name, {}) | settings
    training = (vectors, width, active_dims, seed, steps, batch_size)
    start = time.process_time()
    if name in AUTOENCODERS:
        coder: Coder = Autoencoder(name, *training, **settings)
    elif name in (*OWN, "HSVAE"):
        coder = OwnModel(name, *training, **settings)
    elif name == "Signs":
        coder = SignProjections(vectors, active_dims, seed, **settings)
    else:
        coder = PrincipalComponents(vectors, width, active_dims, largest=name == "PCA-largest", **settings)
    return Peer(name, settings, coder, time.process_time() - start)


class Validation:
    """Rows on which codes are judged by the neighbours that they keep.

    Args:
        vectors: `(rows, size)`, some thousand rows at most: all pairs are compared.
        count: neighbours of a row.
    """

    def __init__(self, vectors: np.ndarray, count: int = 10) -> None:
        self.vectors, self.count = vectors, count
        self.wanted = reference_neighbours(vectors, count)

    def kept(self, similarity: np.ndarray) -> float:
        """Share of each row's nearest by cosine of the vectors that are nearest by `similarity` `(rows, rows)` too."""
        return neighbour_scores(similarity, self.wanted, self.count)[f"neighbours@{self.count}"]

    def measure(self, peer: Peer) -> dict[str, float]:
        """Neighbours kept by cosine of two codes, and of a dense query and a decoded code; non-zeros of a code."""
        codes = peer.encode(self.vectors)
        return {
            "symmetric": self.kept(cosine(codes, codes)),
            "dense_query": self.kept(cosine(self.vectors, peer.decode(codes))),
            "active_dims": codes.nnz / codes.shape[0],
        }


@dataclass
class TuneArguments:
    """What to tune, on what."""

    task: str = field(metadata={"help": "tune."})
    vectors: Path = field(metadata={"help": "Vectors to train on: a .npy file, (rows, size)."})
    validation: list[Path] = field(metadata={"help": "Files of the rows to choose on, at most some thousand each."})
    output: Path = field(metadata={"help": "JSON file of every try and of what was chosen."})
    peers: list[str] = field(default_factory=lambda: list(NAMES), metadata={"help": "Which."})
    width: int = field(default=512, metadata={"help": "Dimensions of the codes."})
    active_dims: int = field(default=16, metadata={"help": "Non-zeros of the codes."})
    steps: int = field(default=1500, metadata={"help": "Training steps of the best of each."})
    finalists: int = field(default=1, metadata={"help": "How many of each are trained so long."})
    sieve_steps: int = field(default=600, metadata={"help": "Training steps of a try."})
    batch_size: int = field(default=256, metadata={"help": "Rows of a step."})
    seed: int = field(default=1, metadata={"help": "Of every run."})


def attempt(
    options: TuneArguments, name: str, settings: dict[str, Any], steps: int, rows: dict[str, Any]
) -> dict[str, Any]:
    """One training and its measures: by set, and `score`, the mean over sets of the two kinds of neighbours kept."""
    sizes = (options.width, options.active_dims, options.seed, steps, options.batch_size)
    peer = train_peer(name, rows["train"], *sizes, **settings)
    measures = {label: part.measure(peer) for label, part in rows["validation"].items()}
    score = float(np.mean([[part["symmetric"], part["dense_query"]] for part in measures.values()]))
    print(f"{name} {settings} {steps} steps, {peer.seconds:.1f} s: {score:.4f}", flush=True)
    return {"settings": peer.settings, "steps": steps, "seconds": peer.seconds, "score": score, "measures": measures}


def tune(options: TuneArguments, name: str, rows: dict[str, Any]) -> dict[str, Any]:
    """Try every setting of a system at `sieve_steps`, the best `finalists` at `steps`; choose the best of these."""

    def by_score(tried: dict[str, Any]) -> float:
        return float(tried["score"])

    if name in UNTRAINED or options.sieve_steps >= options.steps:
        sieve = [attempt(options, name, settings, options.steps, rows) for settings in TRIES[name]]
        final = sieve
    else:
        sieve = [attempt(options, name, settings, options.sieve_steps, rows) for settings in TRIES[name]]
        best = sorted(sieve, key=by_score, reverse=True)[: options.finalists]
        final = [attempt(options, name, tried["settings"], options.steps, rows) for tried in best]
    return {"tries": len(sieve), "sieve": sieve, "chosen": max(final, key=by_score)}


def main() -> None:
    """Tune, and write what was tried and chosen."""
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words.insert(0, "--task")  # `peers.py tune` reads better
    options = parse(TuneArguments, __doc__.partition("\n")[0], words)
    choose("task", options.task, ["tune"])
    names = [choose("peers", name, NAMES, rule="of") for name in options.peers]
    with claimed_file(options.output):
        rows = {
            "train": load_vectors(options.vectors),
            "validation": {path.stem: Validation(load_vectors(path)) for path in options.validation},
        }
        write_json(options.output, {name: tune(options, name, rows) for name in names})


if __name__ == "__main__":
    run(main)
