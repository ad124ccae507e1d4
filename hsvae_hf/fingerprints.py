"""Fingerprints of models, encoders and tokenizers: equal ones give equal codes and vectors."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_VOLATILE = ("_name_or_path", "transformers_version", "dtype")  # of a configuration: they change no result


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of several parts and of their borders, in hexadecimal."""
    value = hashlib.sha256()
    for part in parts:
        value.update(len(part).to_bytes(8, "little"))  # else two parts could share their border
        value.update(part)
    return value.hexdigest()


def model_parts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[bytes]:
    """What the codes of a model depend on: weights, configuration, tokenizer."""
    yield from weight_parts(model.base_model)
    yield json.dumps(_lasting(model.config.to_dict()), sort_keys=True, default=str).encode()
    if tokenizer is not None:
        yield from tokenizer_parts(tokenizer)


def encoder_parts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[bytes]:
    """What the vectors of a model's text encoder depend on: its weights, pooling and prompt, and the tokenizer."""
    encoder: Any = model.base_model.encoder
    yield from weight_parts(encoder)
    yield json.dumps(_lasting(model.config.encoder_config.to_dict()), sort_keys=True).encode()
    settings = ("pooling", "normalize_vectors", "prompts", "default_prompt_name")
    yield repr([getattr(model.config, setting) for setting in settings]).encode()
    yield from tokenizer_parts(tokenizer)


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, with those in it, without what a copy of the model may have otherwise."""
    return {
        name: _lasting(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in _VOLATILE
    }


def weight_parts(module: nn.Module) -> Iterator[bytes]:
    """Names and bytes of all weights."""
    for name, weight in module.state_dict().items():
        yield name.encode()
        yield weight.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()


def tokenizer_parts(tokenizer: PreTrainedTokenizerBase) -> Iterator[bytes]:
    """Words and rules of a tokenizer."""
    yield repr((tokenizer.model_max_length, tokenizer.truncation_side, type(tokenizer).__name__)).encode()
    if not tokenizer.is_fast:
        yield json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()
        return
    backend: Any = tokenizer
    calls = {"truncation": None, "padding": None}  # of the last call
    yield json.dumps(json.loads(backend.backend_tokenizer.to_str()) | calls, sort_keys=True).encode()
