r"""Search over codes beside other ways to search, in one run: speed, size, and what is found.

    python scripts/experiments/benchmark.py search --vectors general.npy --model_name_or_path model_cards/hsvae-minilm \
        --output_dir runs/search --json

Rows are the given vectors, again and again, each time with other noise (`--noise` times a normal draw of the length of
a vector, then at length 1), and codes of what results. Queries are vectors that are held out. Rows and codes are kept
in the output folder. One thread; a system that is not installed is left out.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from scipy import sparse

from hsvae_hf import ApproximateIndex, Index, encode_vectors
from hsvae_hf.command_line import parse
from hsvae_hf.extras import require
from hsvae_hf.files import load_vectors, write_json
from hsvae_hf.loading import load_for_inference

K = 10  # hits
CANDIDATES = (10, 20, 50, 100, 200, 500, 1000)
BLOCK = 50_000  # rows that are made together


@dataclass(kw_only=True)
class SearchArguments:
    """What to search in."""

    vectors: str = field(metadata={"help": "File of vectors, (rows, size)."})
    model_name_or_path: str = field(metadata={"help": "Model of codes for them."})
    output_dir: str = field(metadata={"help": "Folder of rows, codes, indexes and results; what is there is kept."})
    rows: list[int] = field(default_factory=lambda: [10_000, 100_000, 1_000_000], metadata={"help": "Sizes."})
    active_dims: int = field(default=32, metadata={"help": "Non-zeros of a code."})
    noise: float = field(default=0.5, metadata={"help": "Length of the noise beside that of a vector."})
    queries: int = field(default=100, metadata={"help": "Vectors that are held out to ask with."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object instead of lines."})


def make_rows(options: SearchArguments, count: int) -> tuple[np.ndarray, list[Path]]:
    """Vectors `(count, size)`, float32, and files of their codes, block by block."""
    source = load_vectors(options.vectors)[options.queries :]
    folder = Path(options.output_dir)
    path, draw = folder / "vectors.npy", np.random.default_rng(0)
    if not path.exists():
        array = open_memmap(folder / "unfinished.npy", "w+", np.float32, (count, source.shape[1]))
        for start in range(0, count, BLOCK):
            block = np.array(source[np.arange(start, min(start + BLOCK, count)) % len(source)], dtype=np.float32)
            block += options.noise / np.sqrt(block.shape[1]) * draw.standard_normal(block.shape, dtype=np.float32)
            array[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
        array.flush()
        (folder / "unfinished.npy").rename(path)
    rows = np.load(path, mmap_mode="r")
    if len(rows) < count:
        raise ValueError(f"`output_dir` must hold {count:,} rows, got {len(rows):,}; name a new folder.")
    model, _ = load_for_inference(options.model_name_or_path)
    files = []
    for start in range(0, count, BLOCK):
        files.append(folder / f"codes-{options.active_dims}-{start}.npz")
        if not files[-1].exists():
            codes = encode_vectors(model, np.array(rows[start : start + BLOCK]), active_dims=options.active_dims)
            sparse.save_npz(folder / "unfinished.npz", codes, compressed=False)
            (folder / "unfinished.npz").rename(files[-1])
            print(f"codes: {min(start + BLOCK, count):,} of {count:,}", file=sys.stderr, flush=True)
    return rows, files


def seconds_per_query(search: Callable[[], object], queries: int) -> float:
    """CPU time, the best of two."""
    times = []
    for _ in range(2):
        started = time.process_time()
        search()
        times.append(time.process_time() - started)
    return min(times) / queries


def one_by_one(search: Callable[[np.ndarray], object], queries: np.ndarray) -> None:
    """Ask each query alone."""
    for row in range(len(queries)):
        search(queries[row : row + 1])


def blocks_of(files: list[Path], count: int) -> Iterator[sparse.csr_matrix]:
    """The first `count` codes, block by block."""
    for number, path in enumerate(files):
        if number * BLOCK < count:
            yield sparse.load_npz(path)[: count - number * BLOCK]


def index_name(active_dims: int, count: int) -> str:
    """Folder of an index."""
    return f"index-{active_dims}-{count}"


def index_of(options: SearchArguments, files: list[Path], count: int) -> tuple[Index, dict[str, float]]:
    """The index of `count` rows, and what it takes to build and to open."""
    folder = Path(options.output_dir) / index_name(options.active_dims, count)
    figures = {}
    if not (folder / "index.json").exists():
        started = time.process_time()
        Index.build(blocks_of(files, count), folder)
        figures["build_rows_per_second"] = count / (time.process_time() - started)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        index = Index.load(folder)
        times.append(time.perf_counter() - started)
    figures["open_ms"] = 1000 * min(times)
    figures["bytes_per_row"] = sum(segment.nbytes - segment.table.nbytes for segment in index.segments) / count
    figures["bytes_per_row_with_ids"] = index.nbytes / count
    return index, figures


def brute_force(rows: np.ndarray, queries: np.ndarray, count: int = K) -> np.ndarray:
    """The nearest rows by the dense vectors, `(queries, count)`, by matrix products."""
    scores = torch.from_numpy(queries) @ torch.from_numpy(rows).T
    return scores.topk(count).indices.numpy()


def recall(found: list[list[int]], wanted: np.ndarray) -> float:
    """Share of the wanted rows that are found."""
    hits = sum(len(set(row) & set(truth)) for row, truth in zip(found, wanted.tolist(), strict=True))
    return hits / wanted.size


def others(rows: np.ndarray, files: list[Path], count: int, queries: np.ndarray, codes: Any) -> dict[str, Any]:
    """What else searches vectors or codes, where it is installed: seconds per query, and recall of the dense ten."""
    report: dict[str, Any] = {}
    wanted = brute_force(rows, queries)
    if find_spec("sparse_dot_topn"):
        from sparse_dot_topn import sp_matmul_topn

        postings = sparse.vstack(list(blocks_of(files, count)), format="csr").T.tocsr()
        search = partial(sp_matmul_topn, codes, postings, top_n=K, sort=True, n_threads=1)
        report["sparse-dot-topn"] = {"ms_per_query": 1000 * seconds_per_query(search, len(queries))}
    if find_spec("seismic"):
        index = Index.load(Path(files[0]).parent / index_name(codes[0].nnz, count))
        started = time.process_time()
        approximate = ApproximateIndex(index)
        report["seismic"] = {"build_rows_per_second": count / (time.process_time() - started)}
        exact = np.array([[hit.id for hit in hits] for hits in index.search(codes, K)])
        for cut, heap in ((8, 0.9), (16, 0.8), (32, 0.7)):
            search = partial(approximate.search, codes, K, 50, cut, heap)
            report["seismic"][f"cut {cut}, heap factor {heap}"] = {
                "ms_per_query": 1000 * seconds_per_query(search, len(queries)),
                "recall_of_exact_codes": recall([[hit.id for hit in hits] for hits in search()], exact),
            }
    if find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(1)
        for name, index in (
            ("faiss flat", faiss.IndexFlatIP(rows.shape[1])),
            ("faiss HNSW, M = 32", faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)),
        ):
            started = time.process_time()
            index.add(rows)
            report[name] = {"build_rows_per_second": count / (time.process_time() - started)}
            efforts = (16, 64, 256) if "HNSW" in name else (None,)
            for effort in efforts:
                if effort is not None:
                    index.hnsw.efSearch = effort
                each = [index.search(queries[row : row + 1], K)[1][0].tolist() for row in range(len(queries))]
                search = partial(one_by_one, lambda query, index=index: index.search(query, K), queries)
                report[name][f"ef {effort}" if effort else "exact"] = {
                    "ms_per_query": 1000 * seconds_per_query(search, len(queries)),
                    "recall": recall(each, wanted),
                }
            del index
    return report


def second_stage(
    rows: np.ndarray, files: list[Path], count: int, queries: np.ndarray, codes: Any, wanted: np.ndarray
) -> dict[str, Any]:
    """Candidates by codes, ordered by vectors in half precision: time, and recall of the dense ten, by candidates."""
    index, start = Index(keep="vectors"), 0
    for block in blocks_of(files, count):
        index.add(block, vectors=rows[start : start + block.shape[0]])
        start += block.shape[0]
    report = {}
    for number in CANDIDATES[2:]:
        search = partial(index.search, codes, K, "vectors", number, queries)
        report[str(number)] = {
            "ms_per_query": 1000 * seconds_per_query(search, len(queries)),
            "recall": recall([[int(hit.id) for hit in hits] for hits in search()], wanted),
        }
    return report


def measure(options: SearchArguments) -> dict[str, Any]:
    """Every size; the largest beside other systems, and with a second stage."""
    torch.set_num_threads(1)
    Path(options.output_dir).mkdir(parents=True, exist_ok=True)
    queries = np.array(load_vectors(options.vectors)[: options.queries], dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    largest = max(options.rows)
    rows, files = make_rows(options, largest)
    model, _ = load_for_inference(options.model_name_or_path)
    codes = encode_vectors(model, queries, active_dims=options.active_dims)
    report: dict[str, Any] = {"sizes": {}}
    for count in sorted(options.rows):
        part = np.array(rows[:count])
        index, figures = index_of(options, files, count)
        wanted = brute_force(part, queries)
        alone = partial(one_by_one, partial(brute_force, part), queries[:10])
        figures["dense_ms_per_query"] = 1000 * seconds_per_query(alone, 10)
        figures["dense_ms_per_query_in_batch"] = 1000 * seconds_per_query(
            partial(brute_force, part, queries), len(queries)
        )
        figures["ms_per_query"] = 1000 * seconds_per_query(partial(index.search, codes, K), len(queries))
        found = index.search(codes, max(CANDIDATES))
        figures["recall_of_dense_ten"] = {
            str(number): recall([[int(hit.id) for hit in hits[:number]] for hits in found], wanted)
            for number in CANDIDATES
        }
        report["sizes"][str(count)] = figures
        print(f"{count:,} rows: {figures}", file=sys.stderr, flush=True)
        if count == largest:
            report["second_stage"] = second_stage(part, files, count, queries, codes, wanted)
            report["others"] = others(part, files, count, queries, codes)
    report["peak_mb_of_build"] = peak_of_build(options, files, largest)
    return report


def peak_of_build(options: SearchArguments, files: list[Path], count: int) -> float:
    """The most memory that a process of its own takes to build the largest index and to answer one query, MB."""
    script = (
        "import sys; from scipy import sparse; from hsvae_hf import Index; "
        "blocks = (sparse.load_npz(path) for path in sys.argv[2:]); index = Index.build(blocks, sys.argv[1]); "
        "index.search(sparse.load_npz(sys.argv[2])[:1]); "
        "print(next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) / 1000)"
    )
    folder = Path(options.output_dir) / f"index-{options.active_dims}-{count}-again"
    command = [sys.executable, "-c", script, str(folder), *map(str, files)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def draw(report: dict[str, Any], path: Path) -> None:
    """Time of a query by the number of rows; recall of the dense ten by the number of candidates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    times, found = figure.subplots(1, 2)
    sizes = sorted(map(int, report["sizes"]))
    for name, label, colour, marker in (
        ("dense_ms_per_query", "dense vectors, one query", "#D55E00", "s"),
        ("dense_ms_per_query_in_batch", "dense vectors, 100 queries together", "#E69F00", "D"),
        ("ms_per_query", "codes", "#0072B2", "o"),
    ):
        values = [report["sizes"][str(size)][name] for size in sizes]
        times.plot(sizes, values, color=colour, marker=marker, label=label)
        beyond = sizes[-1] * 10
        times.plot([sizes[-1], beyond], [values[-1], values[-1] * 10], color=colour, linestyle=":")
    times.set(xscale="log", yscale="log", xlabel="rows (dotted: expected)", ylabel="ms of CPU per query")
    times.legend(frameon=False, fontsize=8)
    recalls = report["sizes"][str(sizes[-1])]["recall_of_dense_ten"]
    found.plot([int(count) for count in recalls], list(recalls.values()), color="#0072B2", marker="o")
    found.set(xscale="log", xlabel="candidates from the codes", ylabel="share of the ten nearest by dense vectors")
    found.set_title(f"{sizes[-1]:,} rows", fontsize=10)
    figure.savefig(path, dpi=150)


def search(words: list[str]) -> None:
    """Measure and print."""
    options = parse(SearchArguments, __doc__.partition("\n")[0], words)
    require("matplotlib")
    report = measure(options)
    write_json(Path(options.output_dir) / "search.json", report)
    draw(report, Path(options.output_dir) / "search-speed.png")
    print(json.dumps(report, indent=None if options.json else 2))
