"""Speed and memory of a training step and of encoding, each beside a floor measured in the same run.

    python scripts/experiments/benchmark.py train --dataset docstrings

| task | what is measured | beside it |
| --- | --- | --- |
| train | a training step | its bare matrix products, forward and backward |
| encode | sentences to CSR codes | the bare encoder over the same padded batches |
| batches | CPU time of `encode` by batch size | that of sentence-transformers' SparseEncoder |
| memory | peak of a training step | that with the logits of all words at once (Linux) |
| vectors | a training step on vectors | a step of sentence-transformers' SparseAutoEncoder |
| search | an index of codes; see `benchmark_search.py` | dense vectors, faiss, sparse-dot-topn |
| corpus | ways to encode the same rows; see `benchmark_corpus.py` | sentence-transformers: CSR, dense vectors |
| gpu | a training step in bf16; see `benchmark_gpu.py` | one large product |

Sides take turns and medians are reported: compare ratios, not seconds. A task takes one to ten minutes.
"""

import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from benchmark_corpus import corpus
from benchmark_gpu import gpu
from benchmark_search import search
from peer_coders import csr_loss
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

import hsvae_hf
from hsvae_hf.cli import run
from hsvae_hf.command_line import choose, parse
from hsvae_hf.data import load_text_dataset
from hsvae_hf.embedding_cache import load_encoder_tokenizer
from hsvae_hf.extras import require
from hsvae_hf.loading import load_for_inference
from hsvae_hf.models import modeling_decoder
from hsvae_hf.presets import HEAD_DEFAULTS, VECTOR_DEFAULTS
from hsvae_hf.tokenization import train_tokenizer


@dataclass
class BenchmarkArguments:
    """Arguments of the benchmark."""

    task: str = field(metadata={"help": "train, encode, batches, memory or vectors."})
    encoder_name_or_path: str | None = field(
        default=None, metadata={"help": "encode and batches: a pretrained text encoder instead of the GRU."}
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "batches: a trained model, in its place."})
    vector_size: int = field(default=384, metadata={"help": "vectors: their width."})
    dataset: str = field(default="docstrings", metadata={"help": "Short name, Hub id or local path of the text."})
    dataset_config_name: str | None = field(
        default=None,
        metadata={"aliases": ["--dataset_config"], "help": "Configuration of a data set that has several."},
    )
    batch_size: int = field(default=256, metadata={"help": "Sentences per batch."})
    max_length: int = field(default=30, metadata={"help": "Tokens per sentence at most."})
    vocab_size: int = field(default=20_000, metadata={"help": "Word types; the projection is padded to this size."})
    embedding_size: int = field(default=256, metadata={"help": "Width of the word embeddings."})
    hidden_size: int = field(default=512, metadata={"help": "Width of the GRUs."})
    latent_size: int = field(default=768, metadata={"help": "Latent dimensions."})
    max_samples: int = field(default=10_000, metadata={"help": "Sentences read."})
    repeats: int = field(default=7, metadata={"help": "Measurements of each side; the median counts."})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0 leaves torch's choice."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object instead of lines."})

    def config(self) -> hsvae_hf.HSVAEConfig:
        """The model's configuration, the paper's but for the sizes."""
        names = ("vocab_size", "embedding_size", "hidden_size", "latent_size")
        sizes = {name: getattr(self, name) for name in names}
        return hsvae_hf.HSVAEConfig(**hsvae_hf.RELEASED | {"kl_estimator": "rao_blackwell"} | sizes)

    def sentences(self) -> list[str]:
        """The text."""
        options = {"dataset_config_name": self.dataset_config_name, "max_train_samples": self.max_samples}
        return list(load_text_dataset(self.dataset, **options)["train"]["text"])


