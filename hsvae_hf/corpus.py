"""A corpus in batches of what a model takes: for everything that reads it once, such as reports and thresholds."""

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.batching import Batches, padded_batches
from hsvae_hf.embedding_cache import embed_dataset
from hsvae_hf.encoding import check_text_model
from hsvae_hf.input_checks import check_positive, check_strings
from hsvae_hf.models.modeling_text_vae import TextVAEModel
from hsvae_hf.tokens import token_limit


def input_batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, dataset: Dataset, batch_size: int, what: str
) -> Batches:
    """A corpus in batches of the model's input, for everything that reads it once: reports, probes, thresholds.

    Args:
        model: a model for pre-training.
        tokenizer: the model's tokenizer; None where the model takes vectors alone.
        dataset: rows with a column `text`, or `vectors`.
        batch_size: rows per batch.
        what: name of the progress bar.

    Yields:
        Row numbers, and on the model's device `vectors`, `(batch, feature_size)`, or `input_ids` and `attention_mask`,
        `(batch, steps)`, of sentences of similar length.

    Raises:
        ValueError: if the rows are not such as the model takes, or there is nothing to read text with.
    """
    check_positive(batch_size=batch_size)
    shuffled = np.random.default_rng(0).permutation

    def parts(order: np.ndarray) -> Iterator[np.ndarray]:
        return (order[start : start + batch_size] for start in range(0, len(order), batch_size))

    def by_length(lengths: np.ndarray) -> Iterator[np.ndarray]:
        order = np.argsort(lengths, kind="stable")
        even = cast(TextVAEModel, model.base_model).latent_head.needs_even_batches
        return parts(shuffled(order) if even else order)

    batches: Batches
    if model.config.decodes_words:
        check_text_model(model, tokenizer)
        reader = cast(PreTrainedTokenizerBase, tokenizer)
        batches = padded_batches(reader, _sentences(dataset), by_length, token_limit(reader))
    else:
        vectors = embed_dataset(dataset, model, tokenizer)
        order = shuffled(len(vectors))  # rows may be sorted by class
        batches = ((rows, {"vectors": torch.from_numpy(vectors[rows])}) for rows in parts(order))
    with tqdm(total=len(dataset), desc=what, unit=" rows", leave=False, disable=None) as progress:
        for rows, batch in batches:
            yield rows, {name: tensor.to(model.device) for name, tensor in batch.items()}
            progress.update(len(rows))


def _sentences(dataset: Dataset) -> list[str]:
    if "text" not in dataset.column_names:
        names = ", ".join(dataset.column_names)
        raise ValueError(f"`dataset` must have a column `text` for a model that reads text, got {names}; rename one.")
    sentences: list[str] = dataset["text"][:]
    check_strings(sentences, "dataset")
    return sentences
