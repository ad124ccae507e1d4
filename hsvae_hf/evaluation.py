"""Codes measured as the field measures vectors: retrieval, similarity, neighbours, classes, at a budget."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf import evaluation_scores as scores_of
from hsvae_hf.evaluation_checks import check_bytes, check_fits, check_systems, check_tasks, check_training
from hsvae_hf.evaluation_codings import Coding, coding, row_products, sides
from hsvae_hf.evaluation_scores import Matrix, cosine, dot
from hsvae_hf.evaluation_systems import (
    VALUE_BITS,
    Coder,
    ModelCoder,
    QuantizedCoder,
    System,
    TextModelCoder,
    TfidfCoder,
    active_dims_of_bytes,
    baselines,
    bm25_similarity,
)
from hsvae_hf.evaluation_tasks import ClassificationTask, RetrievalTask, SimilarityTask, Task, word_counts
from hsvae_hf.input_checks import check_model, check_numbers, check_positive, check_sentences, check_switch
from hsvae_hf.probes import probe_accuracy, tfidf_accuracy

Row: TypeAlias = dict[str, Any]

ACTIVE_DIMS = 2, 4, 8, 16, 32, 64
QUERY_ACTIVE_DIMS = 32, 128
MEASURES = "neighbours", "knn", "logistic", "clustering", "probing"
POOL_ROWS = 2000  # whose neighbours are looked at: all pairs are compared
PROBED_DIMS = 1, 5
MAIN_SCORES = {"retrieval": "ndcg@10", "similarity": "spearman", "classification": "knn@10"}
QUANTISED_ROWS = 1000  # that choose the bits of a value


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """What is measured of every system.

    Attributes:
        measures: of the codes, of `MEASURES`; retrieval and similarity are measured always.
        query_active_dims: numbers of dimensions that the dense query of an asymmetric scoring is cut to.
        pool_rows: rows of a task whose neighbours are looked at; a smaller pool keeps more of them.
        seed: of the draw of these rows.
        scorings: of neighbours and classes, which take the longest, by their names in `scores`, such as "cosine" and
            "asymmetric"; None for all that there are.
    """

    measures: Sequence[str] = MEASURES
    query_active_dims: Sequence[int] = QUERY_ACTIVE_DIMS
    pool_rows: int = POOL_ROWS
    seed: int = 0
    scorings: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_sentences(self.measures, "measures")
        check_numbers(query_active_dims=self.query_active_dims)
        check_positive(pool_rows=self.pool_rows)
        unknown = sorted(set(self.measures) - set(MEASURES))
        if unknown:
            raise ValueError(f"`measures` must be of {', '.join(MEASURES)}, got {unknown[0]!r}; leave it out.")


def evaluate_codes(
    model: PreTrainedModel,
    tasks: Iterable[Task],
    active_dims: Sequence[int | None] | None = None,
    bytes_per_code: Sequence[int] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    with_baselines: bool = False,
    training: np.ndarray | None = None,
    protocol: EvaluationProtocol | None = None,
    name: str = "HSVAE",
) -> list[Row]:
    """Measure a model on tasks at every budget.

    Args:
        model: loaded or fitted, of this package; one that decodes vectors is scored by dense queries too.
        tasks: see `hsvae_hf.evaluation_tasks.load_tasks`.
        active_dims: budgets of non-zeros, from 1 to `latent_size`; None among them is the model's own rule. None takes
            those of `ACTIVE_DIMS` that codes of the model can have.
        bytes_per_code: budgets of bytes, for which dimensions are on and their values (see `active_dims_of_bytes`); the
            bits of a value are those of `VALUE_BITS` that keep the most neighbours of `training`.
        tokenizer: of a model that decodes words, which is measured on text.
        with_baselines: whether to measure what needs no training too.
        training: vectors of validation or training rows, `(rows, size)`, that baselines are fitted on and that choose
            the bits of a value; None takes those of each task.
        protocol: what is measured.
        name: of the system in the rows.

    Returns:
        A row for each task and system, fit for JSON: `task`, `kind`, `split`, `system`, `budget` (see `System`),
        `scores` by name, `codes` (see `sparsity_scores`), `encode_seconds` for `encode_rows`, and `pool_rows`, of which
        a query of these rows touches `pool_postings` postings in an inverted index of them. A score that is not
        defined, such as the correlation of a constant, is None.

    Raises:
        ValueError: if the model is none of this package, its vectors are of another encoder, or codes of it can't have
            a budget; before anything is measured, where `tasks` is a list.
    """
    check_model(model)
    check_switch(with_baselines=with_baselines)
    protocol = EvaluationProtocol() if protocol is None else protocol
    active_dims = usual_budgets(model) if active_dims is None else active_dims
    check_systems(model, active_dims, bytes_per_code, tokenizer)
    if training is not None:
        training = check_training([model], training)
    for task in check_tasks(tasks):
        check_fits(model, task)
    rows: list[Row] = []
    for task in tasks:
        check_fits(model, task)
        measured = TaskEvaluation(task, protocol)
        vectors = task.training if training is None else training
        if with_baselines:
            rows += measured.baseline_rows(vectors, [budget for budget in active_dims if budget is not None])
        systems = model_systems(model, vectors, active_dims, bytes_per_code, tokenizer, name)
        rows += [measured.row(system) for system in systems]
    return rows


def usual_budgets(model: PreTrainedModel) -> list[int]:
    """Those of `ACTIVE_DIMS` that codes of the model can have."""
    return [count for count in ACTIVE_DIMS if count <= model.config.latent_size]


def model_systems(
    model: PreTrainedModel,
    vectors: np.ndarray,
    active_dims: Sequence[int | None],
    bytes_per_code: Sequence[int] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str = "HSVAE",
) -> Iterator[System]:
    """A model at each of its budgets; the arguments are those of `evaluate_codes`, and `vectors` its `training`.

    Raises:
        ValueError: as `evaluate_codes`.
    """
    check_systems(model, active_dims, bytes_per_code, tokenizer)
    words = model.config.decodes_words
    for count in active_dims:
        budget = {} if count is None else {"active_dims": count}
        coder = TextModelCoder(model, tokenizer, count) if tokenizer is not None and words else ModelCoder(model, count)
        yield System(name, budget, coder)
    for size in bytes_per_code:
        yield quantised_system(model, size, vectors, name)


def quantised_system(model: PreTrainedModel, size: int, vectors: np.ndarray, name: str = "HSVAE") -> System:
    """The model's codes in `size` bytes each, with the number of bits per value that keeps the most neighbours.

    Args:
        model: of `decoder_type="vector"`.
        size: bytes per code.
        vectors: `(rows, size)`, that choose; 1,000 of them are looked at.
        name: of the system.
    """
    width = model.config.latent_size
    check_bytes(size, width)
    step = max(1, len(vectors) // QUANTISED_ROWS)
    sample = vectors[::step][:QUANTISED_ROWS]
    reference = scores_of.reference_neighbours(sample)
    best, kept = None, -1.0
    for bits in VALUE_BITS:
        count = active_dims_of_bytes(size, width, bits)
        if count < 1:
            continue
        coder = QuantizedCoder(ModelCoder(model, count), bits, sample)
        codes = coder.encode(sample)
        found = scores_of.neighbour_scores(cosine(codes, codes), reference)["neighbours@10"]
        if found > kept:
            best, kept = System(name, {"bytes": size, "value_bits": bits, "active_dims": count}, coder), found
    return cast(System, best)


class TaskEvaluation:
    """One task, and what all systems are compared with on it.

    Args:
        task: with its vectors.
        protocol: what is measured.

    Example:
        >>> from hsvae_hf.evaluation_systems import Dense
        >>> pairs = {"first": np.eye(3), "second": np.array([[1.0, 0, 0], [1, 1, 0], [1, 1, 0]])}
        >>> task = SimilarityTask(name="pairs", split="test", vectors=pairs, scores=np.array([5.0, 3.0, 0.0]))
        >>> row = TaskEvaluation(task).row(System("dense", {}, Dense()))
        >>> row["scores"]["cosine_spearman"]
        1.0
    """

    def __init__(self, task: Task, protocol: EvaluationProtocol | None = None) -> None:
        self.task = task
        self.protocol = EvaluationProtocol() if protocol is None else protocol
        self.pool = task.pool(self.protocol.pool_rows, self.protocol.seed)
        pool_vectors = np.concatenate([task.vectors[part] for part in task.pool_parts])[self.pool]
        self.reference = None
        if "neighbours" in self.protocol.measures and len(self.pool) > 1:
            self.reference = scores_of.reference_neighbours(pool_vectors)
        self.lengths = None
        if all(part in task.texts for part in task.pool_parts):
            self.lengths = word_counts([text for part in task.pool_parts for text in task.texts[part]])[self.pool]

    def row(self, system: System) -> Row:
        """Everything that is measured of a system."""
        started = time.perf_counter()
        codings, encoded = {}, 0.0
        for part in self.task.vectors:
            codings[part], seconds = self._code(system.coder, part)
            encoded += seconds
        pool = Coding.join([codings[part] for part in self.task.pool_parts]).take(self.pool)
        scores = self._task_scores(codings) | self._pool_scores(pool)
        return self._row(system.name, system.budget) | {
            "scores": {score: value if math.isfinite(value) else None for score, value in scores.items()},
            "codes": scores_of.sparsity_scores(pool.codes, self.lengths),
            "pool_rows": len(self.pool),
            "encode_rows": sum(len(vectors) for vectors in self.task.vectors.values()),
            "encode_seconds": encoded,
            "seconds": time.perf_counter() - started,
        }

    def baseline_rows(self, vectors: np.ndarray, active_dims: Sequence[int]) -> Iterator[Row]:
        """Systems without training, of words where the task has text, and of vectors.

        Args:
            vectors: that those of vectors are fitted on, `(rows, size)`.
            active_dims: budgets of non-zeros.

        Raises:
            ImportError: without the extra `eval`.
        """
        yield from self.text_rows()
        for system in baselines(vectors, active_dims):
            yield self.row(system)

    def text_rows(self) -> Iterator[Row]:
        """TF-IDF, and BM25 where documents are ranked, if the task has text."""
        if not all(part in self.task.texts for part in self.task.vectors):
            return
        task = self.task
        training = [text for part in task.training_parts for text in task.texts[part]]
        row = self.row(System("TF-IDF", {}, TfidfCoder(training)))
        if isinstance(task, ClassificationTask) and "logistic" in self.protocol.measures:
            splits = (
                Dataset.from_dict({"text": task.texts[part], "label": task.labels[part]}) for part in ("train", "test")
            )
            row["scores"]["logistic_accuracy"] = tfidf_accuracy(*splits)
        yield row
        if isinstance(task, RetrievalTask):
            similarity = bm25_similarity(task.texts["queries"], task.texts["corpus"])
            found = scores_of.ranking_scores(similarity, task.relevance)
            yield self._row("BM25", {}) | {"scores": {f"dot_{name}": value for name, value in found.items()}}

    def _row(self, name: str, budget: dict[str, int]) -> Row:
        return {
            "task": self.task.name,
            "kind": self.task.kind,
            "split": self.task.split,
            "system": name,
            "budget": dict(budget),
        }

    def _code(self, coder: Coder, part: str) -> tuple[Coding, float]:
        vectors = self.task.vectors[part]
        started = time.perf_counter()
        if getattr(coder, "reads_text", False):
            if part not in self.task.texts:
                raise ValueError(f"`tasks` must have text for {type(coder).__name__}, got none in {self.task.name}.")
            codes = coder.encode(self.task.texts[part])
        else:
            codes = coder.encode(vectors)
        seconds = time.perf_counter() - started
        return coding(coder, vectors, codes), seconds

    def _sides(self, queries: Coding, documents: Coding) -> Iterator[tuple[str, Matrix, Matrix]]:
        return sides(queries, documents, self.protocol.query_active_dims)

    def _chosen_sides(self, queries: Coding, documents: Coding) -> Iterator[tuple[str, Matrix, Matrix]]:
        chosen = self.protocol.scorings
        return (side for side in self._sides(queries, documents) if chosen is None or side[0] in chosen)

    def _task_scores(self, codings: dict[str, Coding]) -> dict[str, float]:
        task = self.task
        if isinstance(task, RetrievalTask):
            return self._retrieval(task, codings["queries"], codings["corpus"])
        if isinstance(task, SimilarityTask):
            return self._similarity(task, codings["first"], codings["second"])
        if isinstance(task, ClassificationTask):
            return self._classification(task, codings["train"], codings["test"])
        return {}

    def _retrieval(self, task: RetrievalTask, queries: Coding, corpus: Coding) -> dict[str, float]:
        scores: dict[str, float] = {}
        for name, query_side, document_side in self._sides(queries, corpus):
            found = scores_of.ranking_scores(dot(query_side, document_side), task.relevance)
            scores |= {f"{name}_{score}": value for score, value in found.items()}
            if name == "dot" or name.startswith("asymmetric_top"):
                width = corpus.codes.shape[1]
                touched = scores_of.postings_touched(query_side[:, :width], corpus.codes)
                scores["postings" if name == "dot" else f"{name}_postings"] = touched
        return scores

    def _similarity(self, task: SimilarityTask, first: Coding, second: Coding) -> dict[str, float]:
        """Both ways round, which for a symmetric scoring are the same."""
        found: dict[str, list[float]] = {}
        for queries, documents in ((first, second), (second, first)):
            for name, query_side, document_side in self._sides(queries, documents):
                predicted = row_products(query_side, document_side)
                found.setdefault(f"{name}_spearman", []).append(scores_of.spearman(predicted, task.scores))
        return {name: float(np.mean(values)) for name, values in found.items()}

    def _classification(self, task: ClassificationTask, train: Coding, test: Coding) -> dict[str, float]:
        labels, truth, measures = task.labels["train"], task.labels["test"], self.protocol.measures
        narrow = train.codes.shape[1] <= scores_of.DENSE_WIDTH  # not of words, whose probe is that of TF-IDF
        scores: dict[str, float] = {}
        if "knn" in measures:
            for name, query_side, document_side in self._chosen_sides(test, train):
                scores[f"{name}_knn@10"] = scores_of.knn_accuracy(dot(query_side, document_side), labels, truth)
        if "logistic" in measures and narrow:
            scores["logistic_accuracy"] = probe_accuracy(train.codes, labels, test.codes, truth)
        if "clustering" in measures:
            scores["v_measure"] = scores_of.v_measure(test.codes, truth)
        if "probing" in measures and narrow:
            for count in PROBED_DIMS:
                found = scores_of.sparse_probing(train.codes, labels, test.codes, truth, count)
                scores[f"sparse_probing@{count}"] = found
        return scores

    def _pool_scores(self, pool: Coding) -> dict[str, float]:
        scores: dict[str, float] = {"pool_postings": scores_of.postings_touched(pool.codes, pool.codes)}
        if pool.decoded is not None:
            scores["explained_variance"] = scores_of.explained_variance(pool.vectors, pool.decoded)
        if self.reference is not None:
            for name, query_side, document_side in self._chosen_sides(pool, pool):
                found = scores_of.neighbour_scores(dot(query_side, document_side), self.reference)
                scores |= {f"{name}_{score}": value for score, value in found.items()}
        return scores


def table(rows: Sequence[Row]) -> list[str]:
    r"""Lines of a table of rows of one task: the main score of its kind, and neighbours, symmetric and dense query.

    Args:
        rows: of `evaluate_codes`, of one task.

    Example:
        >>> scores = {"cosine_ndcg@10": 0.4, "asymmetric_ndcg@10": 0.42, "cosine_neighbours@10": 0.6}
        >>> row = {"task": "cranfield", "kind": "retrieval", "split": "all", "system": "mine", "scores": scores}
        >>> print(*table([row | {"budget": {"active_dims": 16}, "codes": {"active_dims": 15.5}}]), sep="\n")
        cranfield (all)        non-zeros  bytes  ndcg@10  dense query  neighbours  dense query
        mine                        15.5      -    0.400        0.420       0.600            -
    """
    main = MAIN_SCORES[rows[0]["kind"]]
    heads = ("non-zeros", "bytes", main, "dense query", "neighbours", "dense query")
    width = max([len(f"{row['task']} ({row['split']})") for row in rows] + [len(row["system"]) for row in rows]) + 4
    width = max(width, 21)
    lines = ["  ".join([f"{rows[0]['task']} ({rows[0]['split']})".ljust(width), *heads])]
    for row in rows:
        scores, budget = row["scores"], row["budget"]
        symmetric = scores.get(f"cosine_{main}", scores.get(f"dot_{main}"))
        values = [f"{symmetric:.3f}" if symmetric is not None else "-"]
        for name in (f"asymmetric_{main}", "cosine_neighbours@10", "asymmetric_neighbours@10"):
            values.append(f"{scores[name]:.3f}" if scores.get(name) is not None else "-")
        active = f"{row['codes']['active_dims']:.1f}" if "codes" in row else "-"
        cells = [active, str(budget.get("bytes", "-")), *values]
        lines.append("  ".join([row["system"].ljust(width), *map(str.rjust, cells, map(len, heads))]))
    return lines