def median_seconds(
    sides: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each side, by `clock`; the sides take turns, so that noise falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            start = clock()
            side()
            if turn:  # the first turn warms up
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def products_of_a_step(config: hsvae_hf.HSVAEConfig, batch: int, steps: int, tokens: int) -> Callable[[], None]:
    """The matrix products of one training step, forward and backward, with nothing in between.

    Args:
        config: sizes.
        batch: sentences.
        steps: length of the padded batch.
        tokens: real tokens, which alone reach the vocabulary.
    """
    hidden, latent, embedding = config.hidden_size, config.latent_size, config.embedding_size
    shapes = [(tokens, hidden, config.vocab_size), (batch, hidden, 2 * latent), (batch, hidden, 2 * latent)]
    shapes += [(tokens, embedding, 3 * hidden), (tokens, embedding + latent, 3 * hidden)]
    shapes += [(tokens // steps, hidden, 3 * hidden)] * (2 * steps)
    pairs = [(torch.randn(rows, inner), torch.randn(inner, columns)) for rows, inner, columns in dict.fromkeys(shapes)]
    counts = [shapes.count(shape) for shape in dict.fromkeys(shapes)]

    def products() -> None:
        for (left, right), count in zip(pairs, counts, strict=True):
            for _ in range(count):
                out = left @ right
                out @ right.T
                left.T @ out

    return products


def length_sorted(rows: list[list[int]], size: int) -> Iterator[torch.Tensor]:
    """Padded batches of similar lengths, `(batch, steps)`; 0 pads."""
    rows = sorted(rows, key=len, reverse=True)
    for start in range(0, len(rows), size):
        yield torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows[start : start + size]], True)


def step_of(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]
) -> Callable[[], None]:
    """A training step."""
    module.train()

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def train(arguments: BenchmarkArguments) -> dict[str, Any]:
    """One optimiser step on a batch of median length against its bare matrix products."""
    config, sentences = arguments.config(), arguments.sentences()
    tokenizer = train_tokenizer(sentences, vocab_size=config.vocab_size, max_length=arguments.max_length)
    batches = list(length_sorted(tokenizer(sentences, truncation=True)["input_ids"], arguments.batch_size))
    batch = batches[len(batches) // 2]
    tokens = int((batch != 0).sum())
    model = hsvae_hf.HSVAEForPreTraining(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-4, weight_decay=0.0, fused=True)
    sides = {
        "step": step_of(model, optimizer, lambda: model(batch, batch != 0).loss),
        "floor": products_of_a_step(config, len(batch), batch.shape[1], tokens),
    }
    seconds = median_seconds(sides, arguments.repeats)
    return {
        "tokens_per_second": tokens / seconds["step"],
        "sentences_per_second": len(batch) / seconds["step"],
        "ratio_to_floor": seconds["step"] / seconds["floor"],
        "batch": list(batch.shape),
    }


def text_model(
    arguments: BenchmarkArguments, sentences: list[str]
) -> tuple[hsvae_hf.HSVAEModel, PreTrainedTokenizerBase]:
    """An untrained model with the GRU or on a pretrained encoder, and its tokenizer."""
    encoder = arguments.encoder_name_or_path
    if encoder is None:
        tokenizer = train_tokenizer(sentences, vocab_size=arguments.vocab_size, max_length=arguments.max_length)
        return hsvae_hf.HSVAEModel(arguments.config()).eval(), tokenizer
    sizes = {"latent_size": arguments.latent_size}
    model = hsvae_hf.HSVAEModel.from_encoder_pretrained(encoder, decoder_type="vector", **sizes).eval()
    return model, load_encoder_tokenizer(encoder, arguments.max_length)


def encode(arguments: BenchmarkArguments) -> dict[str, Any]:
    """`encode` of raw sentences to CSR against the encoder alone on the same length-sorted batches."""
    sentences = arguments.sentences()
    model, tokenizer = text_model(arguments, sentences)
    rows = tokenizer(sentences, truncation=True)["input_ids"]
    batches = list(length_sorted(rows, arguments.batch_size))

    @torch.inference_mode()
    def encoder() -> None:
        for batch in batches:
            if arguments.encoder_name_or_path is None:
                model.encoder(batch, batch != 0)
            else:
                model.encoder.transformer(batch, attention_mask=(batch != 0).long())

    sides = {
        "encode": lambda: hsvae_hf.encode(model, tokenizer, sentences, batch_size=arguments.batch_size),
        "floor": encoder,
    }
    seconds = median_seconds(sides, arguments.repeats)
    return {
        "sentences_per_second": len(sentences) / seconds["encode"],
        "tokens_per_second": sum(map(len, rows)) / seconds["encode"],
        "ratio_to_floor": seconds["encode"] / seconds["floor"],
    }


def batches(arguments: BenchmarkArguments) -> dict[str, Any]:
    """CPU time of `encode` by batch size, and of `SparseEncoder.encode`, as multiples of the shortest batch size's."""
    require("sentence_transformers", extra="dev")
    from sentence_transformers import SparseEncoder

    torch.set_flush_denormal(True)
    sentences = arguments.sentences()
    if arguments.model_name_or_path is not None:
        model, tokenizer = load_for_inference(arguments.model_name_or_path)
    else:
        model, tokenizer = text_model(arguments, sentences)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        other = SparseEncoder(folder, device="cpu", trust_remote_code=True)
    sides: dict[str, Callable[[], object]] = {"default": lambda: hsvae_hf.encode(model, tokenizer, sentences)}
    for size in (16, 32, 64, 128, 256, 512):
        sides[str(size)] = functools.partial(hsvae_hf.encode, model, tokenizer, sentences, batch_size=size)
    sides["sparse_encoder"] = lambda: other.encode(sentences, show_progress_bar=False)
    seconds = median_seconds(sides, arguments.repeats, time.process_time)
    best = min(value for name, value in seconds.items() if name.isdigit())
    return {name: round(value / best, 3) for name, value in seconds.items()} | {"best_seconds": best}


def memory(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Peak memory of one training step, and with the whole `(tokens, vocab_size)` logits at once."""
    config = arguments.config()
    model = hsvae_hf.HSVAEForPreTraining(config).train()
    ids = torch.randint(3, config.vocab_size, (arguments.batch_size, arguments.max_length))

    def step() -> None:
        model.zero_grad()
        model(ids).loss.backward()

    def whole_loss(states: torch.Tensor, head: torch.nn.Module, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(states), targets, reduction="sum")

    chunked = extra_megabytes(step)
    model.zero_grad()
    with mock.patch.object(modeling_decoder, "vocabulary_loss", whole_loss):
        plain = extra_megabytes(step)
    return {"chunked_mb": chunked, "plain_mb": plain, "times_less": plain / chunked}


def extra_megabytes(work: Callable[[], None]) -> float:
    """How far `work` raises this process's memory above what it holds (Linux)."""

    def resident(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def vectors(arguments: BenchmarkArguments) -> dict[str, Any]:
    """An optimiser step of HSVAE on vectors, and of sentence-transformers' autoencoder of the same width.

    The latter with the loss of its k active dimensions alone (`topk`), and with its whole CSRLoss: reconstruction from
    k, 4k and dead dimensions, and InfoNCE.
    """
    require("sentence_transformers", extra="dev")
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

    size, width = arguments.vector_size, arguments.latent_size
    batch = torch.randn(arguments.batch_size, size)
    sizes = {"encoder_type": "vector", "vector_size": size, "decoder_type": "vector", "latent_size": width}
    weights = {name: VECTOR_DEFAULTS[name] for name in ("z_kl_weight", "gamma_kl_weight", "similarity_weight")}
    config = hsvae_hf.HSVAEConfig(**sizes, **weights, **HEAD_DEFAULTS["hsvae"], tie_word_embeddings=False)
    model = hsvae_hf.HSVAEForPreTraining(config)
    autoencoder = SparseAutoEncoder(size, hidden_dim=width, k=16, k_aux=min(512, width))
    csr = csr_loss(autoencoder)

    def topk() -> torch.Tensor:
        codes, _ = autoencoder.top_k(autoencoder.encode_pre_act(batch), compute_aux=False)
        return F.mse_loss(autoencoder.decode(codes), batch)

    sides = {}
    for name, module, loss in (
        ("hsvae", model, lambda: model(vectors=batch).loss),
        ("topk", autoencoder, topk),
        ("csr", autoencoder, lambda: csr(batch)),
    ):
        learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
        step = step_of(module, torch.optim.Adam(learnt, lr=1e-4, fused=True), loss)
        sides[name] = lambda step=step: [step() for _ in range(10)]
    seconds = median_seconds(sides, arguments.repeats)
    ratios = {f"ratio_to_{name}": seconds["hsvae"] / seconds[name] for name in ("topk", "csr")}
    return {"rows_per_second": 10 * arguments.batch_size / seconds["hsvae"], **ratios}


APART = {"search": search, "corpus": corpus, "gpu": gpu}  # tasks with options of their own
TASKS = {task.__name__: task for task in (train, encode, batches, memory, vectors)}


def main() -> None:
    """Measure and print."""
    words = sys.argv[1:]
    if words and words[0] in APART:
        APART[words[0]](words[1:])
        return
    if words and not words[0].startswith("-"):
        words.insert(0, "--task")  # `benchmark.py train` reads better
    arguments = parse(BenchmarkArguments, __doc__.partition("\n")[0], words)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    report = TASKS[choose("task", arguments.task, TASKS)](arguments)
    report |= {"task": arguments.task, "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps(report) if arguments.json else "\n".join(f"{name}: {value}" for name, value in report.items()))


if __name__ == "__main__":
    run(main)
