"""Sentences per second of one core from text to codes, behind a static encoder: the one in wordllama's wheel.

    OMP_NUM_THREADS=1 python scripts/experiments/benchmark_static.py --dataset docstrings

Each step of the way is timed, and the whole way by `encode_sentences` and by sentence-transformers' `SparseEncoder`.
CPU time of the process counts, the median of several turns, so other programs disturb little. The coder is trained for
a few steps only: its codes have the wanted length, and say nothing else.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from benchmark import median_seconds
from static_encoders import wordllama

import hsvae_hf
from hsvae_hf.cli import run
from hsvae_hf.command_line import parse
from hsvae_hf.data import load_text_dataset


@dataclass
class StaticArguments:
    """Arguments of the benchmark."""

    dataset: str = field(metadata={"help": "Short name, Hub id or local path of the text."})
    max_samples: int = field(default=10_000, metadata={"help": "Sentences read."})
    latent_size: int = field(default=512, metadata={"help": "Dimensions of the codes."})
    target_active_dims: float = field(default=16, metadata={"help": "Non-zeros per code, about."})
    max_steps: int = field(default=40, metadata={"help": "Steps that the coder is trained for."})
    batch_size: int = field(default=256, metadata={"help": "Sentences per forward pass, of all sides."})
    repeats: int = field(default=5, metadata={"help": "Turns; the median counts."})


def benchmark(arguments: StaticArguments) -> dict[str, float]:
    """Sentences per second of CPU time, by what is done."""
    from hsvae_hf.sentence_transformers import add_codes, encode_sentences

    torch.set_num_threads(1)
    rows = load_text_dataset(arguments.dataset, max_train_samples=arguments.max_samples)["train"]
    sentences = list(rows["text"])
    encoder = wordllama()
    tokenizer = encoder[0].tokenizer
    size, vectors = arguments.batch_size, encoder.encode(sentences)
    coder = hsvae_hf.fit(
        vectors,
        latent_size=arguments.latent_size,
        target_active_dims=arguments.target_active_dims,
        max_steps=arguments.max_steps,
    )
    codes = add_codes(encoder, coder)
    sides = {
        "tokens": lambda: tokenizer.encode_batch(sentences, add_special_tokens=False),
        "vectors": lambda: encoder.encode(sentences, batch_size=size, show_progress_bar=False),
        "vectors to codes": lambda: hsvae_hf.encode_vectors(coder, vectors),
        "codes, encode_sentences": lambda: encode_sentences(codes, sentences, batch_size=size),
        "codes, SparseEncoder": lambda: codes.encode(sentences, batch_size=size, show_progress_bar=False),
        "codes, SparseEncoder, dense": lambda: codes.encode(
            sentences, batch_size=size, show_progress_bar=False, convert_to_sparse_tensor=False
        ),
    }
    seconds = median_seconds(sides, arguments.repeats, clock=time.process_time)
    words = float(np.mean([len(sentence.split()) for sentence in sentences]))
    found = encode_sentences(codes, sentences[:1000])
    print(f"{len(sentences)} sentences of {words:.1f} words; codes of {found.nnz / found.shape[0]:.1f} non-zeros")
    return {name: len(sentences) / value for name, value in seconds.items()}


def main() -> None:
    """Measure and print."""
    for name, rate in benchmark(parse(StaticArguments, __doc__)).items():
        print(f"{name:30s} {rate:10,.0f} sentences/s")


if __name__ == "__main__":
    run(main)
