"""Batches of a corpus: the one way to go over it once, and the collators and the sampler of training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.embedding_cache import embed_dataset
from hsvae_hf.encoding import check_text_model
from hsvae_hf.inputs import check_positive, check_strings
from hsvae_hf.models.modeling_text_vae import TextVAEModel
from hsvae_hf.tokens import padded_batches, token_limit

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


class VectorDataset(torch.utils.data.Dataset[Any]):
    """Rows of vectors as the model's input, a batch at a time, without a Python object per row.

    Args:
        vectors: `(rows, size)`, float32.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = torch.from_numpy(vectors)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.vectors)

    def __getitems__(self, rows: list[int]) -> list[dict[str, Tensor]]:
        """A whole batch in a list of one: `vectors` `(len(rows), size)`."""
        return [{"vectors": self.vectors[rows]}]


def collate_vectors(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The collator of `VectorDataset`: its batch; `labels` are what is reconstructed, as a stock Trainer wants them."""
    return batches[0] | {"labels": batches[0]["vectors"]}


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
