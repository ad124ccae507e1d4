"""Batches: padded text of similar length, collators, the sampler that groups sentences by length."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from hsvae_hf.tokens import tokenize

# Of a forward pass: tokens, padding included; share of padding; tokens that may be padded at will.
# Near the fastest on a CPU for a GRU and for MiniLM, short texts and long ones
# (`scripts/experiments/benchmark.py batches`).
BATCH_TOKENS, PADDING, SMALL_BATCH = 5120, 1 / 16, 1024
_TOGETHER = 1024  # texts tokenised at a time: the tokenizer's own objects are large
_ROWS = 16  # matrix products of a multiple of so many rows are faster


def length_batches(lengths: Sequence[int] | np.ndarray, batch_size: int | None) -> Iterator[np.ndarray]:
    """Row numbers in batches of similar length, the longest first, so that too large a batch fails at once.

    Args:
        lengths: tokens of each row.
        batch_size: rows per batch; None for as many as have `BATCH_TOKENS` tokens and are of similar length.

    >>> [rows.tolist() for rows in length_batches([2, 9, 5], batch_size=2)]
    [[1, 2], [0]]
    """
    sizes = np.asarray(lengths)
    order = np.argsort(-sizes, kind="stable")  # equal inputs give equal batches
    start = 0
    while start < len(order):
        count = batch_size or _fitting(sizes[order[start : start + BATCH_TOKENS]])
        yield order[start : start + count]
        start += count


def _fitting(lengths: np.ndarray) -> int:
    """How many of these rows, the longest first, make up a batch."""
    tokens = max(1, lengths[0]) * np.arange(1, len(lengths) + 1)
    padded = (tokens - np.cumsum(lengths) > PADDING * tokens) & (tokens > SMALL_BATCH)
    too_many = padded | (tokens > BATCH_TOKENS)
    if not too_many.any():
        return len(lengths)
    count = max(1, int(too_many.argmax()))
    return count - count % _ROWS if count > _ROWS else count


def padded_batches(
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    group: Callable[[np.ndarray], Iterable[np.ndarray]],
    limit: int | None,
    prompt: str = "",
    first: int = 0,
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Sentences in padded batches. This is the only loop from text to the input of a model.

    Args:
        tokenizer: stays as it is.
        sentences: strings.
        group: from the number of tokens of each sentence to the row numbers of each batch, such as `length_batches`.
        limit: tokens per sentence; None for no limit.
        prompt: goes before every sentence.
        first: index of the first sentence, for errors.

    Yields:
        Row numbers, and `input_ids` and `attention_mask`, `(batch, steps)` each, on the CPU.

    Raises:
        ValueError: as `tokenize`.
    """
    ids: list[np.ndarray] = []
    for start in range(0, len(sentences), _TOGETHER):
        ids += tokenize(tokenizer, sentences[start : start + _TOGETHER], limit, prompt, first + start)
    for rows in group(np.array([len(row) for row in ids], dtype=np.int64)):
        batch = pad_batch([ids[row] for row in rows], tokenizer.pad_token_id or 0)
        yield rows, {name: torch.from_numpy(array) for name, array in batch.items()}


def pad_batch(ids: list[np.ndarray], pad: int) -> dict[str, np.ndarray]:
    """`input_ids` and `attention_mask`, `(batch, steps)`, padded with `pad` on the right.

    >>> pad_batch([np.array([5, 1]), np.array([6, 7, 1])], pad=0)["input_ids"].tolist()
    [[5, 1, 0], [6, 7, 1]]
    """
    lengths = np.array([len(row) for row in ids])
    mask = np.arange(lengths.max()) < lengths[:, None]  # (batch, steps)
    padded = np.full(mask.shape, pad, dtype=np.int64)
    padded[mask] = np.concatenate(ids)
    return {"input_ids": padded, "attention_mask": mask.astype(np.int64)}


Batches: TypeAlias = Iterator[tuple[np.ndarray, dict[str, Tensor]]]  # row numbers, and the model's input


@dataclass
class TextCollator:
    """Pad tokenized rows to a batch.

    Args:
        tokenizer: pads, on its own side.
        with_labels: carry `label` on as `labels` (classification); without, `labels` are the tokens, which pre-training
            reconstructs, as a stock Trainer wants them for its evaluation.
    """

    tokenizer: PreTrainedTokenizerBase
    with_labels: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make `input_ids` and `attention_mask`, `(batch, steps)`, and `labels`, `(batch,)` or `(batch, steps)`."""
        batch = dict(self.tokenizer.pad({"input_ids": [row["input_ids"] for row in rows]}, return_tensors="pt"))
        if self.with_labels:
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        else:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return batch


class LengthGroupedSampler(Sampler[int]):
    """Random batches of sentences of similar length: windows of batches are sorted, then the batches shuffled.

    The same epoch gives the same order, so a resumed run sees what an uninterrupted one would.

    Args:
        lengths: tokens per row.
        batch_size: rows per step over all processes.
        seed: of the order.
        window: batches sorted together; larger means less padding and less randomness.
        epoch: tells the current epoch whenever an order is drawn. (Accelerate's `set_epoch` does not reach a sampler
            behind the batches that a resumed run skips.)
    """

    def __init__(
        self,
        lengths: list[int],
        batch_size: int,
        seed: int = 42,
        window: int = 8,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.lengths, self.batch_size, self.seed, self.window, self.epoch = lengths, batch_size, seed, window, epoch

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Row numbers; the last, smaller batch comes last."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        rows = torch.randperm(len(self), generator=generator).tolist()
        whole = len(rows) - len(rows) % self.batch_size
        rows, last = rows[:whole], rows[whole:]  # set aside before sorting, or it would hold long sentences alone
        size, batches = self.window * self.batch_size, []
        for start in range(0, whole, size):
            window = sorted(rows[start : start + size], key=self.lengths.__getitem__)
            batches += [window[first : first + self.batch_size] for first in range(0, len(window), self.batch_size)]
        order = torch.randperm(len(batches), generator=generator).tolist()
        return iter([row for index in order for row in batches[index]] + last)
