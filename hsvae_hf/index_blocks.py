"""Rows on their way into an index: sentences or codes in, blocks of an even size out."""

import collections
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy import sparse
from torch import Tensor

from hsvae_hf.code_shards import ShardedCodes
from hsvae_hf.input_checks import as_codes, check_sentences

BLOCK = 4096  # sentences that are encoded together


@dataclass(frozen=True)
class Block:
    """Rows that belong together: codes `(rows, latent_size)`, and where they are there texts and vectors."""

    codes: sparse.csr_matrix
    texts: list[str] | None = None
    vectors: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.codes.shape[0])

    def __getitem__(self, part: slice) -> "Block":
        texts = None if self.texts is None else self.texts[part]
        return Block(self.codes[part], texts, None if self.vectors is None else self.vectors[part])


def parts_of(rows: Any, latent_size: int | None = None) -> Iterator[list[str] | sparse.csr_matrix]:
    """What comes in, in parts: lists of at most `BLOCK` sentences, or matrices of codes.

    Args:
        rows: an iterable of sentences, or of blocks of codes, or one matrix of codes, or the view of `load_codes`.
        latent_size: that codes must have, if it is known.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(rows, ShardedCodes):
        rows = rows.blocks()
    elif sparse.issparse(rows) or isinstance(rows, Tensor) or (isinstance(rows, np.ndarray) and rows.ndim == 2):
        rows = [rows]
    unordered = isinstance(rows, str | bytes | Mapping | set | frozenset) or hasattr(rows, "columns")
    if unordered or not isinstance(rows, Iterable):
        raise ValueError(f"`rows` must be sentences or blocks of codes, got a {type(rows).__name__}; pass a list.")
    source = iter(rows)
    for first in source:
        if isinstance(first, str):
            sentences = [first, *itertools.islice(source, BLOCK - 1)]
            check_sentences(sentences, "rows")
            yield sentences
        else:
            codes = as_codes(first, latent_size, "rows")
            latent_size = codes.shape[1]
            yield codes


def count_of(part: list[str] | sparse.csr_matrix) -> int:
    """Rows of a part."""
    return len(part) if isinstance(part, list) else int(part.shape[0])


def checksum(part: list[str] | sparse.csr_matrix, value: int = 0) -> int:
    """A number that tells rows from others, carried on from those before."""
    if isinstance(part, list):
        for text in part:
            letters = text.encode("utf-8", "surrogatepass")
            value = zlib.crc32(letters, zlib.crc32(b"%d:" % len(letters), value))
        return value
    for row in range(part.shape[0]):
        places = slice(part.indptr[row], part.indptr[row + 1])
        value = zlib.crc32(part.indices[places].astype(np.int64).tobytes(), value)
        value = zlib.crc32(part.data[places].tobytes() + b"\n", value)
    return value


class Ledger:
    """The checksum of the rows that are written, while others are on their way."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self._waiting: collections.deque[list[str] | sparse.csr_matrix] = collections.deque()

    def watch(self, parts: Iterable[list[str] | sparse.csr_matrix]) -> Iterator[list[str] | sparse.csr_matrix]:
        """The same parts, which are remembered until their rows are written."""
        for part in parts:
            self._waiting.append(part)
            yield part

    def written(self, rows: int) -> None:
        """Count the next `rows` rows."""
        while rows:
            part = self._waiting.popleft()
            taken = min(rows, count_of(part))
            self.value, rows = checksum(part[:taken], self.value), rows - taken
            if taken < count_of(part):
                self._waiting.appendleft(part[taken:])


def after(
    parts: Iterable[list[str] | sparse.csr_matrix], done: int, expected: int
) -> Iterator[list[str] | sparse.csr_matrix]:
    """The parts without the first `done` rows.

    Raises:
        ValueError: if these are fewer, or their checksum is another one than `expected`.
    """
    seen, value = 0, 0
    for part in parts:
        old = min(done - seen, count_of(part))
        if old > 0:
            value, seen = checksum(part[:old], value), seen + old
            if seen == done and value != expected:
                break
            part = part[old:]
        if count_of(part):
            yield part
    if seen < done or value != expected:
        raise ValueError("`rows` must be those of before to resume, got others; delete the folder to begin anew.")


def gathered(blocks: Iterable[Block], rows: int) -> Iterator[Block]:
    """The same rows in blocks of `rows`, the last one shorter."""
    waiting: list[Block] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block)
        if count >= rows:
            whole = joined_blocks(waiting)
            for start in range(0, count - rows + 1, rows):
                yield whole[start : start + rows]
            waiting, count = [whole[count - count % rows :]], count % rows
    if count:
        yield joined_blocks(waiting)


def joined_blocks(blocks: Sequence[Block]) -> Block:
    """One block of the rows of several."""
    texts = None if blocks[0].texts is None else [text for block in blocks for text in block.texts or ()]
    vectors = None if blocks[0].vectors is None else np.concatenate([cast(Any, block.vectors) for block in blocks])
    return Block(sparse.vstack([block.codes for block in blocks], format="csr"), texts, vectors)


def are_sentences(rows: Any) -> bool:
    """Whether these are no codes; `check_sentences` then says what is wrong with anything else."""
    if sparse.issparse(rows) or isinstance(rows, Tensor) or (isinstance(rows, np.ndarray) and rows.dtype.kind in "fiu"):
        return False
    first = next(iter(rows), None) if isinstance(rows, list | tuple) else None
    return not isinstance(first, list | tuple | np.ndarray)
