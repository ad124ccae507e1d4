"""Vectors as a data set: batches of rows, the order in which rows of files are read, held-out rows, one pass over all.

Rows in memory are shuffled whole, by the Trainer. Rows of files are shuffled by blocks and windows (`WindowSampler`).
"""

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from tqdm.auto import tqdm

from hsvae_hf.data import VALIDATION_SHARE
from hsvae_hf.input_checks import check_positive
from hsvae_hf.sparsity_measures import Moments
from hsvae_hf.vector_files import ArrayShard, Block, VectorShards

WINDOW_BYTES = 2**26  # of the rows of files that are in memory at a time, and shuffled together
HELD_OUT_ROWS = 20_000  # of the rows held out of files, so many are looked at, unless another number is given
VECTOR_ROWS = 8000  # for the scale of codes
_PART_ROWS = 4096  # that statistics are taken of at a time


class VectorDataset(torch.utils.data.Dataset[Any]):
    """Rows of vectors as the model's input, a batch at a time, without a Python object per row.

    Args:
        vectors: `(rows, size)`, float32, or rows of files, of which `WINDOW_BYTES` are in memory at a time.
        kept: which rows of files are in the data set, `(rows,)`, bool; None for all.
    """

    def __init__(self, vectors: np.ndarray | VectorShards, kept: np.ndarray | None = None) -> None:
        self.in_memory = isinstance(vectors, np.ndarray)
        self.vectors, self.size, self.kept = vectors, vectors.shape[1], kept
        self.blocks = _one_block(vectors) if isinstance(vectors, np.ndarray) else vectors.blocks
        counts = [len(block) if kept is None else int(kept[_rows(block)].sum()) for block in self.blocks]
        self.cuts = np.concatenate([[0], np.cumsum(counts)])  # first row of each block here, and the end
        self._loaded: OrderedDict[int, Tensor] = OrderedDict()  # blocks in memory, the last used last

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.cuts[-1])

    def __getitems__(self, rows: list[int]) -> list[dict[str, Tensor]]:
        """A whole batch in a list of one: `vectors` `(len(rows), size)`."""
        numbers = np.asarray(rows)
        places = np.searchsorted(self.cuts, numbers, side="right") - 1
        batch = torch.empty(len(numbers), self.size)
        for place in dict.fromkeys(places.tolist()):  # in the order of the rows: those of an earlier window first
            here = np.flatnonzero(places == place)
            batch[here] = self._load(place)[numbers[here] - self.cuts[place]]
        return [{"vectors": batch}]

    def _load(self, place: int) -> Tensor:
        """A block that is in memory, or is read and takes the place of those that were used the longest ago."""
        if place not in self._loaded:
            found = self.rows_of(self.blocks[place])
            limit = WINDOW_BYTES - found.nbytes
            while self._loaded and sum(block.nbytes for block in self._loaded.values()) > limit:
                self._loaded.popitem(last=False)
            self._loaded[place] = torch.from_numpy(found)
        self._loaded.move_to_end(place)
        return self._loaded[place]

    def _read(self, block: Block) -> np.ndarray:
        return self.vectors if isinstance(self.vectors, np.ndarray) else self.vectors.read(block)

    def rows_of(self, block: Block) -> np.ndarray:
        """The rows of a block that are in the data set, `(rows, size)`, float32."""
        rows = self._read(block)
        return rows if self.kept is None else rows[self.kept[_rows(block)]]

    @cached_property
    def moments(self) -> Moments:
        """Mean and standard deviation of each dimension, of one pass over all rows."""
        moments = Moments()
        for block in self.blocks:
            _add(moments, self.rows_of(block))
        return moments

    @cached_property
    def sample(self) -> np.ndarray:
        """Rows for what takes some thousands, `(rows, size)`: `VECTOR_ROWS` of files, drawn evenly; else all."""
        if self.in_memory:
            return self.rows_of(self.blocks[0])
        rows = np.random.default_rng(0).permutation(len(self))[:VECTOR_ROWS]
        return self.__getitems__(np.sort(rows).tolist())[0]["vectors"].numpy()

    @cached_property
    def fingerprint(self) -> str | None:
        """A hash of all rows, block by block; None of rows in memory."""
        if self.in_memory:
            return None
        found = hashlib.sha256()
        for block in self.blocks:
            _describe(found, block, self._read(block))
        return found.hexdigest()[:16]


