"""Preparation of a training run: the data as the model takes them, a tokenizer, an untrained model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from hsvae_hf.argument_names import known_as
from hsvae_hf.batching import TextCollator
from hsvae_hf.console import data_facts, say
from hsvae_hf.data import MAX_LENGTHS, load_text_dataset, tokenize_dataset
from hsvae_hf.data_sources import HUB_IDS
from hsvae_hf.embedding_cache import embed_dataset, load_encoder_tokenizer
from hsvae_hf.loading import load_tokenizer
from hsvae_hf.models import MODELS
from hsvae_hf.models.vocabulary import tokenizer_fields
from hsvae_hf.options import DataArguments
from hsvae_hf.tokenization import train_tokenizer, warn_unknown
from hsvae_hf.vector_data import VectorDataset, collate_vectors, first_vectors, split_vectors
from hsvae_hf.vector_files import VectorShards, open_vectors

LARGE_SHARE_CUT = 0.05  # of the rows, from which on it is said
# Data in memory, and vectors in files that are open.
Rows: TypeAlias = Dataset | DatasetDict | list[str] | dict[str, np.ndarray | VectorShards]
# Model, tokenizer if the model reads text, the splits, and what makes a batch of their rows.
Prepared: TypeAlias = tuple[Any, PreTrainedTokenizerBase | None, dict[str, Any], Callable[..., Any]]


def load_text(data: DataArguments, seed: int, rows: Rows | None) -> dict[str, Any]:
    """The splits to train and to evaluate on, raw."""
    source: dict[str, Any] = data.dataset_options() | ({} if rows is None else {"dataset": rows})
    dataset = load_text_dataset(**source, with_labels=False, streaming=data.streaming, seed=seed)
    say(*data_facts(dataset, labels=False))
    return {name: dataset[name] for name in ("train", "validation") if name in dataset}


def prepare_words(
    data: DataArguments, config_fields: dict[str, Any], seed: int, checkpoint: str | None, rows: Rows | None
) -> Prepared:
    """Model, tokenizer and tokenized splits, to reconstruct words."""
    encoder = data.encoder_name_or_path
    config_class, _, model_class, _ = MODELS[data.model_type]
    size = config_fields.pop("vocab_size", None) or config_class.vocab_size
    splits = load_text(data, seed, rows)
    short = {hub_id: name for name, hub_id in HUB_IDS.items()}.get(str(data.dataset), Path(str(data.dataset)).name)
    max_length = MAX_LENGTHS.get(short, 60) if data.max_length is None else data.max_length
    source = data.tokenizer_name_or_path or checkpoint or encoder
    tokenizer: PreTrainedTokenizerBase
    texts = (row["text"] for row in splits["train"])
    if source is None:
        tokenizer = train_tokenizer(texts, vocab_size=size, max_length=max_length, ascii_only=data.ascii_only)
    else:
        name = "resume_from_checkpoint" if checkpoint else "encoder_name_or_path"
        with known_as(tokenizer=name if data.tokenizer_name_or_path is None else "tokenizer_name_or_path"):
            tokenizer = load_tokenizer(source)
        if checkpoint is None:
            tokenizer.model_max_length = max_length
        elif data.max_length not in (None, tokenizer.model_max_length):
            raise ValueError(
                f"`max_length` must stay {tokenizer.model_max_length}, as in {checkpoint!r}, got {data.max_length}; "
                "resume a run with the options that it was started with."
            )
        warn_unknown(tokenizer, texts)
    data.max_length = tokenizer.model_max_length  # as `train_settings.json` is to say
    tokens = {name: tokenize_dataset(split, tokenizer) for name, split in splits.items()}
    if not data.streaming:
        tell_cuts(tokens["train"]["length"][:], data.max_length)
    if encoder is not None:
        model = model_class.from_encoder_pretrained(encoder, **config_fields)
    else:
        model = model_class(config_class(vocab_size=len(tokenizer), **config_fields, **tokenizer_fields(tokenizer)))
    return model, tokenizer, tokens, TextCollator(tokenizer)


def tell_cuts(lengths: list[int], limit: int) -> None:
    """Say how many sentences are as long as the limit, if that is many: they are cut there."""
    share = sum(length >= limit for length in lengths) / len(lengths)
    if share > LARGE_SHARE_CUT:
        say(f"{share:.0%} of the rows are cut at {limit} tokens; --max_length keeps more")


def prepare_vectors(
    data: DataArguments, config_fields: dict[str, Any], seed: int, checkpoint: str | None, rows: Any
) -> Prepared:
    """Model, tokenizer if there is text, and vectors, to reconstruct vectors."""
    config_fields.pop("vocab_size", None)
    config_class, _, model_class, _ = MODELS[data.model_type]
    if data.vectors is not None:
        arrays = {"train": open_vectors(data.vectors)} if rows is None else rows
        size = arrays["train"].shape[1]
        config_fields["freeze_text_encoder"] = False
        model = model_class(config_class(encoder_type="vector", vector_size=size, **config_fields))
        limits = {"train": data.max_train_samples, "validation": data.max_samples}
        if "validation" in arrays:
            splits = {name: first_vectors(arrays[name], limit) for name, limit in limits.items()}
        else:
            splits = split_vectors(arrays["train"], seed, *limits.values())
        say(f"data: {', '.join(data.vectors)}, vectors", *data_facts(splits))
        tokenizer = None
    else:
        encoder = str(data.encoder_name_or_path)
        if data.prompt_name is not None:
            config_fields["default_prompt_name"] = data.prompt_name
        with known_as(default_prompt_name="prompt_name"):
            model = model_class.from_encoder_pretrained(encoder, **config_fields)
        tokenizer = load_encoder_tokenizer(encoder, data.max_length)
        texts = load_text(data, seed, rows).items()
        splits = {name: VectorDataset(embed_dataset(split, model, tokenizer)) for name, split in texts}
    moments = splits["train"].moments
    model.model.standardizer.set_statistics(torch.from_numpy(moments.mean), torch.from_numpy(moments.std))
    return model, tokenizer, splits, collate_vectors
