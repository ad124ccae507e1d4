"""Options of a training run: what it is on, how options by name are read, and what does not go together."""

import math
import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from os import PathLike
from typing import Any, get_args

import numpy as np
from huggingface_hub.errors import StrictDataclassError

from hsvae_hf.command_line import MODEL_NAMES, DatasetArguments, choose, config_arguments, nearest
from hsvae_hf.input_checks import check_positive
from hsvae_hf.models import MODELS
from hsvae_hf.models.configuration_text_vae import refusal
from hsvae_hf.presets import CODE_BUDGETS, CODE_RIDGE, PRESETS, defaults
from hsvae_hf.training_arguments import TextVAETrainingArguments


@dataclass(kw_only=True)
class DataArguments(DatasetArguments):
    """What to train on, and which model."""

    vectors: list[str] | None = field(
        default=None,
        metadata={
            "help": "Sentence vectors made elsewhere, instead of a data set: a .npy, .parquet or .arrow file, a folder "
            "of such, or several."
        },
    )
    model_type: str = field(default="hsvae", metadata={"help": f"One of {', '.join(MODELS)}."})
    preset: str | None = field(
        default=None,
        metadata={
            "help": "small: words, on two cores, in minutes, the default without an encoder; paper: the paper's "
            "sizes, for a GPU; released: hsvae as in the paper's released code."
        },
    )
    encoder_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A pretrained text encoder to build on, with its tokenizer; for words, learning rate 8e-5."},
    )
    prompt_name: str | None = field(
        default=None, metadata={"help": "Which of a sentence-transformers encoder's prompts goes before a sentence."}
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens per sentence; the paper's 200, 60, 30 for data sets named yelp, dbpedia, yahoo, else 60; "
            "with --decoder_type vector, the encoder's own limit."
        },
    )
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Use this one; else train one."})
    ascii_only: bool = field(
        default=False,
        metadata={"help": "The tokenizer to be trained keeps to the paper's ASCII rule; --preset released does."},
    )
    streaming: bool = field(default=False, metadata={"help": "Read while training; needs --max_steps."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Rows of the training split."})


def resolve(
    dataset: str | None,
    vectors: str | None,
    output_dir: "str | PathLike[str]",
    model_type: str,
    options: Mapping[str, Any],
) -> tuple[DataArguments, dict[str, Any], TextVAETrainingArguments]:
    """Options by name to the three things that decide a run; what is left open comes from the preset.

    Args:
        dataset: name of the sentences.
        vectors: name of the vectors, in their place.
        output_dir: folder of the run.
        model_type: of the model.
        options: as of `train`.

    Returns:
        What to train on, fields of the configuration, arguments of training.

    Raises:
        ValueError: for an option that does not exist or has another type.
    """
    if not isinstance(output_dir, str | PathLike):
        raise ValueError(f"`output_dir` must be a path, got {output_dir!r}; name the folder of this run.")
    model_type = choose("model_type", str(model_type), MODELS, MODEL_NAMES, "a text VAE of")
    options = {name: _plain(value) for name, value in options.items()}
    classes = (DataArguments, config_arguments(MODELS[model_type][0]), TextVAETrainingArguments)
    kinds = [fields(kind) for kind in classes]
    known = {item.name: item for items in kinds for item in items}
    for name, value in options.items():
        if name in ("dataset", "vectors"):
            raise ValueError(f"`{name}` must be the first argument, got it as an option too; leave one of them out.")
        if name not in known:
            close = "target_active_dims" if name == "active_dims" else nearest(name, known)
            remedy = "see help(hsvae_hf.train)." if close is None else f"did you mean `{close}`?"
            raise ValueError(f"`{name}` must be an option of {model_type}, got an unknown name; {remedy}")
        _check_type(known[name], value)
    given = dict(options)
    values = open_options(model_type, given, vectors=vectors is not None) | given
    parts: list[dict[str, Any]] = [
        {item.name: values[item.name] for item in items if item.name in values} for items in kinds
    ]
    named = {"dataset": dataset, "vectors": None if vectors is None else [vectors], "model_type": model_type}
    data = DataArguments(**parts[0] | named)
    return data, parts[1], TextVAETrainingArguments(**parts[2] | {"output_dir": os.fspath(output_dir)})


def open_options(model_type: str, given: Mapping[str, Any], vectors: bool = False) -> dict[str, Any]:
    """Values of the options that are left open; see `defaults`.

    Args:
        model_type: of the model.
        given: the options that are not, by name.
        vectors: whether the rows are vectors.
    """
    preset, encoder = given.get("preset"), given.get("encoder_name_or_path") is not None
    preset = None if preset is None else choose("preset", preset, PRESETS)
    values = defaults(model_type, preset, vectors or given.get("decoder_type") == "vector", encoder)
    if given.get("num_train_epochs") is not None and "max_steps" in values:
        values["max_steps"] = -1  # epochs are what was asked for
    if given.get("latent_size") is not None:
        values.pop("target_active_dims", None)  # a preset's number is for its own size
    return values


def _plain(value: object) -> Any:
    """A path as a string, a number of numpy as one of Python, a tuple or an array as a list of such."""
    if isinstance(value, PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    return value.item() if isinstance(value, np.generic) else value


def _check_type(item: "Field[Any]", value: object) -> None:
    """Refuse a value of another type than the field's; whole numbers are numbers, but no switch is one."""
    kinds: Any = item.type
    several = get_args(kinds) or (kinds,)
    if value is None and item.default is None:  # the parser of command lines takes None out of the type
        return
    if item.name in ("report_to", "resume_from_checkpoint"):  # also a list of names, and True
        return
    if list[int] in several:
        if not isinstance(value, list) or any(isinstance(one, bool) or not isinstance(one, int) for one in value):
            raise ValueError(f"`{item.name}` must be a list of whole numbers, got {value!r}; write it as [2, 4, 8].")
        return
    try:
        fits = isinstance(value, kinds) or (isinstance(value, int) and float in several)
    except TypeError:  # a kind that Python cannot check, such as a list of strings
        return
    if not fits or (isinstance(value, bool) and bool not in several):
        kind = getattr(kinds, "__name__", str(kinds))
        raise ValueError(f"`{item.name}` must be of type {kind}, got {value!r}; see help(hsvae_hf.train).")


def complete(data: DataArguments, config_fields: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Fields of the configuration with what codes of vectors leave open, and the configuration; see `draft`.

    Raises:
        ValueError: for a value out of range, and for fields that do not go together.
    """
    if data.vectors is not None and config_fields.get("decoder_type", "gru") != "vector":
        raise ValueError("`decoder_type` must be 'vector' for `vectors`, got 'gru'; leave it out.")
    config = draft(data, {name: value for name, value in config_fields.items() if name != "code_ridge"})
    found = code_options(config, config_fields)
    values = {name: value for name, value in config_fields.items() if name not in found} | found  # what follows, last
    return values, draft(data, values)


def draft(data: DataArguments, config_fields: dict[str, Any]) -> Any:
    """The configuration as far as it is known before the data are, which checks its fields."""
    values = {name: value for name, value in config_fields.items() if name != "vocab_size"}
    if values.get("decoder_type") == "vector":
        values |= {"encoder_type": "vector", "vector_size": 1}
    values["freeze_text_encoder"] = False  # here there is none
    if data.model_type == "text-encoder":
        values.pop("latent_size", None)
    try:
        return MODELS[data.model_type][0](**values)
    except StrictDataclassError as error:
        raise ValueError(refusal(error)) from error


def code_options(config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What codes of vectors are to be like, where gates are balanced and it is left open; else nothing.

    The wanted number of non-zeros is a sixteenth of the dimensions, or half of `max_active_dims` where that is less.
    Every code has that many. Where `min_active_dims` or `max_active_dims` is given, the gates decide between them.
    `code_ridge=None` and `code_budgets=None` are answers too, if they are given.

    Args:
        config: the configuration as far as it is known.
        given: fields of the configuration that are given, by name.
    """
    if config.decodes_words or getattr(config, "wanted_active_dims", None) is None:
        return {}
    most = config.max_active_dims
    wanted = config.target_active_dims or min(config.latent_size / 16, math.inf if most is None else most / 2)
    budgets = [budget for budget in CODE_BUDGETS if budget <= config.latent_size / 2]
    fixed = max(1, round(wanted))
    values: dict[str, Any] = {"code_ridge": CODE_RIDGE, "code_budgets": budgets or [1]}
    values = {name: value for name, value in values.items() if name not in given}
    if most is None and config.min_active_dims == 0:
        values |= {"min_active_dims": fixed, "max_active_dims": fixed}
    elif most is None:
        twice = values["max_active_dims"] = min(math.ceil(2 * wanted), config.latent_size)
        if config.min_active_dims > twice:
            raise ValueError(
                f"`min_active_dims` must be at most {twice}, twice the wanted number of non-zeros, got "
                f"{config.min_active_dims}; give a larger `target_active_dims`, or `max_active_dims`."
            )
    return {"target_active_dims": float(min(wanted, values.get("max_active_dims", math.inf)))} | values


def check_data(data: DataArguments, config: Any) -> None:
    """Refuse arguments that contradict each other.

    Raises:
        ValueError: naming the first.
    """
    if (data.dataset is None) == (data.vectors is None):
        got = "neither" if data.dataset is None else "both"
        raise ValueError(f"Give exactly one of `dataset` and `vectors`, got {got}; --dataset docstrings is at hand.")
    encoder = data.encoder_name_or_path
    if encoder is not None and data.tokenizer_name_or_path is not None:
        raise ValueError("`tokenizer_name_or_path` must be left out with an encoder: its own tokenizer goes with it.")
    if data.max_length is not None and data.max_length < 2:
        raise ValueError(f"`max_length` must be at least 2, got {data.max_length}; the end of sentence counts.")
    check_positive(max_samples=data.max_samples, max_train_samples=data.max_train_samples)
    if config.decodes_words:
        if data.prompt_name is not None:
            raise ValueError("`decoder_type` must be 'vector' for `prompt_name`, got 'gru'; leave one of them out.")
        return
    if (encoder is None) == (data.vectors is None):
        raise ValueError(
            "`encoder_name_or_path` must be given with `decoder_type` 'vector' and a data set, and not with `vectors`."
        )
    of_text = ("prompt_name", "text_column", "dataset_config_name", "max_length")
    ignored = [name for name in of_text if getattr(data, name) is not None]
    if data.vectors is not None and ignored:
        raise ValueError(f"`{ignored[0]}` must be left out with `vectors`: there is no text.")
    if config.similarity_fn_name != "cosine":
        raise ValueError(
            "`similarity_fn_name` must be left out with `decoder_type` 'vector': training ends by setting it; set that "
            "of `model.config` afterwards to change it."
        )
    if data.streaming:
        raise ValueError("`streaming` must be off with `decoder_type` 'vector': the vectors are computed once, before.")


def check_schedule(config: Any, arguments: TextVAETrainingArguments) -> None:
    """Refuse a schedule that the model cannot follow.

    Raises:
        ValueError: naming the option.
    """
    if arguments.train_sampling_strategy == "group_by_length" and not config.decodes_words:
        raise ValueError("`train_sampling_strategy` must be random with vectors: they have no length.")
    if getattr(config, "active_threshold", 0.5) != 0.5:
        raise ValueError(
            f"`active_threshold` must be left out, got {config.active_threshold}: training ends by setting it; "
            "`calibrate_threshold` changes it afterwards."
        )
    if getattr(config, "wanted_active_dims", None) is None:
        return
    late = arguments.kl_annealing == "linear" and 0 < arguments.max_steps <= (arguments.kl_warmup_steps or 0)
    if late:
        raise ValueError(
            "`kl_warmup_steps` must be below `max_steps` where a number of active dimensions is held, which begins "
            f"after the warm-up; got {arguments.kl_warmup_steps} and {arguments.max_steps}."
        )
