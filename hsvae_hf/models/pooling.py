"""Pooling of token states to one sentence vector, and what a sentence-transformers folder says about it."""

import json
from typing import Any

from torch import Tensor
from transformers.utils import cached_file

TOKEN_FILES = [  # sentence-transformers named it after the model once
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
POOLING = {"mean": "mean", "cls": "cls", "lasttoken": "last"}  # names of sentence-transformers: ours


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector per sentence.

    Args:
        states: last layer of a text encoder, `(batch, steps, width)`, right-padded.
        mask: `(batch, steps)`, True for real tokens.
        pooling: `"mean"` of the real tokens, `"cls"`, the first one, or the `"last"` one.

    Returns:
        `(batch, width)`.
    """
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        last = (mask.sum(1) - 1).view(-1, 1, 1)  # gathered, not indexed: a recorded graph keeps its batch size open
        return states.gather(1, last.expand(-1, 1, states.shape[-1])).squeeze(1)
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def _read(name_or_path: str, file: str) -> Any:
    path = cached_file(name_or_path, file, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return {}
    with open(path, encoding="utf-8") as opened:
        try:
            return json.load(opened)
        except ValueError as error:
            raise ValueError(f"`encoder_name_or_path` must be intact, got a damaged {path!r} ({error}).") from error


def read_pooling(name_or_path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a sentence-transformers folder, or repository, does after and around its transformer.

    Args:
        name_or_path: with a `modules.json`; without one, it is a plain text encoder and nothing is found.

    Returns:
        Fields of a configuration: `pooling`, `normalize_vectors`, `prompts`, `default_prompt_name`. And where its
        transformer and tokenizer are: `subfolder` and, if the folder limits the tokens, `max_length`.

    Raises:
        ValueError: if it does what this package does not, or its files are damaged.
    """
    modules = _read(name_or_path, "modules.json")
    if not modules:
        return {}, {}
    try:
        return _read_modules(name_or_path, modules)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"`encoder_name_or_path` must be a sentence-transformers model, got {name_or_path!r} with files that "
            f"cannot be understood ({type(error).__name__}: {error}); save it again."
        ) from error


def _read_modules(name_or_path: str, modules: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:

    def refuse(found: str) -> ValueError:
        return ValueError(
            "`encoder_name_or_path` must be a transformer with mean, CLS or last-token pooling and perhaps "
            f"normalisation, got {name_or_path!r} with {found}; train codes behind it as it is, with "
            "`hsvae_hf.fit_sentence_encoder(SentenceTransformer(name), sentences)`."
        )

    for module in modules:
        place = str(module["path"]).replace("\\", "/")
        if place.startswith("/") or ":" in place or ".." in place.split("/"):
            raise refuse(f"a module outside its folder, {place!r}")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise refuse(f"the modules {', '.join(kinds)}")
    settings = _read(name_or_path, f"{modules[1]['path']}/config.json")
    modes = settings.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for key, value in settings.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLING:
        raise refuse(f"{' and '.join(map(str, modes)) or 'no'} pooling")
    own = _read(name_or_path, "config_sentence_transformers.json")
    prompts = dict((own.get("prompts") or {}).items())
    default = own.get("default_prompt_name")
    if any(prompts.values()) and not settings.get("include_prompt", True):
        raise refuse("prompts that its pooling leaves out")
    folder = modules[0].get("path", "")
    files = (f"{folder}/{name}" if folder else name for name in TOKEN_FILES)
    tokens: dict[str, Any] = next((found for file in files if (found := _read(name_or_path, file))), {})
    if tokens.get("do_lower_case"):
        raise refuse("lower-casing outside its tokenizer")
    fields = {"pooling": POOLING[modes[0]], "normalize_vectors": len(kinds) == 3, "prompts": prompts or None}
    fields["default_prompt_name"] = default if default in prompts else None
    return fields, {"subfolder": folder, "max_length": tokens.get("max_seq_length")}
