"""Train a text VAE on raw sentences: tokenizer, model, checkpoints, logs, results in one folder."""

import argparse
import math
import re
import signal
import sys
import types
import typing
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the imports take seconds: a signal ends them without a traceback
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

import torch
from transformers import HfArgumentParser, PreTrainedConfig, set_seed

import hsvae_hf
from hsvae_hf.calibration import fit_code_scale, hold_target
from hsvae_hf.cli import run
from hsvae_hf.data import HUB_IDS, MAX_LENGTHS, TextCollator, load_text_dataset, tokenize_dataset
from hsvae_hf.encoding import load_tokenizer
from hsvae_hf.modeling_text_vae import special_token_ids
from hsvae_hf.monitor import CALIBRATION_ROWS, CollapseMonitor, held_out_batches
from hsvae_hf.resuming import check_resumable, check_same_vectors
from hsvae_hf.tokenization import train_tokenizer
from hsvae_hf.training import (
    TextVAETrainer,
    TextVAETrainingArguments,
    claimed_output_dir,
    run_settings,
    save_run,
)
from hsvae_hf.vectors import (
    HEAD_DEFAULTS,
    VECTOR_DEFAULTS,
    VectorDataset,
    collate_vectors,
    embed_dataset,
    load_encoder_tokenizer,
    load_vectors,
    split_vectors,
)

NOT_FLAGS = {"classifier_hidden_size", "freeze_encoder", "num_samples", "is_encoder_decoder"}
# these follow from --encoder_name_or_path, or from what that encoder says of itself
NOT_FLAGS |= {"encoder_type", "encoder_config", "pooling", "normalize_vectors", "prompts", "default_prompt_name"}
NOT_FLAGS |= {"vector_size"}
ENCODER_LEARNING_RATE = 8e-5  # the paper's, with BERT


