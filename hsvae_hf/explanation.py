"""What a dimension means: the words and sentences that switch it on, what the decoder makes of it, what pairs share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.encoding import check_text_model, encode, evaluation_mode
from hsvae_hf.extras import require
from hsvae_hf.inputs import check_positive, check_sentences
from hsvae_hf.tokens import pad_batch, token_limit, tokenize

LEAST_SENTENCES = 5  # a word in fewer of those that switch a dimension on says nothing about it


@dataclass
class Explanation:
    """Why two sentences are similar.

    Args:
        similarity: dot product of their codes, `math.fsum` of the contributions.
        cosine: the same of the codes at length 1; 0 where one is empty.
        contributions: `(dimension, signed share of the similarity)` of every dimension that both use, largest first.
    """

    similarity: float
    cosine: float
    contributions: list[tuple[int, float]]


def explain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, a: str, b: str) -> Explanation:
    """The dimensions that two sentences share, and what each adds to the dot product of their codes.

    Args:
        model: any of this package with a text encoder.
        tokenizer: the model's.
        a: a sentence.
        b: another one.

    Raises:
        ValueError: as `encode`.
    """
    given: dict[str, Any] = {"a": a, "b": b}
    for name, sentence in given.items():
        if not isinstance(sentence, str):
            kind = type(sentence).__name__
            raise ValueError(f"`{name}` must be a sentence, got {kind} {str(sentence)[:50]!r}; pass its text.")
    first, second = encode(model, tokenizer, [a, b]).toarray().astype(np.float64)  # products are exact
    products = first * second
    order = np.argsort(-np.abs(products), kind="stable")
    contributions = [(int(index), float(products[index])) for index in order if products[index] != 0]
    similarity, lengths = math.fsum(value for _, value in contributions), math.hypot(*first) * math.hypot(*second)
    return Explanation(similarity, similarity / lengths if lengths > 0 else 0.0, contributions)


def describe_dimensions(
    codes: sparse.csr_matrix, texts: Sequence[str], num_words: int = 8, num_sentences: int = 3
) -> list[dict[str, Any]]:
    """The words and sentences of both ends of every dimension that is ever on.

    A word belongs to an end by the z-score of its log odds ratio, sentences with the dimension on at that end against
    all others, counts of sentences smoothed by 1/2; given are words above 2 that are in five such sentences.

    Args:
        codes: of `texts`, `(sentences, latent_size)`.
        texts: raw sentences.
        num_words: at most so many for each end.
        num_sentences: likewise, by the size of the code; 0 for none.

    Returns:
        For each dimension `dimension`, and `positive` and `negative` where it has such codes: `share` of the sentences,
        `mean` code, `words`, `sentences`.

    Raises:
        ImportError: without scikit-learn, of the extra `train`.
        ValueError: if there are not as many codes as texts, or they are no codes or no texts.
    """
    require("sklearn")
    from sklearn.feature_extraction.text import CountVectorizer

    check_positive(num_words=num_words, num_sentences=num_sentences or None)
    check_sentences(texts, "texts")
    texts = list(texts)
    if not sparse.issparse(codes) or len(codes.shape) != 2:
        kind = type(codes).__name__
        raise ValueError(f"`codes` must be a sparse matrix, as `encode` gives, got a {kind}; encode the texts.")
    if codes.shape[0] != len(texts):
        raise ValueError(f"`texts` must be those of the {codes.shape[0]} codes, got {len(texts)}; pass both in order.")
    counter = CountVectorizer(binary=True, min_df=LEAST_SENTENCES, token_pattern=r"(?u)\b\w\w+\b")
    try:
        words = counter.fit_transform(texts)
        vocabulary = counter.get_feature_names_out()
    except ValueError:  # no word is in enough sentences
        words, vocabulary = sparse.csr_matrix((len(texts), 0)), np.array([])
    total = np.asarray(words.sum(axis=0), dtype=np.float64).ravel()
    columns = codes.tocsc()
    ends: dict[str, Any] = {"positive": columns.multiply(columns > 0), "negative": columns.multiply(columns < 0)}
    found: dict[int, dict[str, Any]] = {}
    for end, part in ends.items():
        part = part.tocsc()
        part.eliminate_zeros()
        on = (part != 0).astype(np.float64)
        together = np.asarray((words.T @ on).todense())
        for index in np.flatnonzero(on.getnnz(axis=0)):
            column = part[:, index]
            scores = _log_odds(together[:, index], total, column.nnz, len(texts))
            scores[together[:, index] < LEAST_SENTENCES] = -np.inf
            top = [word for word in np.argsort(-scores)[:num_words] if scores[word] > 2]
            rows = column.indices[np.argsort(-np.abs(column.data), kind="stable")[:num_sentences]]
            found.setdefault(int(index), {"dimension": int(index)})[end] = {
                "share": column.nnz / len(texts),
                "mean": float(column.data.mean()),
                "words": vocabulary[top].tolist(),
                "sentences": [texts[row] for row in rows],
            }
    return [found[index] for index in sorted(found)]


def _log_odds(on: np.ndarray, total: np.ndarray, sentences_on: int, sentences: int) -> np.ndarray:
    """z-scores of log odds ratios, from counts of sentences with a word: where the dimension is on, and in all."""
    cells = (on, sentences_on - on, total - on, sentences - sentences_on - (total - on))
    a, b, c, d = (cell + 0.5 for cell in cells)
    return np.log(a * d / (b * c)) / np.sqrt(1 / a + 1 / b + 1 / c + 1 / d)


@torch.inference_mode()
def decode_switched(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    dimension: int,
    **generate: Any,
) -> list[tuple[str, str]]:
    """What the decoder says of sentences without a dimension, and with it.

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
    limit, texts = token_limit(tokenizer), list(texts)
    if not texts:
        return []
    ids = tokenize(tokenizer, texts, limit)
    inputs = {
        name: torch.from_numpy(value).to(model.device)
        for name, value in pad_batch(ids, tokenizer.pad_token_id or 0).items()
    }
    with evaluation_mode(model.base_model):
        latent = model.base_model(**inputs, return_dict=True).latent
    said, length = [], {"max_length": min(limit or 1000, 1000) + 1}  # the start token counts
    off = latent.clone()
    off[:, dimension] = 0.0
    for latents in (off, latent):
        words = cast(Any, model).generate(latents=latents, **(length | generate))
        said.append(tokenizer.batch_decode(words, skip_special_tokens=True))
    return list(zip(*said, strict=True))
