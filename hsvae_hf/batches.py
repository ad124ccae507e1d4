"""A corpus in batches of what a model takes, for everything that reads it once: reports, probes, thresholds."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.data import TextCollator, tokenize_dataset
from hsvae_hf.encoding import check_text_model
from hsvae_hf.inputs import check_positive, check_strings
from hsvae_hf.vectors import embed_dataset


def input_batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, dataset: Dataset, batch_size: int, what: str
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """A corpus in batches: what the model takes, vectors or padded text of similar length, with its row numbers.

    Args:
        model: for pre-training.
        tokenizer: the model's; None where it takes vectors alone.
        dataset: with a column `text`, or `vectors`.
        batch_size: rows per batch.
        what: name of the progress bar.

    Raises:
        ValueError: if the rows are not such as the model takes, or there is nothing to read text with.
    """
    check_positive(batch_size=batch_size)
    if model.config.decoder_type == "vector":
        vectors = embed_dataset(dataset, model, tokenizer)
        order = np.random.default_rng(0).permutation(len(vectors))  # rows may be sorted by class
        for start in tqdm(range(0, len(order), batch_size), desc=what, leave=False, disable=None):
            rows = order[start : start + batch_size]
            yield rows, {"vectors": torch.from_numpy(vectors[rows]).to(model.device)}
        return
    if tokenizer is None:
        raise ValueError("`tokenizer` must be given for a model that reads text, got None; load the model's own.")
    check_text_model(model, tokenizer)
    if "text" not in dataset.column_names:
        names = ", ".join(dataset.column_names)
        raise ValueError(f"`dataset` must have a column `text` for a model that reads text, got {names}; rename one.")
    check_strings(dataset["text"], "dataset")
    tokens = tokenize_dataset(dataset.select_columns(["text"]), tokenizer)
    order = np.argsort(tokens["length"][:], kind="stable")
    if cast(Any, model.base_model).latent_head.needs_even_batches:
        order = np.random.default_rng(0).permutation(order)
    collate = TextCollator(tokenizer)
    for start in tqdm(range(0, len(order), batch_size), desc=what, leave=False, disable=None):
        rows = order[start : start + batch_size]
        yield rows, {name: value.to(model.device) for name, value in collate(list(tokens.select(rows))).items()}