@dataclass
class DataArguments:
    """What to train on, and which model."""

    dataset: str | None = field(
        default=None, metadata={"help": "docstrings, yelp, dbpedia, yahoo, a Hub id, or a local folder or file."}
    )
    vectors: str | None = field(
        default=None,
        metadata={"help": "A .npy or .parquet file of sentence vectors made elsewhere, instead of a data set."},
    )
    model_type: str = field(default="hsvae", metadata={"help": f"One of {', '.join(hsvae_hf.MODELS)}."})
    preset: str = field(
        default="default", metadata={"help": "released: the defaults of hsvae are those of the paper's released code."}
    )
    encoder_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A pretrained text encoder to build on, with its tokenizer; for words, learning rate 8e-5."},
    )
    prompt_name: str | None = field(
        default=None, metadata={"help": "Which of a sentence-transformers encoder's prompts goes before a sentence."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Column of the sentences, if not found by name."})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens per sentence; the paper's 200, 60, 30 for data sets named yelp, dbpedia, yahoo, else 60; "
            "with --decoder_type vector, the encoder's own limit."
        },
    )
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Use this one; else train one."})
    streaming: bool = field(default=False, metadata={"help": "Read while training; needs --max_steps."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Rows of the training split."})
    max_samples: int | None = field(default=None, metadata={"help": "Rows of the validation split."})


def config_arguments(config_class: type[PreTrainedConfig]) -> type:
    """A dataclass of flags out of the configuration's own fields and the help in its docstring."""
    documented = " ".join(filter(None, (c.__doc__ for c in config_class.__mro__ if issubclass(c, PreTrainedConfig))))
    shared = {item.name for item in fields(PreTrainedConfig)} | NOT_FLAGS
    flags: list[tuple[str, Any, Any]] = []
    for item in fields(config_class):
        if item.name in shared or item.name.endswith("_token_id") or item.default is MISSING:
            continue
        kind = {float | int: float, float | int | None: float | None}.get(item.type, item.type)
        simple = kind in (int, float, str, bool) or typing.get_origin(kind) in (typing.Literal, types.UnionType)
        found = re.search(rf"\b{item.name}: (.*?)(?=\n\s+\w+: |\n\n|$)", documented, re.DOTALL)
        text = " ".join(found[1].split()).replace("%", "%%") if found else item.name
        if simple:
            flags.append((item.name, kind, field(default=item.default, metadata={"help": text})))
    return make_dataclass("ConfigArguments", flags)


def holds_a_number(flags: dict[str, Any]) -> bool:
    """Whether training holds a number of active dimensions: one that was asked for, or that of balanced gates."""
    balanced = flags.get("gate_balance_weight", 0) > 0 and flags["gamma_kl_weight"] > 0
    return balanced or flags.get("target_active_dims") is not None


def parse_arguments() -> tuple[DataArguments, dict[str, Any], TextVAETrainingArguments]:
    """The command line; `--model_type` decides which configuration's fields are flags."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--model_type", "--model-type", default=DataArguments.model_type)
    first.add_argument("--encoder_name_or_path", "--encoder-name-or-path")
    first.add_argument("--decoder_type", "--decoder-type", default="gru")
    first.add_argument("--vectors")
    first.add_argument("--preset", default=DataArguments.preset)
    known = first.parse_known_args()[0]
    name = known.model_type
    if name not in hsvae_hf.MODELS:
        raise ValueError(
            f"`model_type` must be a text VAE of {', '.join(hsvae_hf.MODELS)}, got {name!r}; name another."
        )
    if known.preset not in ("default", "released") or (known.preset == "released" and name != "hsvae"):
        raise ValueError(f"`preset` must be default, or released for hsvae, got {known.preset!r} for {name}.")
    kinds = (DataArguments, config_arguments(hsvae_hf.MODELS[name][0]), TextVAETrainingArguments)
    parser = HfArgumentParser(kinds, allow_abbrev=False)  # an abbreviation would not change the defaults
    vectors = known.decoder_type == "vector" or known.vectors is not None
    if vectors:
        defaults = VECTOR_DEFAULTS | HEAD_DEFAULTS.get(name, {}) | {"decoder_type": "vector"}
        if any(word.startswith(("--num_train_epochs", "--num-train-epochs")) for word in sys.argv):
            defaults["max_steps"] = -1  # epochs are what was asked for
        parser.set_defaults(**defaults)
    elif known.encoder_name_or_path is not None:
        parser.set_defaults(learning_rate=ENCODER_LEARNING_RATE, tie_word_embeddings=False)
    if known.preset == "released":
        parser.set_defaults(**hsvae_hf.RELEASED)
    data, parsed, arguments = parser.parse_args_into_dataclasses()
    flags = vars(parsed)
    if vectors and holds_a_number(flags) and flags["target_active_dims"] is None:  # what gates are balanced to
        flags["target_active_dims"] = min(flags["latent_size"] / 16, (flags["max_active_dims"] or math.inf) / 2)
    return data, flags, arguments


def load_text(data: DataArguments, seed: int) -> Any:
    """The splits to train and to evaluate on, raw."""
    dataset = load_text_dataset(
        str(data.dataset),
        text_column=data.text_column,
        with_labels=False,
        streaming=data.streaming,
        max_train_samples=data.max_train_samples,
        max_samples=data.max_samples,
        seed=seed,
    )
    return type(dataset)({name: dataset[name] for name in ("train", "validation") if name in dataset})


def prepare_words(data: DataArguments, flags: dict[str, Any], seed: int, checkpoint: str | None) -> tuple[Any, ...]:
    """Model, tokenizer and tokenized splits, to reconstruct words."""
    encoder = data.encoder_name_or_path
    short = {hub_id: name for name, hub_id in HUB_IDS.items()}.get(str(data.dataset), Path(str(data.dataset)).name)
    max_length = MAX_LENGTHS.get(short, 60) if data.max_length is None else data.max_length
    dataset = load_text(data, seed)
    source = data.tokenizer_name_or_path or checkpoint or encoder
    if source is not None:
        tokenizer = load_tokenizer(source)
        if checkpoint is None:
            tokenizer.model_max_length = max_length
        elif data.max_length not in (None, tokenizer.model_max_length):
            raise ValueError(
                f"`max_length` must stay {tokenizer.model_max_length}, as in {checkpoint!r}, got {data.max_length}; "
                "resume a run with the options that it was started with."
            )
    else:
        texts = (row["text"] for row in dataset["train"])
        tokenizer = train_tokenizer(texts, vocab_size=flags["vocab_size"], max_length=max_length)
    data.max_length = tokenizer.model_max_length  # as `train_settings.json` is to say
    splits = {name: tokenize_dataset(split, tokenizer) for name, split in dataset.items()}
    flags.pop("vocab_size")
    config_class, _, model_class, _ = hsvae_hf.MODELS[data.model_type]
    if encoder is not None:
        model = model_class.from_encoder_pretrained(encoder, **flags)
    else:
        model = model_class(config_class(vocab_size=len(tokenizer), **flags, **special_token_ids(tokenizer)))
    model.generation_config.max_length = tokenizer.model_max_length + 1  # the start token counts
    return model, tokenizer, splits, TextCollator(tokenizer)


def prepare_vectors(data: DataArguments, flags: dict[str, Any], seed: int, checkpoint: str | None) -> tuple[Any, ...]:
    """Model, tokenizer if there is text, and vectors, to reconstruct vectors."""
    flags.pop("vocab_size")
    config_class, _, model_class, _ = hsvae_hf.MODELS[data.model_type]
    if data.vectors is not None:
        rows = load_vectors(data.vectors)
        flags["freeze_text_encoder"] = False
        model = model_class(config_class(encoder_type="vector", vector_size=rows.shape[1], **flags))
        tokenizer, vectors = None, split_vectors(rows, seed, data.max_train_samples, data.max_samples)
    else:
        encoder = str(data.encoder_name_or_path)
        if data.prompt_name is not None:
            flags["default_prompt_name"] = data.prompt_name
        model = model_class.from_encoder_pretrained(encoder, **flags)
        tokenizer = load_encoder_tokenizer(encoder, data.max_length)
        dataset = load_text(data, seed)
        vectors = {name: embed_dataset(split, model, tokenizer) for name, split in dataset.items()}
    model.model.standardizer.fit(torch.from_numpy(vectors["train"]))
    return model, tokenizer, {name: VectorDataset(split) for name, split in vectors.items()}, collate_vectors


def check_schedule(flags: dict[str, Any], arguments: TextVAETrainingArguments) -> None:
    """Refuse a schedule that the model cannot follow."""
    if arguments.train_sampling_strategy == "group_by_length" and flags["decoder_type"] == "vector":
        raise ValueError("`train_sampling_strategy` must be random with vectors: they have no length.")
    if holds_a_number(flags) and flags["active_threshold"] != 0.5:
        raise ValueError(
            "`active_threshold` must be left out where a number of active dimensions is held: training ends by setting "
            "it; `calibrate_threshold` changes it."
        )
    late = arguments.kl_annealing == "linear" and 0 < arguments.max_steps <= (arguments.kl_warmup_steps or 0)
    if late and holds_a_number(flags):
        raise ValueError(
            "`kl_warmup_steps` must be below `max_steps` where a number of active dimensions is held, which begins "
            f"after the warm-up; got {arguments.kl_warmup_steps} and {arguments.max_steps}."
        )


def check_input(data: DataArguments, flags: dict[str, Any]) -> None:
    """Refuse arguments that contradict each other, before anything is read."""
    if (data.dataset is None) == (data.vectors is None):
        raise ValueError("Give exactly one of `dataset` and `vectors`, got both or neither.")
    encoder = data.encoder_name_or_path
    if encoder is not None and data.tokenizer_name_or_path is not None:
        raise ValueError("`tokenizer_name_or_path` must be left out with an encoder: its own tokenizer goes with it.")
    if data.max_length is not None and data.max_length < 2:
        raise ValueError(f"`max_length` must be at least 2, got {data.max_length}; the end of sentence counts.")
    if flags["decoder_type"] != "vector":
        if data.vectors is not None or data.prompt_name is not None:
            raise ValueError(
                "`decoder_type` must be 'vector' for `vectors` and `prompt_name`, got 'gru'; leave them out."
            )
        return
    if (encoder is None) == (data.vectors is None):
        raise ValueError(
            "`encoder_name_or_path` must be given with `decoder_type` 'vector' and a data set, and not with `vectors`."
        )
    ignored = [name for name in ("prompt_name", "text_column", "max_length") if getattr(data, name) is not None]
    if data.vectors is not None and ignored:
        raise ValueError(f"`{ignored[0]}` must be left out with `vectors`: there is no text.")
    if data.streaming:
        raise ValueError("`streaming` must be off with `decoder_type` 'vector': the vectors are computed once, before.")


def main() -> None:
    """Parse, train in a folder that is this run's alone."""
    data, flags, arguments = parse_arguments()
    check_input(data, flags)
    check_schedule(flags, arguments)
    sources = (data.dataset, data.vectors, data.tokenizer_name_or_path, data.encoder_name_or_path)
    with claimed_output_dir(arguments, sources) as checkpoint:
        train(data, flags, arguments, checkpoint)


def train(
    data: DataArguments, flags: dict[str, Any], arguments: TextVAETrainingArguments, checkpoint: str | None
) -> None:
    """Prepare, train, evaluate, save."""
    set_seed(arguments.seed)
    prepare = prepare_vectors if flags["decoder_type"] == "vector" else prepare_words
    with arguments.main_process_first():
        model, tokenizer, splits, collator = prepare(data, flags, arguments.seed, checkpoint)
    if checkpoint is not None:
        names = ("model_type", "vocab_size", "encoder_type", "vector_size", "pooling", "normalize_vectors", "prompts")
        names += ("default_prompt_name", *flags)
        check_resumable(checkpoint, {name: getattr(model.config, name) for name in names})
        if flags["decoder_type"] == "vector":
            check_same_vectors(checkpoint, model)
    if "validation" not in splits:
        arguments.eval_strategy = "no"
    trainer = TextVAETrainer(
        model=model,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        data_collator=collator,
        processing_class=tokenizer,
    )
    monitor = CollapseMonitor(trainer)
    if "validation" in splits:
        trainer.add_callback(monitor)
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    if "validation" in splits:
        hold_target(trainer.accelerator.unwrap_model(trainer.model), held_out_batches(trainer, CALIBRATION_ROWS))
    if flags["decoder_type"] == "vector":
        fit_code_scale(trainer.accelerator.unwrap_model(trainer.model), splits["train"].vectors.numpy())
    if "validation" in splits:
        metrics |= trainer.evaluate()
        metrics |= monitor.figures()
        if model.model.latent_head.target_active_dims is not None:
            metrics["active_threshold"] = model.config.active_threshold
    if trainer.is_world_process_zero():
        rows = None if data.streaming else len(splits["train"])
        settings = run_settings(arguments, train_rows=rows, **vars(data))
        save_run(arguments.output_dir, trainer.accelerator.unwrap_model(trainer.model), tokenizer, metrics, settings)
        print("\n".join(f"{name}: {value}" for name, value in metrics.items()))


if __name__ == "__main__":
    run(main)
