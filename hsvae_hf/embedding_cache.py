"""Sentence vectors of a frozen encoder, computed once and kept on disk."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, config
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.argument_names import known_as
from hsvae_hf.encoding import sentence_vectors
from hsvae_hf.fingerprints import digest, encoder_parts
from hsvae_hf.input_checks import check_strings, check_vectors
from hsvae_hf.loading import load_tokenizer
from hsvae_hf.models.pooling import read_pooling
from hsvae_hf.models.sources import check_source
from hsvae_hf.tokens import NO_LIMIT, check_limit, token_limit


def load_encoder_tokenizer(name_or_path: str, max_length: int | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a text encoder, a sentence-transformers one included.

    Args:
        name_or_path: a folder or a Hub id.
        max_length: tokens per sentence; None takes what the encoder itself says.

    Raises:
        ValueError: if there is no such encoder or tokenizer, or a limit of tokens in its files is no number of tokens.
    """
    source = check_source(name_or_path, "encoder_name_or_path")
    place = read_pooling(source)[1]
    folder = place.get("subfolder", "")
    with known_as(tokenizer="encoder_name_or_path"):
        tokenizer = load_tokenizer(source, folder)
    positions = getattr(AutoConfig.from_pretrained(source, subfolder=folder), "max_position_embeddings", None)
    positions = None if positions == -1 else positions  # how XLNet and DeBERTa say that there is no limit
    asked = check_limit(max_length, "`max_length`", tokenizer)
    told = check_limit(place.get("max_length"), f"`max_seq_length` of {source!r}", tokenizer)
    positions = check_limit(positions, f"`max_position_embeddings` of {source!r}", tokenizer)
    words = token_limit(tokenizer)
    tokenizer.model_max_length = asked or told or min(words or NO_LIMIT, positions or NO_LIMIT)
    return tokenizer


def embed_dataset(
    dataset: Dataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, batch_size: int | None = None
) -> np.ndarray:
    """The frozen encoder's vectors of a split; computed once for the same text, encoder, pooling, prompt and length.

    They are kept beside the cache of `datasets`, in a file named after what they depend on.

    Args:
        dataset: with a column `text`; or `vectors`, which are taken as they are.
        model: of this package, with a frozen transformer.
        tokenizer: the model's; `model_max_length` truncates.
        batch_size: sentences per forward pass of the encoder; None as in `encode`.

    Returns:
        `(rows, feature_size)`, float32, in the order of `dataset`.

    Raises:
        ValueError: if the vectors are not such as the model takes, or there is text and nothing to read it with.
    """
    if "vectors" in dataset.column_names:
        given = check_vectors(model, dataset.with_format("numpy")["vectors"][:])
        return np.asarray(given, dtype=np.float32)
    if tokenizer is None:
        raise ValueError("`dataset` must hold `vectors` for a model without a text encoder, got text; embed it first.")
    check_strings(dataset["text"], "dataset")
    size = model.config.feature_size
    name = digest(_dependencies(dataset, model, tokenizer))[:32]
    folder = Path(config.HF_DATASETS_CACHE) / "sentence_vectors"
    cache = folder / f"{name}.npy"
    vectors = _read_cache(cache, (len(dataset), size))
    if vectors is None:
        vectors = sentence_vectors(model, tokenizer, dataset["text"], batch_size, show_progress_bar=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            np.save(Path(unfinished) / cache.name, vectors)
            os.replace(Path(unfinished) / cache.name, cache)
    return vectors


def _read_cache(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """What was computed before, None if it was not, or was damaged, by a disk that was full, say."""
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return vectors if vectors.shape == shape and vectors.dtype == np.float32 else None


def _dependencies(dataset: Dataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[bytes]:
    for text in dataset["text"]:
        yield text.encode("utf-8", "surrogatepass")
    yield from encoder_parts(model, tokenizer)