def collate_vectors(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The collator of `VectorDataset`: its batch; `labels` are what is reconstructed, as a stock Trainer wants them."""
    return batches[0] | {"labels": batches[0]["vectors"]}


class WindowSampler(Sampler[int]):
    """Every row once, in an order for which a window of `WINDOW_BYTES` is in memory at a time.

    A seeded permutation puts the blocks of all files in order. As many as fill a window are taken together, and all
    rows in them are shuffled. So the rows of a batch come from several places of the data. The same epoch gives the
    same order, so a resumed run sees what an uninterrupted one would.

    Args:
        dataset: rows of files.
        seed: of the order.
        epoch: tells the current epoch whenever an order is drawn, as for `LengthGroupedSampler`.
    """

    def __init__(self, dataset: VectorDataset, seed: int = 42, epoch: Callable[[], int] = lambda: 0) -> None:
        self.cuts, self.seed, self.epoch = dataset.cuts, seed, epoch
        self.window = WINDOW_BYTES // (4 * dataset.size)  # rows

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.cuts[-1])

    def __iter__(self) -> Iterator[int]:
        """Row numbers."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        order = torch.randperm(len(self.cuts) - 1, generator=generator).numpy()
        for blocks in self._windows(order):
            rows = np.concatenate([np.arange(self.cuts[block], self.cuts[block + 1]) for block in blocks])
            yield from rows[torch.randperm(len(rows), generator=generator).numpy()].tolist()

    def _windows(self, order: np.ndarray) -> Iterator[np.ndarray]:
        """Blocks that are read together: as many as fit, at least one."""
        cuts, count = [0], 0
        for place, size in enumerate(np.diff(self.cuts)[order].tolist()):
            if count and count + size > self.window:
                cuts.append(place)
                count = 0
            count += size
        return (order[start:stop] for start, stop in pairwise([*cuts, len(order)]))


def split_vectors(
    vectors: np.ndarray | VectorShards, seed: int, max_train_samples: int | None = None, max_samples: int | None = None
) -> dict[str, VectorDataset]:
    """Split rows into `train` and `validation` (5%), drawn with `seed`, of at most so many rows each.

    The same rows are held out wherever they are. Of files, validation rows are read into memory, `HELD_OUT_ROWS` of
    them where `max_samples` is None. One pass over the files does that, and takes the statistics of the training rows.
    It takes 9 bytes of memory for each row.

    Raises:
        ValueError: if there are less than 2 rows, or a limit is no positive number; as `VectorShards.read`.
    """
    check_positive(max_train_samples=max_train_samples, max_samples=max_samples)
    if len(vectors) < 2:
        raise ValueError(f"`vectors` must have at least 2 rows, got {len(vectors)}; one is for validation.")
    order = np.random.default_rng(seed).permutation(len(vectors))
    size = max(1, int(VALIDATION_SHARE * len(vectors)))
    held_out, training = order[:size], order[size:][:max_train_samples]
    if isinstance(vectors, np.ndarray):
        return {
            "train": VectorDataset(vectors[training]),
            "validation": VectorDataset(vectors[held_out[:max_samples]]),
        }
    return _split_files(vectors, training, held_out[: max_samples or HELD_OUT_ROWS])


def first_vectors(vectors: np.ndarray | VectorShards, limit: int | None) -> VectorDataset:
    """The first `limit` rows; all where it is None."""
    if isinstance(vectors, np.ndarray):
        return VectorDataset(vectors[:limit])
    order = np.random.default_rng(0).permutation(len(vectors) if limit is None else min(limit, len(vectors)))
    return _split_files(vectors, order, order[:0])["train"]


def _split_files(vectors: VectorShards, training: np.ndarray, held_out: np.ndarray) -> dict[str, VectorDataset]:
    """Rows of files by their numbers, in one pass over all; what is held out in memory, in its order."""
    kept = np.zeros(len(vectors), dtype=bool)
    kept[training] = True
    wanted = np.concatenate([held_out, training[:VECTOR_ROWS]])
    places = np.argsort(wanted)
    ascending = wanted[places]
    taken = np.empty((len(wanted), vectors.shape[1]), np.float32)
    moments, fingerprint = Moments(), hashlib.sha256()
    for block in tqdm(vectors.blocks, desc="Read", unit=" blocks", leave=False, disable=None):
        rows = vectors.read(block)
        _add(moments, rows[kept[_rows(block)]])
        _describe(fingerprint, block, rows)
        first, last = np.searchsorted(ascending, [block.first, block.first + len(block)])
        taken[places[first:last]] = rows[ascending[first:last] - block.first]
    train = VectorDataset(vectors, kept)
    train.moments, train.sample = moments, taken[len(held_out) :]
    train.fingerprint = fingerprint.hexdigest()[:16]
    return {"train": train, "validation": VectorDataset(taken[: len(held_out)])}


def _one_block(vectors: np.ndarray) -> list[Block]:
    return [Block(ArrayShard(vectors), 0, len(vectors), 0)]


def _rows(block: Block) -> slice:
    return slice(block.first, block.first + len(block))


def _add(moments: Moments, rows: np.ndarray) -> None:
    for start in range(0, len(rows), _PART_ROWS):
        moments.update(rows[start : start + _PART_ROWS])


def _describe(found: Any, block: Block, rows: np.ndarray) -> None:
    checksum = zlib.crc32(rows.astype("<f4", copy=False).tobytes())  # as fast as the reading
    found.update(len(block).to_bytes(8, "little") + checksum.to_bytes(4, "little"))
