"""A training step at the paper's sizes on a GPU, in bf16: time, tokens, share of the roofline, memory; encoding.

    python scripts/experiments/benchmark.py gpu --output gpu.json

Sentences are random ids, all of `max_length`. The roofline is the rate of one large product in bf16, measured in the
same run; the share counts the products of a step alone. `steps` are then made, and the loss must stay finite.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import hsvae_hf
from hsvae_hf.command_line import parse
from hsvae_hf.console import device_name, say
from hsvae_hf.files import check_output, claimed_file, write_json

RATE = 8e-4  # the paper's learning rate


@dataclass
class GPUArguments:
    """Sizes of the step, and how often it is made."""

    output: Path = field(metadata={"help": "JSON file."})
    device: str = field(default="cuda", metadata={"help": "cpu tries the command where there is no GPU."})
    batch_size: int = field(default=512, metadata={"help": "Sentences of a step."})
    max_length: int = field(default=30, metadata={"help": "Tokens of a sentence."})
    vocab_size: int = field(default=20_000, metadata={"help": "Words."})
    steps: int = field(default=2000, metadata={"help": "Steps that must stay finite."})
    timed_steps: int = field(default=50, metadata={"help": "Steps that are timed."})
    product_size: int = field(default=8192, metadata={"help": "Rows and columns of the product of the roofline."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the output file if it exists."})

    def __post_init__(self) -> None:
        check_output(self.output, self.overwrite, ".json")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("`device` must be 'cpu' without a GPU, got 'cuda'; run this where torch finds one.")


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of one call, the device waited for before and after all of them."""
    work()
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - start) / repeats


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def operations(config: hsvae_hf.HSVAEConfig, rows: int, steps: int) -> float:
    """Additions and multiplications of the products of a training step, forward and backward.

    Args:
        config: sizes.
        rows: sentences.
        steps: tokens of each.
    """
    hidden, latent, width = config.hidden_size, config.latent_size, config.embedding_size
    of_token = 3 * hidden * (width + hidden) + 3 * hidden * (width + latent + hidden) + hidden * config.vocab_size
    return 6.0 * rows * (steps * of_token + 4 * hidden * latent)


def product_rate(size: int, device: torch.device) -> float:
    """Additions and multiplications a second of a product of two square matrices in bf16."""
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    return 2.0 * size**3 / seconds_of(lambda: left @ right, device, 10)


def measure(arguments: GPUArguments) -> dict[str, Any]:
    """All figures."""
    device = torch.device(arguments.device)
    config = hsvae_hf.HSVAEConfig(vocab_size=arguments.vocab_size)
    model = hsvae_hf.HSVAEForPreTraining(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    shape = (arguments.batch_size, arguments.max_length)
    losses: list[torch.Tensor] = []

    def step() -> None:
        ids = torch.randint(3, config.vocab_size, shape, device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(ids, torch.ones_like(ids)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())

    roofline = product_rate(arguments.product_size, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(step, device, arguments.timed_steps)
    memory = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else float("nan")
    while len(losses) < arguments.steps:
        step()
    ids = torch.randint(3, config.vocab_size, shape, device=device)
    body = model.model.eval()
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16):
        encoding = seconds_of(lambda: body(ids, torch.ones_like(ids)).sparse_embedding, device, arguments.timed_steps)
    return {
        "device": device_name(device),
        "step_ms": 1e3 * seconds,
        "tokens_per_second": shape[0] * shape[1] / seconds,
        "roofline_tflops": roofline / 1e12,
        "share_of_roofline": operations(config, *shape) / seconds / roofline,
        "peak_mb": memory,
        "sentences_encoded_per_second": shape[0] / encoding,
        "steps": len(losses),
        "all_finite": bool(torch.stack(losses).isfinite().all()),
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
    }


def gpu(words: list[str]) -> None:
    """Measure and write."""
    arguments = parse(GPUArguments, __doc__.partition("\n")[0], words)
    with claimed_file(arguments.output):
        report = measure(arguments)
        write_json(arguments.output, report)
    for name, value in report.items():
        say(f"{name}: {value}")
