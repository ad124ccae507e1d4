"""Models and tokenizers from a folder or a Hub id, or one line that says why there is none."""

import threading
from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hsvae_hf.input_checks import foreign_words
from hsvae_hf.models.configuration_text_vae import TextVAEConfig, refusal
from hsvae_hf.models.sources import check_source
from hsvae_hf.tokens import check_limit

_LOADING = threading.RLock()  # the library's verbosity, and its state while it builds a model, are the process's


def load_for_inference(
    model_name_or_path: str | Path, auto_class: type[Any] = AutoModel, new_classifier: bool = False, **overrides: object
) -> tuple[PreTrainedModel, Any]:
    """Load a model of this package and its tokenizer, or say in one line why that is impossible.

    Args:
        model_name_or_path: folder of a saved model, or a Hub id.
        auto_class: the Auto class to load with, such as `AutoModelForPreTraining`. `AutoModel` takes every checkpoint
            of this package; another class needs one that holds its weights.
        new_classifier: whether the classifier may be missing, to be trained from its initialisation.
        overrides: fields of the configuration to change.

    Returns:
        The model, in evaluation mode, on the CPU, in the checkpoint's dtype; and its tokenizer, None if it takes
        vectors alone.

    Raises:
        ValueError: if there is no such model, its files are damaged or incomplete, it is not a text VAE of this
            package, or the tokenizer is missing or not the one that the model was trained with.
    """
    with _LOADING:
        return _load(check_source(model_name_or_path, "model_name_or_path"), auto_class, new_classifier, overrides)


def _load(
    source: str, auto_class: type[Any], new_classifier: bool, overrides: dict[str, Any]
) -> tuple[PreTrainedModel, Any]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what the library's load report warns of is an error here
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **overrides)
        if not isinstance(config, TextVAEConfig):
            raise ValueError(f"it is of type {config.model_type!r}, which is no text VAE of hsvae_hf")
        model, report = auto_class.from_pretrained(
            source, config=config, trust_remote_code=False, output_loading_info=True
        )
        missing = [key for key in report["missing_keys"] if not (new_classifier and key.startswith("classifier."))]
        missing = [key for key in missing if key != "gamma_kl_scale"]  # what a controller of training starts with
        if not all(weight.isfinite().all() for weight in model.state_dict().values()):
            raise ValueError("its weights hold NaN or infinity: the training that made them diverged")
        if missing:
            raise ValueError(f"it has no weights for {len(missing)} parameters such as {min(missing)!r}")
        tokenizer = None if not config.reads_text else load_tokenizer(source)
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(
            "`model_name_or_path` must be the folder or the Hub id of a model saved by hsvae_hf, with its tokenizer, "
            f"got {source!r}: {_reason(error)}; check the name and the network, or save or download it again."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if tokenizer is None:
        return model, None
    reason = foreign_words(tokenizer, config)
    if len(tokenizer) > config.vocab_size:
        reason = f"{len(tokenizer)} words, but the model knows {config.vocab_size}; save both together again"
    if reason is not None:
        raise ValueError(
            f"`model_name_or_path` must hold the tokenizer that the model was trained with, got {source!r} with "
            f"{reason}."
        )
    return model, tokenizer


def load_tokenizer(name_or_path: str, subfolder: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a Hub id.

    Raises:
        ValueError: if there is none, its files are damaged, or its `model_max_length` is no number of tokens.
    """
    source = check_source(name_or_path, "tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, subfolder=subfolder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare exceptions for files that it cannot read
        damaged = not isinstance(error, OSError | ValueError)
        reason = f"its tokenizer files are damaged ({' '.join(str(error).split())})" if damaged else _reason(error)
        raise ValueError(
            f"`tokenizer` must be a folder or a Hub id with a tokenizer, got {source!r}: {reason}."
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes where there is none
        raise ValueError(
            f"`tokenizer` must be a folder or a Hub id with a tokenizer, got {source!r}: it has no tokenizer files."
        )
    check_limit(tokenizer.model_max_length, f"`model_max_length` of the tokenizer in {source!r}", tokenizer)
    return cast(PreTrainedTokenizerBase, tokenizer)


def _reason(error: Exception) -> str:
    """The cause in one line, in the words of a reader who knows no internals where those are cryptic."""
    text = str(error).strip()
    if isinstance(error, SafetensorError):
        return f"its weights are damaged or incomplete ({text})"
    if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in text:
        return "the shapes of its weights are not those of its config.json"
    if "recognize this architecture" in text or "trust_remote_code" in text:
        return "its type is unknown to this version of hsvae_hf"
    if "backend tokenizer" in text:
        return "it has no tokenizer files"
    if isinstance(error, StrictDataclassError):
        return refusal(error).rstrip(".")
    lines = text.splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")
