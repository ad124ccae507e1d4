"""Token ids of text, and padded batches of them. Nothing is set on the tokenizer, which threads may share."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# Of a forward pass: tokens, padding included; share of padding; tokens that may be padded at will.
# Near the fastest on a CPU for a GRU and for MiniLM, short texts and long ones
# (`scripts/experiments/benchmark.py batches`).
BATCH_TOKENS, PADDING, SMALL_BATCH = 5120, 1 / 16, 1024
_TOGETHER = 1024  # texts tokenised at a time: the tokenizer's own objects are large
_ROWS = 16  # matrix products of a multiple of so many rows are faster
NO_LIMIT = 10**9  # transformers writes about 1e30 where a tokenizer has no limit
_CHARACTERS = 100  # per token that is kept: of a longer text, the beginning is tried first


def private_copy(tokenizer: PreTrainedTokenizerBase) -> Any:
    """A tokenizer that works alike and shares the vocabulary, for one call: a call sets truncation on its tokenizer."""
    private: Any = copy.copy(tokenizer)
    if not tokenizer.is_fast:
        return private
    shared = private.backend_tokenizer
    backend = Tokenizer(shared.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if getattr(shared, part) is not None:
            setattr(backend, part, getattr(shared, part))
    added = shared.get_added_tokens_decoder()
    backend.add_tokens([added[index] for index in sorted(added)])
    private._tokenizer = backend
    return private


def check_limit(limit: Any, what: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """A limit of tokens per sentence, None for none.

    Args:
        limit: as a caller or a file gives it; None, and what is 1e9 or more, is no limit.
        what: how to call it in an error.
        tokenizer: whose special tokens count.

    Raises:
        ValueError: if it is not a whole number above the number of special tokens.
    """
    if limit is None or (isinstance(limit, int | float) and limit >= NO_LIMIT):
        return None
    special = tokenizer.num_special_tokens_to_add()
    if isinstance(limit, bool) or not isinstance(limit, Integral) or limit <= special:
        raise ValueError(
            f"{what} must be a whole number above {special}, the tokenizer's special tokens of a sentence, got "
            f"{limit!r}; choose a larger one, or leave it out for no limit."
        )
    return int(limit)


def token_limit(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The limit of tokens per sentence that the tokenizer has, None for none.

    Raises:
        ValueError: if it is no number of tokens.
    """
    return check_limit(tokenizer.model_max_length, "`model_max_length` of the tokenizer", tokenizer)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], limit: int | None, prompt: str = "", first: int = 0
) -> list[np.ndarray]:
    """Token ids of sentences, special tokens included, `(steps,)` each, int32.

    Args:
        tokenizer: stays as it is.
        sentences: strings.
        limit: tokens per sentence, on the tokenizer's `truncation_side`; None for all.
        prompt: goes before every sentence.
        first: index of the first sentence, for errors.

    Raises:
        ValueError: for text that is no valid Unicode.
    """
    if not sentences:
        return []
    private = private_copy(tokenizer)
    try:
        texts = [_shorten(private, prompt + sentence, limit) for sentence in sentences]
        encoded = _ids(private, texts, limit)
    except TypeError:  # what the tokenizer raises for text that UTF-8 cannot express
        for row, sentence in enumerate(sentences, first):
            if any("\ud800" <= character <= "\udfff" for character in sentence):
                raise ValueError(
                    f"`sentences` must be valid Unicode, got half a surrogate pair at index {row}: {sentence[:50]!r}; "
                    "decode the text again, or replace the character."
                ) from None
        raise
    return [np.asarray(row, dtype=np.int32) for row in encoded]


def _ids(private: Any, texts: list[str], limit: int | None) -> list[list[int]]:
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    ids: list[list[int]] = private(texts, truncation=limit is not None, max_length=limit, **options)["input_ids"]
    return ids


def _shorten(private: Any, text: str, limit: int | None) -> str:
    """So much of a very long text as is sure to fill the limit, twice over since its cut end may differ."""
    if limit is None:
        return text
    length = _CHARACTERS * limit
    while length < len(text):
        part = text[-length:] if private.truncation_side == "left" else text[:length]
        if len(_ids(private, [part], 2 * limit)[0]) == 2 * limit:
            return part
        length *= 8
    return text


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
