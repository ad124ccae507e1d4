"""Rows on their way into an index: sentences or codes in, blocks of an even size out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class Block:
    """Rows that were encoded together: codes `(rows, latent_size)`, and where they are there texts and vectors."""

    codes: sparse.csr_matrix
    texts: list[str] | None
    vectors: np.ndarray | None

    def __getitem__(self, part: slice) -> "Block":
        texts = None if self.texts is None else self.texts[part]
        return Block(self.codes[part], texts, None if self.vectors is None else self.vectors[part])


def after(rows: Iterable[Any], done: int) -> Iterator[Any]:
    """Sentences or blocks of codes without the first `done` rows."""
    for row in rows:
        count = row.shape[0] if sparse.issparse(row) else 1
        if done < count:
            yield row[done:] if done else row
        done = max(0, done - count)


def gathered(blocks: Iterable[Block], rows: int) -> Iterator[Block]:
    """The same rows in blocks of `rows`, the last one shorter."""
    waiting: list[Block] = []
    for block in blocks:
        waiting.append(block)
        while sum(part.codes.shape[0] for part in waiting) >= rows:
            whole = _joined(waiting)
            yield whole[:rows]
            waiting = [whole[rows:]]
    if sum(part.codes.shape[0] for part in waiting):
        yield _joined(waiting)


def _joined(blocks: Sequence[Block]) -> Block:
    texts = None if blocks[0].texts is None else [text for block in blocks for text in block.texts or ()]
    vectors = None if blocks[0].vectors is None else np.concatenate([cast(Any, block.vectors) for block in blocks])
    return Block(sparse.vstack([block.codes for block in blocks], format="csr"), texts, vectors)
