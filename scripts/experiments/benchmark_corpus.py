"""Sentences a second and peak memory of ways to encode a corpus: one process, two, Ray with two workers, SparseEncoder.

    python scripts/experiments/benchmark_corpus.py --rows 100000 --output speed.json
    python scripts/experiments/benchmark_corpus.py --sides one sparse_encoder --rows 10000 100000 1000000

Each side runs in a process of its own on the same rows, one after the other, with one thread per process. Memory is
that of all its processes: the sum of their proportional set sizes, so that a page that several share counts once
(Linux). For Ray that includes its own processes.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hsvae_hf.cli import run
from hsvae_hf.code_shards import load_codes
from hsvae_hf.command_line import choose, parse
from hsvae_hf.console import say
from hsvae_hf.data import load_text_dataset
from hsvae_hf.files import write_json

ROOT = Path(__file__).parent.parent.parent
EMBED = [sys.executable, str(ROOT / "scripts/embed.py"), "--format", "parquet"]
SPARSE_ENCODER = """
import sys, time
import hsvae_hf
import pyarrow.parquet as pq
from sentence_transformers import SparseEncoder
encoder = SparseEncoder(sys.argv[1], device="cpu")
sentences = pq.read_table(sys.argv[2])["text"].to_pylist()
start = time.perf_counter()
codes = encoder.encode(sentences, show_progress_bar=False)
print(time.perf_counter() - start)
"""
SIDES: dict[str, list[str]] = {
    "one": EMBED,
    "two": [*EMBED, "--num_processes", "2"],
    "ray": [*EMBED, "--num_processes", "2", "--engine", "ray"],
    "sparse_encoder": [sys.executable, "-c", SPARSE_ENCODER],
}
_EVERY = 0.2  # seconds between looks at the memory


@dataclass
class CorpusArguments:
    """What to encode, in which ways."""

    model_name_or_path: str = field(
        default=str(ROOT / "model_cards/hsvae-dbpedia-16"), metadata={"help": "Folder of a model that reads text."}
    )
    dataset: str = field(default="docstrings", metadata={"help": "Of the sentences, which are repeated as needed."})
    rows: list[int] = field(default_factory=lambda: [100_000], metadata={"help": "Numbers of rows, one run for each."})
    sides: list[str] = field(default_factory=lambda: list(SIDES), metadata={"help": ", ".join(SIDES)})
    shard_rows: int = field(default=4096, metadata={"help": "Rows of a shard."})
    output: Path | None = field(default=None, metadata={"help": "JSON file; else it is printed."})


def memory_of(pid: int) -> float:
    """Megabytes of a process and of those that it has started, shared pages in proportion."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        parents.setdefault(parent, []).append(int(folder.name))
    total, waiting = 0.0, [pid]
    while waiting:
        process = waiting.pop()
        waiting += parents.get(process, [])
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return total


def measured(command: list[str], log: Path) -> dict[str, float]:
    """Seconds of a command as a whole, and its peak memory in MB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    start, peak = time.perf_counter(), 0.0
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process:
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(_EVERY)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {log.read_text()[-2000:]}")
    return {"seconds": seconds, "peak_mb": peak}


def steady_rate(folder: Path) -> float:
    """Sentences a second once the first shard is there, without what starting takes."""
    view = load_codes(folder)
    ends = sorted((folder / view.manifest.name(shard)).stat().st_mtime for shard in view.manifest.shards)
    rows = view.shape[0] - view.manifest.shards[0].rows
    return rows / (ends[-1] - ends[0]) if len(ends) > 1 else float("nan")


def side(name: str, arguments: CorpusArguments, table: Path, folder: Path) -> dict[str, float]:
    """Figures of one way."""
    log = folder / f"{name}.log"
    if name == "sparse_encoder":
        found = measured([*SIDES[name], arguments.model_name_or_path, str(table)], log)
        return found | {"sentences_per_second": pq.read_metadata(table).num_rows / float(log.read_text().split()[-1])}
    output = folder / name
    words = ["--model_name_or_path", arguments.model_name_or_path, "--input", str(table), "--output", str(output)]
    found = measured([*SIDES[name], *words, "--shard_rows", str(arguments.shard_rows)], log)
    return found | {"sentences_per_second": steady_rate(output)}


def benchmark(arguments: CorpusArguments) -> dict[str, Any]:
    """Figures by number of rows and by side."""
    names = [choose("sides", name, SIDES) for name in arguments.sides]
    texts = list(load_text_dataset(arguments.dataset)["train"]["text"])
    report: dict[str, Any] = {"model": arguments.model_name_or_path, "dataset": arguments.dataset, "rows": {}}
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "in.parquet"
            column = pa.array(itertools.islice(itertools.cycle(texts), rows), pa.string())
            pq.write_table(pa.table({"text": column}), table, row_group_size=16_384)
            found = {name: side(name, arguments, table, Path(folder)) for name in names}
        for name, figures in found.items():
            say(f"{rows:,} rows, {name}: " + ", ".join(f"{key} {value:,.0f}" for key, value in figures.items()))
        report["rows"][str(rows)] = found
    return report


def main() -> None:
    """Measure, and write or print."""
    arguments = parse(CorpusArguments, __doc__)
    report = benchmark(arguments)
    if arguments.output is None:
        say(json.dumps(report))
    else:
        write_json(arguments.output, report)


if __name__ == "__main__":
    run(main)
