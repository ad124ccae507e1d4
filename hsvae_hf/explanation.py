"""Explanations of dimensions: the words and sentences that switch one on, and what two sentences share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.batching import pad_batch
from hsvae_hf.dimension_names import DimensionNames, names_of_model
from hsvae_hf.encoding import check_text_model, encode, evaluation_mode
from hsvae_hf.extras import require
from hsvae_hf.input_checks import check_positive, check_sentences
from hsvae_hf.tokens import token_limit, tokenize

ENDS = ("positive", "negative")  # of a dimension: codes above 0 and below
LEAST_SENTENCES = 5  # a word in fewer sentences of an end says nothing about it
LEAST_SCORE = 2.0  # z-score of a word that belongs to an end


@dataclass
class Explanation:
    """Why two sentences are similar.

    Args:
        similarity: dot product of their codes, `math.fsum` of the contributions.
        cosine: the same of the codes at length 1; 0 where one is empty.
        contributions: `(dimension, signed share of the similarity)` of every dimension that both use, largest first.
        names: what each of these dimensions is called, the end that both are on, or "x against y" where they are on
            different ones; None where the model has no names.
    """

    similarity: float
    cosine: float
    contributions: list[tuple[int, float]]
    names: list[str] | None = None


def explain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, a: str, b: str, names: DimensionNames | None = None
) -> Explanation:
    """The dimensions that two sentences share, and what each adds to the dot product of their codes.

    Args:
        model: any of this package with a text encoder.
        tokenizer: the model's.
        a: a sentence.
        b: another one.
        names: of `name_dimensions`; None takes those that the model was saved with, if any.

    Raises:
        ValueError: as `encode`; if the names of the model are damaged.
    """
    given: dict[str, Any] = {"a": a, "b": b}
    for name, sentence in given.items():
        if not isinstance(sentence, str):
            kind = type(sentence).__name__
            raise ValueError(f"`{name}` must be a sentence, got {kind} {str(sentence)[:50]!r}; pass its text.")
    first, second = encode(model, tokenizer, [a, b]).toarray().astype(np.float64)  # products are exact
    return explain_codes(first, second, names_of_model(model) if names is None else names)


def explain_codes(first: np.ndarray, second: np.ndarray, names: DimensionNames | None = None) -> Explanation:
    """The dimensions that two codes share, and what each adds to their dot product.

    Args:
        first: float64, `(latent_size,)`.
        second: likewise.
        names: of their dimensions, if there are any.

    Example:
        >>> explain_codes(np.array([1.0, 2.0, 0.0]), np.array([3.0, -1.0, 4.0])).contributions
        [(0, 3.0), (1, -2.0)]
    """
    products = first * second
    order = np.argsort(-np.abs(products), kind="stable")
    contributions = [(int(index), float(products[index])) for index in order if products[index] != 0]
    similarity = math.fsum(value for _, value in contributions)
    lengths = math.hypot(*first) * math.hypot(*second)
    shown = None if names is None else [_shared_name(names, index, first, second) for index, _ in contributions]
    return Explanation(similarity, similarity / lengths if lengths > 0 else 0.0, contributions, shown)


def _shared_name(names: DimensionNames, dimension: int, first: np.ndarray, second: np.ndarray) -> str:
    values = sorted((first[dimension], second[dimension]), reverse=True)  # above 0, then below
    return " against ".join(dict.fromkeys(names.of(dimension, value) for value in values))


def describe_dimensions(
    codes: sparse.csr_matrix, texts: Sequence[str], num_words: int = 8, num_sentences: int = 3
) -> list[dict[str, Any]]:
    """The words and sentences of both ends of every dimension that is ever on.

    A word's score at an end is the z-score of its log odds ratio: sentences with the dimension on at that end against
    all others, counts of sentences smoothed by 1/2. Words with a score above 2 in at least five sentences of the end
    are given, best first.

    Args:
        codes: of `texts`, `(sentences, latent_size)`.
        texts: raw sentences.
        num_words: at most so many for each end.
        num_sentences: likewise, largest codes first; 0 for none.

    Returns:
        For each dimension `dimension`, and `positive` and `negative` where it has such codes: `share` of the sentences,
        `mean` code, `words`, `sentences`.

    Raises:
        ImportError: without scikit-learn, of the extra `train`.
        ValueError: if there are not as many codes as texts, or they are no codes or no texts.
    """
    require("sklearn")
    check_positive(num_words=num_words, num_sentences=num_sentences or None)
    check_sentences(texts, "texts")
    texts = list(texts)
    if not sparse.issparse(codes) or len(codes.shape) != 2:
        kind = type(codes).__name__
        raise ValueError(f"`codes` must be a sparse matrix, as `encode` gives, got a {kind}; encode the texts.")
    if codes.shape[0] != len(texts):
        raise ValueError(f"`texts` must be those of the {codes.shape[0]} codes, got {len(texts)}; pass both in order.")
    words, vocabulary = _count_words(texts)
    with_word = np.asarray(words.sum(axis=0), dtype=np.float64).ravel()
    columns = codes.tocsc()
    described: dict[int, dict[str, Any]] = {}
    for end, part in zip(ENDS, (columns.multiply(columns > 0), columns.multiply(columns < 0)), strict=True):
        part = part.tocsc()
        part.eliminate_zeros()
        together = np.asarray((words.T @ (part != 0).astype(np.float64)).todense())  # (vocabulary, latent_size)
        for index in np.flatnonzero(part.getnnz(axis=0)):
            column = part[:, index]
            scores = _log_odds(together[:, index], with_word, column.nnz, len(texts))
            scores[together[:, index] < LEAST_SENTENCES] = -np.inf
            best = [word for word in np.argsort(-scores, kind="stable")[:num_words] if scores[word] > LEAST_SCORE]
            rows = column.indices[np.argsort(-np.abs(column.data), kind="stable")[:num_sentences]]
            described.setdefault(int(index), {"dimension": int(index)})[end] = {
                "share": column.nnz / len(texts),
                "mean": float(column.data.mean()),
                "words": vocabulary[best].tolist(),
                "sentences": [texts[row] for row in rows],
            }
    return [described[index] for index in sorted(described)]


def _count_words(texts: list[str]) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Which text has which word, `(texts, vocabulary)`, and the words, of those in enough texts."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(binary=True, min_df=LEAST_SENTENCES, token_pattern=r"(?u)\b\w\w+\b")
    try:
        return counter.fit_transform(texts), counter.get_feature_names_out()
    except ValueError:  # no word is in enough texts
        return sparse.csr_matrix((len(texts), 0)), np.array([])


def _log_odds(on: np.ndarray, with_word: np.ndarray, sentences_on: int, sentences: int) -> np.ndarray:
    """z-scores of log odds ratios, `(vocabulary,)`.

    Args:
        on: sentences with each word that the dimension is on for, `(vocabulary,)`.
        with_word: sentences with each word, `(vocabulary,)`.
        sentences_on: sentences that the dimension is on for.
        sentences: number of sentences.
    """
    off = with_word - on
    word_on, other_on = on + 0.5, sentences_on - on + 0.5
    word_off, other_off = off + 0.5, sentences - sentences_on - off + 0.5
    log_ratio = np.log(word_on * other_off / (other_on * word_off))
    return log_ratio / np.sqrt(1 / word_on + 1 / other_on + 1 / word_off + 1 / other_off)


def decode_switched(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    dimension: int,
    **generate: object,
) -> list[tuple[str, str]]:
    """What the decoder generates for sentences without a dimension, and with it.

    Args:
        model: for pre-training, with a decoder of words.
        tokenizer: the model's.
        texts: raw sentences that have it on.
        dimension: which to switch off.
        generate: options of `model.generate`.

    Returns:
        For each sentence, the words with the dimension at 0 and those of its own latent.

    Raises:
        ValueError: if there is no such dimension; if the model decodes vectors, or none of its inputs is text.
    """
    check_text_model(model, tokenizer)
    if not model.config.decodes_words or not hasattr(model, "decoder"):
        raise ValueError(
            f"`model` must decode words, got a {type(model).__name__} that does not; load it with "
            "`AutoModelForPreTraining`, if it was trained on words."
        )
    number: Any = dimension
    whole = isinstance(number, Integral) and not isinstance(number, bool)
    if not whole or not 0 <= dimension < model.config.latent_size:
        raise ValueError(
            f"`dimension` must be from 0 to {model.config.latent_size - 1}, got {dimension!r}; choose one of them."
        )
    check_sentences(texts, "texts")
    texts = list(texts)
    if not texts:
        return []
    limit = token_limit(tokenizer)
    batch = pad_batch(tokenize(tokenizer, texts, limit), tokenizer.pad_token_id or 0)
    inputs = {name: torch.from_numpy(value).to(model.device) for name, value in batch.items()}
    longest = min(limit or 1000, 1000) + 1  # the start token counts

    def generated(latents: torch.Tensor) -> list[str]:
        ids = cast(Any, model).generate(latents=latents, **({"max_length": longest} | generate))
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    with torch.inference_mode():
        with evaluation_mode(model.base_model):
            with_dimension = model.base_model(**inputs, return_dict=True).latent
        without = with_dimension.clone()
        without[:, dimension] = 0.0
        return list(zip(generated(without), generated(with_dimension), strict=True))
