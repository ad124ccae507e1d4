"""Speed and memory of a training step and of encoding, each beside a floor measured in the same run.

The floor of a training step is its bare matrix products, forward and backward; the floor of encoding is the bare
encoder's forward pass over the same padded batches; MAT-VAE's MMD is measured beside the step that it is part of.
Sides are interleaved and medians reported: compare ratios, not seconds.
"""

import functools
import json
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # the imports take seconds: a signal ends them without a traceback
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

import torch
from torch.nn import functional as F

import hsvae_hf
from hsvae_hf.arguments import parse
from hsvae_hf.cli import run
from hsvae_hf.data import load_text_dataset
from hsvae_hf.embedding_cache import load_encoder_tokenizer
from hsvae_hf.extras import require
from hsvae_hf.loading import load_for_inference, load_tokenizer
from hsvae_hf.options import HEAD_DEFAULTS, VECTOR_DEFAULTS
from hsvae_hf.tokenization import train_tokenizer


@dataclass
class BenchmarkArguments:
    """Arguments of the benchmark."""

    task: Literal["train", "encode", "batches", "memory", "mmd", "vectors"] = field(
        metadata={
            "help": "train: one step; encode: sentences to CSR; batches: CPU time of encode by batch size, beside "
            "SparseEncoder's; memory: peak of a Yelp-length batch; mmd: MAT-VAE's; vectors: one step on vectors, "
            "beside sentence-transformers' SparseAutoEncoder."
        }
    )
    encoder_name_or_path: str | None = field(
        default=None, metadata={"help": "encode: a pretrained text encoder instead of the GRU."}
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "batches: a trained model, in its place."})
    decoder_type: Literal["gru", "vector"] = field(
        default="gru", metadata={"help": "encode, with an encoder: what the model was trained to reconstruct."}
    )
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
    repeats: int = field(default=7, metadata={"help": "Interleaved measurements; the median counts."})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0 leaves torch's choice."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object instead of lines."})
    memory_side: Literal["both", "chunked", "plain"] = field(
        default="both", metadata={"help": "memory task: which formulation to run in this process."}
    )


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


