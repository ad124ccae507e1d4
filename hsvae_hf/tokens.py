"""Token ids of text, and padded batches of them. Nothing is set on the tokenizer, which threads may share."""

import copy
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

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


def check_limit(limit: object, what: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
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
