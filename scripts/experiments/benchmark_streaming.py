"""Peak memory and time of training on vectors in files, by the number of rows: one process measures one number.

Shards of 100,000 rows of noise are written to a folder and kept. Beyond a million rows they are links to the first ten,
as memory and time do not depend on what is in them.
"""

import json
import resource
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hsvae_hf
from hsvae_hf.cli import run
from hsvae_hf.command_line import ScriptParser
from hsvae_hf.console import say
from hsvae_hf.vector_data import VectorDataset, WindowSampler
from hsvae_hf.vector_files import VectorSource, open_vectors, read_vectors

SHARD, FILES = 100_000, 10  # rows of a shard, shards that are no links
STEP = 256  # rows


@dataclass
class StreamingArguments:
    """What to measure."""

    folder: str = field(metadata={"help": "Where the shards are, or are written."})
    rows: int = field(default=1_000_000, metadata={"help": "Number of rows."})
    size: int = field(default=384, metadata={"help": "Numbers in a row."})
    latent_size: int = field(default=512, metadata={"help": "Dimensions of the codes."})
    max_steps: int = field(default=300, metadata={"help": "Steps of training, of 256 rows."})
    in_memory: bool = field(default=False, metadata={"help": "Read all rows first, to compare with."})


def write_shards(folder: Path, rows: int, size: int) -> None:
    """Shards of noise, as `.npy` files; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number, start in enumerate(range(0, rows, SHARD)):
        path = folder / f"part-{number:05}.npy"
        if path.exists():
            continue
        if number >= FILES:
            path.symlink_to((folder / f"part-{number % FILES:05}.npy").resolve())
        else:
            np.save(path, generator.standard_normal((min(SHARD, rows - start), size), dtype=np.float32))


def read_time(source: VectorSource) -> float:
    """CPU milliseconds to read a batch, without training."""
    dataset = VectorDataset(open_vectors(source))
    if dataset.in_memory:
        order = torch.randperm(len(dataset)).tolist()
    else:
        order = [row for row, _ in zip(WindowSampler(dataset), range(STEP * 1000), strict=False)]
    batches = [order[start : start + STEP] for start in range(0, min(len(order), STEP * 1000), STEP)]
    start = time.process_time()
    for batch in batches:
        dataset.__getitems__(batch)
    return 1000 * (time.process_time() - start) / len(batches)


def main() -> None:
    """Write, train, say."""
    (arguments,) = ScriptParser({"benchmark": StreamingArguments}, description=__doc__).parse()
    folder = Path(arguments.folder) / f"{arguments.rows}"
    write_shards(folder, arguments.rows, arguments.size)
    source: Any = read_vectors(folder) if arguments.in_memory else folder
    options = {"latent_size": arguments.latent_size, "max_steps": arguments.max_steps, "eval_strategy": "no"}
    options |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": STEP}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as output:
        hsvae_hf.fit(source, output, **options)
        training = json.loads((Path(output) / "all_results.json").read_text())["train_runtime"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(
        f"{arguments.rows:,} rows: peak memory {peak:,.0f} MiB, {time.monotonic() - start - training:.1f} s before and "
        f"after {arguments.max_steps} steps of {1000 * training / arguments.max_steps:.1f} ms; reading a batch takes "
        f"{read_time(source):.2f} ms of CPU time"
    )


if __name__ == "__main__":
    run(main)