def benchmark_train(arguments: BenchmarkArguments, config: hsvae_hf.HSVAEConfig, rows: list[list[int]]) -> dict:
    """One optimiser step on a batch of median length against its bare matrix products."""
    model = hsvae_hf.HSVAEForPreTraining(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-4, weight_decay=0.0, fused=True)
    batches = list(length_sorted(rows, arguments.batch_size))
    batch = batches[len(batches) // 2]
    tokens = int((batch != 0).sum())

    def step() -> None:
        model(batch, batch != 0).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    floor = products_of_a_step(config, len(batch), batch.shape[1], tokens)
    seconds = median_seconds({"step": step, "floor": floor}, arguments.repeats)
    return {
        "tokens_per_second": tokens / seconds["step"],
        "sentences_per_second": len(batch) / seconds["step"],
        "ratio_to_floor": seconds["step"] / seconds["floor"],
        "batch": list(batch.shape),
    }


def benchmark_encode(
    arguments: BenchmarkArguments, model: hsvae_hf.HSVAEModel, sentences: list[str], tokenizer: object
) -> dict:
    """`encode` of raw sentences to CSR against the encoder alone on the same length-sorted batches."""
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


def benchmark_batches(arguments: BenchmarkArguments, sentences: list[str]) -> dict:
    """CPU time of `encode` by batch size, and of `SparseEncoder.encode`, as multiples of the shortest batch size's."""
    from sentence_transformers import SparseEncoder

    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model_name_or_path is not None:
            model, tokenizer = load_for_inference(arguments.model_name_or_path)
        else:
            encoder, sizes = arguments.encoder_name_or_path, {"latent_size": arguments.latent_size}
            model = hsvae_hf.HSVAEModel.from_encoder_pretrained(encoder, decoder_type="vector", **sizes).eval()
            tokenizer = load_encoder_tokenizer(encoder)
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


def memory_of_a_batch(config: hsvae_hf.HSVAEConfig, batch_size: int, max_length: int, plain: bool) -> float:
    """Peak memory in MB of one training step (256 x 200 tokens by the defaults of the `memory` task).

    `plain` is the formulation with the whole `(tokens, vocab_size)` logits.
    """
    from hsvae_hf.models import modeling_decoder

    if plain:
        modeling_decoder.vocabulary_loss = lambda states, head, targets: F.cross_entropy(
            head(states), targets, reduction="sum"
        )
    model = hsvae_hf.HSVAEForPreTraining(config).train()
    ids = torch.randint(3, config.vocab_size, (batch_size, max_length))
    before = peak_megabytes()
    model(ids).loss.backward()
    return peak_megabytes() - before


def peak_megabytes() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def extra_megabytes(work: Callable[[], None]) -> float:
    """How far `work` raises this process's memory above what it holds (Linux)."""

    def resident(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def benchmark_memory(arguments: BenchmarkArguments, config: hsvae_hf.HSVAEConfig) -> dict:
    """Both formulations side by side, each in a process of its own, since a peak never goes down."""
    if arguments.memory_side != "both":
        plain = arguments.memory_side == "plain"
        return {"peak_mb": memory_of_a_batch(config, arguments.batch_size, arguments.max_length, plain)}
    peaks = {}
    for side in ("chunked", "plain"):
        command = [sys.executable, *sys.argv, "--memory_side", side, "--json"]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[side] = json.loads(out.splitlines()[-1])["peak_mb"]
    return {"chunked_mb": peaks["chunked"], "plain_mb": peaks["plain"], "times_less": peaks["plain"] / peaks["chunked"]}


def benchmark_mmd(arguments: BenchmarkArguments, rows: list[list[int]]) -> dict:
    """The MMD, forward and backward, beside the training step it is part of, and its memory."""
    sizes = ("vocab_size", "embedding_size", "hidden_size", "latent_size")
    model = hsvae_hf.MATVAEForPreTraining(
        hsvae_hf.MATVAEConfig(**{name: getattr(arguments, name) for name in sizes})
    ).train()
    head, z = model.model.latent_head, torch.randn(arguments.batch_size, arguments.latent_size, requires_grad=True)
    posterior = head(torch.randn(arguments.batch_size, arguments.hidden_size))

    def mmd() -> None:
        head.costs(posterior, {"z": z})["penalty"].backward()

    extra = extra_megabytes(mmd)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-4, weight_decay=0.0, fused=True)
    batches = list(length_sorted(rows, arguments.batch_size))
    batch = batches[len(batches) // 2]

    def step() -> None:
        model(batch, batch != 0).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = median_seconds({"step": step, "mmd": mmd}, arguments.repeats)
    return {"share_of_step": seconds["mmd"] / seconds["step"], "extra_mb": extra, "batch": list(batch.shape)}


def benchmark_vectors(arguments: BenchmarkArguments) -> dict:
    """An optimiser step of HSVAE on vectors, and of sentence-transformers' TopK autoencoder of the same width.

    The latter with the loss of its k active dimensions alone, and with its whole CSRLoss (reconstruction from k, 4k and
    dead dimensions, and InfoNCE).
    """
    require("sentence_transformers", extra="dev")
    from compare_vectors import CSRModel
    from sentence_transformers.sparse_encoder.losses import CSRLoss
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

    size, width = arguments.vector_size, arguments.latent_size
    batch = torch.randn(arguments.batch_size, size)
    sizes = {"encoder_type": "vector", "vector_size": size, "decoder_type": "vector", "latent_size": width}
    weights = {name: VECTOR_DEFAULTS[name] for name in ("z_kl_weight", "gamma_kl_weight", "similarity_weight")}
    config = hsvae_hf.HSVAEConfig(**sizes, **weights, **HEAD_DEFAULTS["hsvae"], tie_word_embeddings=False)
    model = hsvae_hf.HSVAEForPreTraining(config).train()
    autoencoder = SparseAutoEncoder(size, hidden_dim=width, k=16, k_aux=min(512, width)).train()
    csr = CSRLoss(CSRModel(autoencoder))

    def topk() -> torch.Tensor:
        codes, _ = autoencoder.top_k(autoencoder.encode_pre_act(batch), compute_aux=False)
        return F.mse_loss(autoencoder.decode(codes), batch)

    losses: dict[str, tuple[torch.nn.Module, Callable[[], torch.Tensor]]] = {
        "hsvae": (model, lambda: model(vectors=batch).loss),
        "topk": (autoencoder, topk),
        "csr": (autoencoder, lambda: sum(csr([{"sentence_embedding": batch}, {"sentence_embedding": batch}]).values())),
    }

    def step(parameters: list[torch.nn.Parameter], loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)

        def one() -> None:
            for _ in range(10):
                loss().backward()
                optimizer.step()
                optimizer.zero_grad()

        return one

    learnt = {name: [p for p in module.parameters() if p.requires_grad] for name, (module, _) in losses.items()}
    sides = {name: step(learnt[name], loss) for name, (_, loss) in losses.items()}
    seconds = median_seconds(sides, arguments.repeats)
    ratios = {f"ratio_to_{name}": seconds["hsvae"] / seconds[name] for name in ("topk", "csr")}
    return {"rows_per_second": 10 * arguments.batch_size / seconds["hsvae"], **ratios}


def main() -> None:
    """Measure and print."""
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words.insert(0, "--task")  # `benchmark.py train` reads better
    arguments = parse(BenchmarkArguments, __doc__, words)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    sizes = ("vocab_size", "embedding_size", "hidden_size", "latent_size")
    settings = (
        hsvae_hf.RELEASED | {"kl_estimator": "rao_blackwell"} | {name: getattr(arguments, name) for name in sizes}
    )
    config = hsvae_hf.HSVAEConfig(**settings)
    if arguments.task == "memory":
        report = benchmark_memory(arguments, config)
    elif arguments.task == "vectors":
        report = benchmark_vectors(arguments)
    else:
        which, limit = arguments.dataset_config_name, arguments.max_samples
        splits = load_text_dataset(arguments.dataset, dataset_config_name=which, max_train_samples=limit)
        dataset = splits["train"]
        sentences = list(dataset["text"])
        if arguments.task == "batches":
            print_report(arguments, benchmark_batches(arguments, sentences))
            return
        tokenizer = train_tokenizer(sentences, vocab_size=config.vocab_size, max_length=arguments.max_length)
        if arguments.task == "train":
            report = benchmark_train(arguments, config, tokenizer(sentences, truncation=True)["input_ids"])
        elif arguments.task == "mmd":
            report = benchmark_mmd(arguments, tokenizer(sentences, truncation=True)["input_ids"])
        elif arguments.encoder_name_or_path is None:
            report = benchmark_encode(arguments, hsvae_hf.HSVAEModel(config).eval(), sentences, tokenizer)
        else:
            model = hsvae_hf.HSVAEModel.from_encoder_pretrained(
                arguments.encoder_name_or_path,
                latent_size=config.latent_size,
                decoder_type=arguments.decoder_type,
            )
            tokenizer = load_tokenizer(arguments.encoder_name_or_path)
            tokenizer.model_max_length = arguments.max_length
            report = benchmark_encode(arguments, model.eval(), sentences, tokenizer)
        report["peak_mb"] = peak_megabytes()
    print_report(arguments, report)


def print_report(arguments: BenchmarkArguments, report: dict) -> None:
    """Print it, and on what it was measured."""
    report |= {"task": arguments.task, "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps(report) if arguments.json else "\n".join(f"{name}: {value}" for name, value in report.items()))


if __name__ == "__main__":
    run(main)
