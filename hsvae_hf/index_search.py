"""Search in segments: the rows of the highest scores, exact, and their order by a second stage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from hsvae_hf.index_segments import Segment


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        id: of the row.
        score: its similarity to the query.
        text: if the index has it.
    """

    id: int | str
    score: float
    text: str | None = None


# Rows that are found are `(rows, 3)`: the number of the segment, the row in it, the score; best first.


def nearest(segments: Sequence[Segment], codes: sparse.csr_matrix, count: int) -> list[np.ndarray]:
    """The rows with the highest scores above 0 for each query; of equal ones those that were put in first.

    Args:
        segments: of the index.
        codes: of queries, `(queries, latent_size)`.
        count: at most so many rows for each.
    """
    best = [np.empty((0, 3)) for _ in range(codes.shape[0])]
    for number, segment in enumerate(segments):
        scores, removed = torch.empty(len(segment)), torch.from_numpy(segment.removed)
        any_removed = bool(segment.removed.any())
        for query, found in enumerate(best):
            part = slice(codes.indptr[query], codes.indptr[query + 1])
            scores.zero_()
            segment.add_scores(codes.indices[part], codes.data[part], scores)
            if any_removed:
                scores[removed] = 0.0
            floor = found[-1, 2] if len(found) == count else 0.0
            rows = _highest(scores, count, float(floor))
            here = np.stack([np.full(len(rows), number), rows, scores[rows].numpy()], axis=1)
            best[query] = first_of(np.concatenate([found, here]), count)
    return best


def _highest(scores: Tensor, count: int, floor: float) -> np.ndarray:
    """The rows of the `count` highest scores above `floor`, and all that are level with the last of them."""
    if floor > 0:
        rows = (scores > floor).nonzero().squeeze(1)
        if len(rows) <= count:
            return rows.numpy()
        last = scores[rows].topk(count).values[-1]
        return rows[scores[rows] >= last].numpy()
    last = scores.topk(min(count, len(scores))).values[-1]
    return (scores >= last if last > 0 else scores > 0).nonzero().squeeze(1).numpy()


def first_of(found: np.ndarray, count: int) -> np.ndarray:
    """The rows of the highest scores; of equal ones those that were put in first."""
    return found[np.lexsort((found[:, 1], found[:, 0], -found[:, 2]))[:count]]


def scored(
    segments: Sequence[Segment], found: np.ndarray, score: Callable[[Segment, np.ndarray], np.ndarray], count: int
) -> np.ndarray:
    """The same rows by another score, of a segment and rows in it; the `count` best of them."""
    found = found.copy()
    for number in np.unique(found[:, 0]).astype(int).tolist():
        chosen = found[:, 0] == number
        found[chosen, 2] = score(segments[number], found[chosen, 1].astype(int))
    return first_of(found, count)


def by_codes(query: sparse.csr_matrix) -> Callable[[Segment, np.ndarray], np.ndarray]:
    """The score of the codes themselves, for a query `(1, latent_size)`."""
    return lambda segment, rows: segment.values_at(rows, query.indices) @ query.data


def by_kept(rerank: str, query: np.ndarray) -> Callable[[Segment, np.ndarray], np.ndarray]:
    """The score of a dense query and what is kept, "vectors" or "codes"."""
    if rerank == "codes":
        return lambda segment, rows: segment.kept_codes(rows) @ query
    return lambda segment, rows: segment.kept_vectors(rows) @ query
