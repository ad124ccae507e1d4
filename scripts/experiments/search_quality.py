r"""What search by codes finds: nDCG@10 and Recall@100 of codes, reranked codes, codes with words, and what others find.

    python scripts/experiments/search_quality.py --suite data/eval --encoder_name_or_path $MINILM \
        --codes model_cards/hsvae-minilm --output_dir runs/search-quality

writes `search.md`, `search.json` and `search.png`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from code_tables import short
from scipy import sparse
from tables import Spread, table

from hsvae_hf import HybridIndex, Index, encode_vectors
from hsvae_hf.cli import run
from hsvae_hf.command_line import parse
from hsvae_hf.evaluation_scores import cosine, ranking_scores
from hsvae_hf.evaluation_systems import bm25_similarity
from hsvae_hf.evaluation_tasks import RetrievalTask, frozen_encoder, load_tasks
from hsvae_hf.extras import require
from hsvae_hf.files import staged_folder
from hsvae_hf.hybrid import reciprocal_rank_fusion
from hsvae_hf.loading import load_for_inference

SCORES = ("ndcg@10", "recall@100")
DEPTH = 200  # hits of a ranking that are judged


@dataclass(kw_only=True)
class QualityArguments:
    """What to search in, by what."""

    suite: str = field(metadata={"help": "Folder of the sets."})
    encoder_name_or_path: str | None = field(default=None, metadata={"help": "Sentence encoder."})
    vectors_dir: str | None = field(default=None, metadata={"help": "Folder of vectors, TASK-PART.npy, instead."})
    codes: str = field(metadata={"help": "Model of codes for its vectors."})
    output_dir: str = field(metadata={"help": "Folder of table and figure."})
    tasks: list[str] = field(default_factory=lambda: ["cranfield", "cisi"], metadata={"help": "Retrieval sets."})
    active_dims: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128], metadata={"help": "Non-zeros."})


def scores_of(rankings: list[list[Any]], task: RetrievalTask) -> dict[str, float]:
    """nDCG@10 and Recall@100 of hits."""
    similarity = np.full(task.relevance.shape, -1.0, dtype=np.float32)
    for row, hits in enumerate(rankings):
        for rank, hit in enumerate(hits):
            similarity[row, hit.id] = 1 - rank / len(rankings[row])
    return ranking_scores(similarity, task.relevance)


def split(codes: sparse.csr_matrix) -> sparse.csr_matrix:
    """Positive values, then the negative ones without their sign."""
    return sparse.hstack([codes.maximum(0), (-codes).maximum(0)], format="csr")


def rounded(codes: sparse.csr_matrix) -> sparse.csr_matrix:
    """Values as int8 with one scale."""
    scale = np.abs(codes.data).max() / 127
    return sparse.csr_matrix((np.rint(codes.data / scale), codes.indices, codes.indptr), shape=codes.shape)


def systems(task: RetrievalTask, model: Any, budgets: list[int]) -> Iterator[tuple[str, int | None, dict[str, float]]]:
    """Name, non-zeros and scores of every way to search."""
    queries, corpus = task.vectors["queries"], task.vectors["corpus"]
    words = bm25_similarity(task.texts["queries"], task.texts["corpus"])
    yield "BM25", None, ranking_scores(words, task.relevance)
    dense = cosine(queries, corpus)
    yield "dense vectors", None, ranking_scores(dense, task.relevance)
    for count in budgets:
        asked, kept = (encode_vectors(model, part, active_dims=count) for part in (queries, corpus))
        index = Index(model, "cosine", keep="codes")
        index.add(kept, texts=task.texts["corpus"])
        by_codes = index.search(asked, DEPTH)
        yield "codes, cosine", count, scores_of(by_codes, task)
        with_vectors = Index(similarity="cosine", keep="vectors")
        with_vectors.add(kept, vectors=corpus)
        for name, target in (("vectors", with_vectors), ("codes", index)):
            found = target.search(asked, 100, rerank=name, candidates=DEPTH, vectors=queries)
            yield f"codes, then reranked by {name}", count, scores_of(found, task)
        hybrid = HybridIndex(index)
        pairs = zip(by_codes, hybrid.by_words(task.texts["queries"], DEPTH), strict=True)
        yield "codes and BM25 (RRF)", count, scores_of([reciprocal_rank_fusion(pair, DEPTH) for pair in pairs], task)
        for name, change, similarity in (
            ("codes, dot product", lambda codes: codes, "dot"),
            ("codes, split by sign", split, "cosine"),
            ("codes, split by sign, int8", lambda codes: rounded(split(codes)), "cosine"),
        ):
            other = Index(similarity=similarity, precision="float32")
            other.add(change(kept))
            yield name, count, scores_of(other.search(change(asked), DEPTH), task)


def write(rows: list[dict[str, Any]], folder: Path) -> str:
    """Table, numbers and figure; the table."""
    parts = []
    budgets = sorted({row["active_dims"] for row in rows if row["active_dims"]})
    for task in dict.fromkeys(row["task"] for row in rows):
        lines = []
        for name in dict.fromkeys(row["system"] for row in rows):
            line = {"nDCG@10 / Recall@100": name}
            for row in rows:
                if row["task"] == task and row["system"] == name:
                    cell = " / ".join(short(Spread(row["scores"][score])) for score in SCORES)
                    line[str(row["active_dims"] or "all")] = cell
            lines.append({key: line.get(key, "") for key in ("nDCG@10 / Recall@100", "all", *map(str, budgets))})
        parts.append(f"### {task.capitalize()}\n\n{table(lines)}")
    text = "\n\n".join(parts)
    (folder / "search.md").write_text(text + "\n")
    (folder / "search.json").write_text(json.dumps(rows) + "\n")
    draw(rows, budgets, folder / "search.png")
    return text


def draw(rows: list[dict[str, Any]], budgets: list[int], path: Path) -> None:
    """nDCG@10 by the number of non-zeros, a panel for each set."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(5 * len(tasks), 4), layout="constrained")
    styles = {
        "codes, cosine": ("#0072B2", "o"),
        "codes, then reranked by codes": ("#56B4E9", "s"),
        "codes, then reranked by vectors": ("#009E73", "^"),
        "codes and BM25 (RRF)": ("#D55E00", "D"),
        "codes, split by sign": ("#CC79A7", "v"),
    }
    for number, task in enumerate(tasks):
        axes = figure.add_subplot(1, len(tasks), number + 1)
        scores = {(row["system"], row["active_dims"]): row["scores"]["ndcg@10"] for row in rows if row["task"] == task}
        for name, (colour, marker) in styles.items():
            values = [scores[name, count] for count in budgets]
            axes.plot(budgets, values, color=colour, marker=marker, label=name)
        for name, line in (("dense vectors", "-"), ("BM25", "--")):
            axes.axhline(scores[name, None], color="#555555", linestyle=line, linewidth=1, label=name)
        axes.set(xscale="log", xlabel="non-zeros of a code", title=task.capitalize())
        axes.set_xticks(budgets, [str(count) for count in budgets])
        axes.minorticks_off()
        if number == 0:
            axes.set_ylabel("nDCG@10")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure on each set; write."""
    options = parse(QualityArguments, __doc__.partition("\n")[0])
    require("bm25s", extra="search")
    require("matplotlib")
    if (options.encoder_name_or_path is None) == (options.vectors_dir is None):
        raise ValueError("Give exactly one of `encoder_name_or_path` and `vectors_dir`: the vectors of the sets.")
    model, _ = load_for_inference(options.codes)
    embed = None if options.encoder_name_or_path is None else frozen_encoder(options.encoder_name_or_path)
    rows = []
    for task in load_tasks(options.suite, embed, options.vectors_dir, options.tasks, "test"):
        if not isinstance(task, RetrievalTask):
            raise ValueError(f"`tasks` must be retrieval sets, got {task.name}; leave it out.")
        for name, count, scores in systems(task, model, options.active_dims):
            scores = {score: scores[score] for score in SCORES}
            rows.append({"task": task.name, "system": name, "active_dims": count, "scores": scores})
    with staged_folder(options.output_dir) as folder:
        text = write(rows, folder)
    print(text)


if __name__ == "__main__":
    run(main)
