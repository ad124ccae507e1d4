"""Fields of a configuration that come from its tokenizer: the special tokens and a checksum of the words."""

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase


def tokenizer_checksum(tokenizer: PreTrainedTokenizerBase, size: int | None = None) -> str:
    """A checksum of which word has which id, alike for the fast and the slow form of a tokenizer.

    Args:
        tokenizer: any.
        size: of the vocabulary: words with larger ids, added later, do not count; None takes all.
    """
    size = len(tokenizer) if size is None else size
    words = sorted((index, word) for word, index in tokenizer.get_vocab().items() if index < size)
    return f"{size}-{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]}"


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The fields of a configuration that name the special tokens of `tokenizer`.

    Raises:
        ValueError: if a special token is missing.
    """
    ends = tokenizer("")["input_ids"] or [tokenizer.eos_token_id]  # what begins and ends a sentence, in that order
    unknown = tokenizer.mask_token_id if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "unk_token_id": unknown,
        "bos_token_id": ends[0],
        "eos_token_id": ends[-1],
        "decoder_start_token_id": ends[0],
    }
    for name, value in ids.items():
        if value is None:
            raise ValueError(f"`{name}` must be known, got a tokenizer without it; add that token to the tokenizer.")
    return ids


def tokenizer_fields(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The special tokens of `tokenizer` and the checksum of its words, as fields of a configuration.

    Raises:
        ValueError: if a special token is missing.
    """
    return {**special_token_ids(tokenizer), "tokenizer_checksum": tokenizer_checksum(tokenizer)}
