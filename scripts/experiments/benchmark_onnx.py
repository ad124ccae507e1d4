"""Sentences per second by ONNX Runtime beside PyTorch, the sides taking turns, as ratios of wall and of CPU time."""

import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmark import median_seconds

import hsvae_hf
from hsvae_hf.cli import run
from hsvae_hf.command_line import parse
from hsvae_hf.console import say
from hsvae_hf.embedding_cache import load_encoder_tokenizer
from hsvae_hf.files import check_output, claimed_file, write_json
from hsvae_hf.loading import load_for_inference


@dataclass
class BenchmarkArguments:
    """What to measure."""

    output: Path = field(metadata={"help": "JSON."})
    model_name_or_path: str = field(default="model_cards/hsvae-dbpedia-16", metadata={"help": "Folder or Hub id."})
    encoder_name_or_path: str | None = field(default=None, metadata={"help": "Encoder, for a model of its vectors."})
    dataset: str = field(default="docstrings", metadata={"help": "Text."})
    max_samples: int = field(default=512, metadata={"help": "Sentences encoded."})
    repeats: int = field(default=5, metadata={"help": "Measurements of each side; the median counts."})
    threads: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "CPU threads."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the output file if it exists."})

    def __post_init__(self) -> None:
        check_output(self.output, self.overwrite, ".json")


def measure(sides: dict[str, Callable[[], object]], repeats: int, count: int) -> dict[str, Any]:
    """Of each side sentences per second, and how many times faster than `pytorch` it is by both clocks."""
    report: dict[str, Any] = {}
    for name, clock in (("wall", time.perf_counter), ("cpu", time.process_time)):
        seconds = median_seconds(sides, repeats, clock)
        for side, value in seconds.items():
            report.setdefault(side, {})[f"{name}_speedup"] = round(seconds["pytorch"] / value, 3)
            report[side][f"sentences_per_{name}_second"] = round(count / value, 1)
    return report


def main() -> None:
    """Export twice, measure, write."""
    args = parse(BenchmarkArguments, __doc__)
    with claimed_file(args.output), tempfile.TemporaryDirectory() as folder:
        model, tokenizer = load_for_inference(args.model_name_or_path)
        if args.encoder_name_or_path is not None:
            model = model.with_encoder(args.encoder_name_or_path)
            tokenizer = load_encoder_tokenizer(args.encoder_name_or_path)
        model = model.float()
        sentences = list(hsvae_hf.load_text_dataset(args.dataset)["train"]["text"])[: args.max_samples]
        report: dict[str, Any] = {"model": args.model_name_or_path, "sentences": len(sentences)}
        for name, quantize in (("onnx", None), ("onnx_int8", "int8")):
            report[name] = hsvae_hf.export_onnx(model, tokenizer, f"{folder}/{name}", quantize, None, sentences)
        for threads in args.threads:
            torch.set_num_threads(threads)
            sides: dict[str, Callable[[], object]] = {
                "pytorch": functools.partial(hsvae_hf.encode, model, tokenizer, sentences)
            }
            for name in ("onnx", "onnx_int8"):
                sides[name] = functools.partial(hsvae_hf.OnnxEncoder(f"{folder}/{name}", threads).encode, sentences)
            report[f"{threads} threads"] = measured = measure(sides, args.repeats, len(sentences))
            say(f"{threads} threads: {measured}")
        write_json(args.output, report)


if __name__ == "__main__":
    run(main)
