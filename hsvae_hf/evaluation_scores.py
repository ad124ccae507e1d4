"""Scores of a task from a matrix of similarities or from codes: ranking, neighbours, classes, clusters, sparsity."""

import math
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse, stats

from hsvae_hf.extras import require
from hsvae_hf.sparsity_measures import CodeStatistics

Matrix: TypeAlias = Any  # a numpy array or a scipy CSR matrix, (rows, dimensions)

DENSE_WIDTH = 4096  # wider codes, those of words, are multiplied as sparse matrices
LENGTH_GROUPS = 10
DENSITY_EDGES = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 0.99, 1.0)  # shares of rows, about log-spaced
CLUSTERING_SEEDS = 3


def dot(first: Matrix, second: Matrix) -> np.ndarray:
    """Dot products of all rows with all rows, `(rows of first, rows of second)`, float32.

    >>> dot(np.eye(2), np.ones((1, 2)))
    array([[1.],
           [1.]], dtype=float32)
    """
    if sparse.issparse(first) and sparse.issparse(second) and first.shape[1] > DENSE_WIDTH:
        return np.asarray((first @ second.T).toarray(), dtype=np.float32)
    return np.asarray(as_dense(first) @ as_dense(second).T, dtype=np.float32)


def as_dense(matrix: Matrix) -> np.ndarray:
    """As a float32 array."""
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix, dtype=np.float32)


def unit(matrix: Matrix) -> Matrix:
    """Each row divided by its length; a row of zeros stays as it is."""
    if sparse.issparse(matrix):
        norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
        return sparse.diags_array(1 / np.where(norms > 0, norms, 1.0)).astype(np.float32) @ matrix
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(norms > 0, norms, 1.0)


def cosine(first: Matrix, second: Matrix) -> np.ndarray:
    """Cosines of all rows with all rows; 0 for a row of zeros."""
    return dot(unit(first), unit(second))


def nearest(similarity: np.ndarray, count: int) -> np.ndarray:
    """The columns of the `count` largest values of each row, `(rows, count)`, largest first; of equals the first.

    >>> nearest(np.array([[0.1, 0.9, 0.9, 0.5]]), 2)
    array([[1, 2]])
    """
    count = min(count, similarity.shape[1])
    if count < similarity.shape[1] // 4:  # else sorting everything is as fast
        lowest = -np.partition(-similarity, count - 1, axis=1)[:, count - 1 : count]
        similarity = np.where(similarity >= lowest, similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def ranking_scores(
    similarity: np.ndarray, relevance: sparse.csr_matrix, ndcg_at: int = 10, recall_at: int = 100
) -> dict[str, float]:
    """Quality of rankings, nDCG and recall, means over the queries that have a relevant document.

    nDCG is that of trec_eval: a gain is the relevance itself, its discount `log2(rank + 1)`, and the ideal ranking is
    of all relevant documents (Järvelin and Kekäläinen 2002).

    Args:
        similarity: `(queries, documents)`.
        relevance: likewise, whole numbers, 0 where a document does not answer.
        ndcg_at: ranks that nDCG counts.
        recall_at: ranks that recall counts.

    Returns:
        `ndcg@10` and `recall@100`, from 0 to 1.

    Example:
        >>> ranking_scores(np.array([[0.1, 0.9]]), sparse.csr_matrix([[3, 0]]))
        {'ndcg@10': 0.6309..., 'recall@100': 1.0}
    """
    asked = np.flatnonzero(np.asarray((relevance > 0).sum(axis=1)).ravel())
    if not len(asked):
        raise ValueError("`relevance` must have a relevant document for some query, got none; check the qrels.")
    gains = np.maximum(relevance[asked].toarray(), 0)  # (queries, documents)
    order = nearest(similarity[asked], max(ndcg_at, recall_at))
    ranked = np.take_along_axis(gains, order, axis=1)
    best = -np.sort(-gains, axis=1)[:, :ndcg_at]
    discount = 1 / np.log2(np.arange(2, ndcg_at + 2))
    ndcg = _discounted(ranked[:, :ndcg_at], discount) / _discounted(best, discount)
    recall = (ranked[:, :recall_at] > 0).sum(axis=1) / (gains > 0).sum(axis=1)
    return {f"ndcg@{ndcg_at}": float(ndcg.mean()), f"recall@{recall_at}": float(recall.mean())}


def _discounted(gains: np.ndarray, discount: np.ndarray) -> np.ndarray:
    return np.asarray(gains @ discount[: gains.shape[1]])


def spearman(predicted: np.ndarray, scores: np.ndarray) -> float:
    """Rank correlation of two columns, NaN where one is constant."""
    if np.ptp(predicted) == 0 or np.ptp(scores) == 0:
        return math.nan
    return float(stats.spearmanr(predicted, scores).statistic)


def neighbour_scores(
    similarity: np.ndarray, reference: np.ndarray, count: int = 10, candidates: int = 100
) -> dict[str, float]:
    """How many of each row's nearest rows are found again.

    Args:
        similarity: of all rows with all rows, `(rows, rows)`; the diagonal is not looked at.
        reference: the nearest rows by dense cosine, `(rows, count)`.
        count: how many of the nearest by `similarity` are looked at.
        candidates: how many are looked at where a second stage ranks them anew.

    Returns:
        `neighbours@10`: share of `reference` among the 10 nearest; `candidates@100`: among the 100 nearest.
    """
    similarity = similarity.copy()
    np.fill_diagonal(similarity, -np.inf)
    found = nearest(similarity, min(max(count, candidates), len(similarity) - 1))
    hits = (found[:, :, None] == reference[:, None, :]).any(axis=2)  # (rows, found)
    size = reference.shape[1]
    return {
        f"neighbours@{count}": float(hits[:, :count].sum(axis=1).mean() / size),
        f"candidates@{candidates}": float(hits[:, :candidates].sum(axis=1).mean() / size),
    }


def reference_neighbours(vectors: np.ndarray, count: int = 10) -> np.ndarray:
    """The nearest other rows of each row by cosine, `(rows, count)`."""
    similarity = cosine(vectors, vectors)
    np.fill_diagonal(similarity, -np.inf)
    return nearest(similarity, min(count, len(vectors) - 1))


def knn_accuracy(similarity: np.ndarray, labels: np.ndarray, truth: np.ndarray, count: int = 10) -> float:
    """Accuracy of the class that most of the nearest rows have; of classes with as many, the one more similar in sum.

    Args:
        similarity: `(test rows, train rows)`.
        labels: class indices of the train rows.
        truth: of the test rows.
        count: rows that vote.

    Example:
        >>> knn_accuracy(np.array([[0.9, 0.8, 0.7]]), np.array([0, 1, 1]), np.array([1]), count=3)
        1.0
    """
    order = nearest(similarity, count)
    closeness = np.take_along_axis(similarity, order, axis=1).astype(float)
    bound = 1 + 2 * np.abs(closeness).sum(axis=1, keepdims=True)  # the sum breaks ties and no more
    rows = np.repeat(np.arange(len(truth)), order.shape[1])
    votes = np.zeros((len(truth), int(max(labels.max(), truth.max())) + 1))
    np.add.at(votes, (rows, labels[order].ravel()), (1 + closeness / bound).ravel())
    return float((votes.argmax(axis=1) == truth).mean())


def v_measure(codes: Matrix, labels: np.ndarray, seeds: int = CLUSTERING_SEEDS) -> float:
    """V-measure of k-means on codes of length 1, with as many clusters as classes; mean over seeds.

    Args:
        codes: `(rows, latent_size)`.
        labels: class indices, `(rows,)`.
        seeds: runs of `MiniBatchKMeans` with batches of 512 rows.

    Raises:
        ImportError: without scikit-learn.
    """
    require("sklearn", extra="eval")
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    rows, clusters = unit(codes), len(np.unique(labels))
    runs = [MiniBatchKMeans(clusters, batch_size=512, n_init="auto", random_state=seed) for seed in range(seeds)]
    return float(np.mean([v_measure_score(labels, run.fit_predict(rows)) for run in runs]))


def sparse_probing(train: Matrix, labels: np.ndarray, test: Matrix, truth: np.ndarray, count: int) -> float:
    """How well a class is told by its `count` best dimensions: balanced accuracy of one class against the rest, mean.

    The dimensions of a class are those whose mean over its training rows is the farthest from that over the others, in
    standard deviations (Gurnee et al. 2023); logistic regression with balanced classes reads them. Chance is 0.5.

    Args:
        train: codes, `(rows, latent_size)`.
        labels: their class indices.
        test: codes to judge by.
        truth: their class indices.
        count: dimensions per class.

    Raises:
        ImportError: without scikit-learn.
    """
    require("sklearn", extra="eval")
    from sklearn.linear_model import LogisticRegression

    learned, judged = as_dense(train), as_dense(test)
    scale = learned.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    learned, judged = learned / scale, judged / scale
    total, accuracies = learned.sum(axis=0), []
    for label in np.intersect1d(labels, truth):
        own, wanted = labels == label, truth == label
        inside = learned[own].sum(axis=0)
        difference = inside / own.sum() - (total - inside) / max(1, (~own).sum())
        best = np.argsort(-np.abs(difference), kind="stable")[:count]
        probe = LogisticRegression(class_weight="balanced").fit(learned[:, best], own)
        said = probe.predict(judged[:, best])
        accuracies.append((said[wanted].mean() + (~said[~wanted]).mean()) / 2)
    return float(np.mean(accuracies))


def explained_variance(vectors: np.ndarray, decoded: np.ndarray) -> float:
    """`1 - sum |x - decoded|^2 / sum |x - mean|^2`: 1 for a perfect reconstruction, 0 for the mean.

    >>> explained_variance(np.eye(2), np.full((2, 2), 0.5))
    0.0
    """
    residual = np.square(vectors - decoded).sum(dtype=float)
    return float(1 - residual / np.square(vectors - vectors.mean(axis=0)).sum(dtype=float))


def sparsity_scores(codes: Matrix, lengths: np.ndarray | None = None) -> dict[str, Any]:
    """Non-zeros of codes, over all rows and by length of text, and how often dimensions are on.

    Args:
        codes: `(rows, latent_size)`.
        lengths: words of each row's text, `(rows,)`.

    Returns:
        What `CodeStatistics.compute` gives; `active_dims_std`, `active_dims_p5`, `active_dims_p95`;
        `by_length`, for each tenth of the rows by length, shortest first, `words` (mean) and the same figures;
        `density`, the number of dimensions that are on for a share of the rows up to each of `up_to`, from the one
        before it; dimensions that are never on are not in it.
    """
    counted = CodeStatistics()
    counted.update(codes)
    on = codes != 0
    active, share = (np.asarray(on.sum(axis=axis)).ravel() for axis in (1, 0))
    result: dict[str, Any] = counted.compute() | _active_dims(active)
    numbers = np.histogram(share[share > 0] / len(active), bins=[0.0, *np.nextafter(DENSITY_EDGES[1:], 2)])[0]
    result["density"] = {"up_to": list(DENSITY_EDGES[1:]), "dimensions": numbers.tolist()}
    if lengths is not None and len(active) >= LENGTH_GROUPS:
        groups = np.array_split(np.argsort(lengths, kind="stable"), LENGTH_GROUPS)
        result["by_length"] = [
            {"words": float(lengths[rows].mean()), "active_dims": float(active[rows].mean())}
            | _active_dims(active[rows])
            | {"min_active_dims": int(active[rows].min()), "max_active_dims": int(active[rows].max())}
            | {"empty_rows": float((active[rows] == 0).mean())}
            for rows in groups
        ]
    return result


def _active_dims(active: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(active, [5, 95])
    return {"active_dims_std": float(active.std()), "active_dims_p5": float(low), "active_dims_p95": float(high)}


def postings_touched(queries: Matrix, documents: Matrix) -> float:
    """Entries of an inverted index that a query reads: for each of its non-zeros, the documents that have it too; mean.

    >>> postings_touched(sparse.csr_matrix([[1.0, 0.0]]), sparse.csr_matrix([[1.0, 2.0], [3.0, 0.0]]))
    2.0
    """
    lists = np.asarray((documents != 0).sum(axis=0)).ravel()
    return float(np.asarray((queries != 0) @ lists).mean())
