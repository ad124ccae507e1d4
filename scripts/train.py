"""Train a text VAE on raw sentences: tokenizer, model, checkpoints, logs, results in one folder."""

import math
import signal
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the imports take seconds: a signal ends them without a traceback
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

import torch
from transformers import set_seed

import hsvae_hf
from hsvae_hf.active_dims import fit_code_scale, hold_target
from hsvae_hf.arguments import MODEL_NAMES, OUTPUT_FIRST, TRAINING_FIRST, ScriptParser, choose, config_arguments
from hsvae_hf.batching import TextCollator, VectorDataset, collate_vectors
from hsvae_hf.callbacks import CALIBRATION_ROWS, CollapseMonitor, held_out_batches
from hsvae_hf.checkpoints import check_resumable, check_same_vectors, claimed_output_dir
from hsvae_hf.cli import run
from hsvae_hf.data import MAX_LENGTHS, load_text_dataset, split_vectors, tokenize_dataset
from hsvae_hf.embedding_cache import embed_dataset, load_encoder_tokenizer
from hsvae_hf.files import load_vectors
from hsvae_hf.loading import load_tokenizer
from hsvae_hf.locating import HUB_IDS
from hsvae_hf.models.modeling_text_vae import tokenizer_fields
from hsvae_hf.models.sources import check_source
from hsvae_hf.presets import HEAD_DEFAULTS, SMALL_LENGTH, SMALL_MODEL, SMALL_TRAINING, VECTOR_DEFAULTS
from hsvae_hf.reporting import command_line, data_facts, finish, model_facts, report_steps, say
from hsvae_hf.tokenization import train_tokenizer, warn_unknown
from hsvae_hf.trainer import TextVAETrainer
from hsvae_hf.training import run_settings, save_run
from hsvae_hf.training_arguments import TextVAETrainingArguments

LARGE_SHARE_CUT = 0.05  # of the rows, from which on it is said
ENCODER_LEARNING_RATE = 8e-5  # the paper's, with BERT
PRESETS = ("default", "small", "released")
FIRST = {
    "data": ("dataset", "text_column", "vectors", "max_train_samples", "max_length"),
    "model": (
        "preset",
        "model_type",
        "encoder_name_or_path",
        "decoder_type",
        "latent_size",
        "hidden_size",
        "vocab_size",
    ),
    "sparsity": ("target_active_dims", "max_active_dims"),
    "training": TRAINING_FIRST,
    "output": OUTPUT_FIRST,
}
MODEL_HELP = f"With --model_type, the options are those of that model: {', '.join(hsvae_hf.MODELS)}."


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
    model_type: str = field(default="hsvae", metadata={"help": "Which model; see below."})
    preset: str = field(
        default="default",
        metadata={
            "help": "small: words, on two cores, in minutes; released: hsvae as in the paper's released code; else the "
            "paper's sizes, for a GPU."
        },
    )
    encoder_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A pretrained text encoder to build on, with its tokenizer; for words, learning rate 8e-5."},
    )
    prompt_name: str | None = field(
        default=None, metadata={"help": "Which of a sentence-transformers encoder's prompts goes before a sentence."}
    )
    dataset_config_name: str | None = field(
        default=None,
        metadata={"aliases": ["--dataset_config"], "help": "Configuration of a data set that has several."},
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
    ascii_only: bool = field(
        default=False,
        metadata={"help": "The tokenizer to be trained keeps to the paper's ASCII rule; --preset released does."},
    )
    streaming: bool = field(default=False, metadata={"help": "Read while training; needs --max_steps."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Rows of the training split."})
    max_samples: int | None = field(default=None, metadata={"help": "Rows of the validation split."})


def holds_a_number(flags: dict[str, Any]) -> bool:
    """Whether training holds a number of active dimensions: one that was asked for, or that of balanced gates."""
    balanced = flags.get("gate_balance_weight", 0) > 0 and flags["gamma_kl_weight"] > 0
    return balanced or flags.get("target_active_dims") is not None


def parse_arguments() -> tuple[DataArguments, dict[str, Any], TextVAETrainingArguments]:
    """The command line; `--model_type` decides which configuration's fields are flags."""
    peek = ScriptParser()
    peek.add_argument("--model_type", "--model-type", default=DataArguments.model_type)
    peek.add_argument("--encoder_name_or_path", "--encoder-name-or-path")
    peek.add_argument("--decoder_type", "--decoder-type", default="gru")
    peek.add_argument("--vectors")
    peek.add_argument("--preset", default=DataArguments.preset)
    known = peek.parse_known_args()[0]
    name = choose("model_type", known.model_type, hsvae_hf.MODELS, MODEL_NAMES, "a text VAE of")
    preset = choose("preset", known.preset, PRESETS)
    kinds = {"data": DataArguments, "model": config_arguments(hsvae_hf.MODELS[name][0])}
    kinds["training"] = TextVAETrainingArguments
    parser = ScriptParser(kinds, FIRST, model_of, description=__doc__, epilog=MODEL_HELP)
    vectors = known.decoder_type == "vector" or known.vectors is not None
    if vectors:
        defaults = VECTOR_DEFAULTS | HEAD_DEFAULTS.get(name, {}) | {"decoder_type": "vector"}
    elif known.encoder_name_or_path is not None:
        defaults = {"learning_rate": ENCODER_LEARNING_RATE, "tie_word_embeddings": False}
    else:
        defaults = {}
    defaults |= preset_defaults(preset, name, words=not vectors and known.encoder_name_or_path is None)
    if any(word.startswith(("--num_train_epochs", "--num-train-epochs")) for word in sys.argv):
        defaults["max_steps"] = -1  # epochs are what was asked for
    parser.set_defaults(**{option: value for option, value in defaults.items() if parser.knows(option)})
    data, parsed, arguments = parser.parse()
    data.model_type, data.preset = name, preset
    flags = vars(parsed)
    if vectors and holds_a_number(flags) and flags["target_active_dims"] is None:  # what gates are balanced to
        flags["target_active_dims"] = min(flags["latent_size"] / 16, (flags["max_active_dims"] or math.inf) / 2)
    return data, flags, arguments


def preset_defaults(preset: str, model_type: str, words: bool) -> dict[str, Any]:
    """The defaults that a preset sets.

    Raises:
        ValueError: if it is not for this model or input.
    """
    if preset == "released":
        if model_type != "hsvae":
            raise ValueError(f"`preset` must be default or small for {model_type}, got 'released', which is for hsvae.")
        return hsvae_hf.RELEASED | {"ascii_only": True}
    if preset == "small":
        if not words:
            raise ValueError(
                "`preset` must be left out with an encoder or vectors, got 'small', which is for words and a GRU."
            )
        return SMALL_MODEL | SMALL_TRAINING | {"max_length": SMALL_LENGTH}
    return {}


def model_of(option: str) -> str | None:
    """The model that has a field of this name in its configuration, for the error."""
    found = [
        name
        for name, kinds in hsvae_hf.MODELS.items()
        if option in {f.name for f in fields(config_arguments(kinds[0]))}
    ]
    return f"--model_type {' and '.join(found)}" if found else None


def remedy(data: DataArguments) -> str | None:
    """What to do where training takes long on a CPU: the small preset, if it is for this input and not set."""
    large = data.preset != "small" and data.encoder_name_or_path is None and data.vectors is None
    return "these sizes are for a GPU: --preset small takes minutes on two cores" if large else None


def load_text(data: DataArguments, seed: int) -> Any:
    """The splits to train and to evaluate on, raw."""
    dataset = load_text_dataset(
        str(data.dataset),
        text_column=data.text_column,
        dataset_config_name=data.dataset_config_name,
        with_labels=False,
        streaming=data.streaming,
        max_train_samples=data.max_train_samples,
        max_samples=data.max_samples,
        seed=seed,
    )
    say(*data_facts(dataset, labels=False))
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
        warn_unknown(tokenizer, (row["text"] for row in dataset["train"]))
    else:
        texts = (row["text"] for row in dataset["train"])
        size = flags["vocab_size"]
        tokenizer = train_tokenizer(texts, vocab_size=size, max_length=max_length, ascii_only=data.ascii_only)
    data.max_length = tokenizer.model_max_length  # as `train_settings.json` is to say
    splits = {name: tokenize_dataset(split, tokenizer) for name, split in dataset.items()}
    if not data.streaming:
        tell_cuts(splits["train"]["length"][:], data.max_length)
    flags.pop("vocab_size")
    config_class, _, model_class, _ = hsvae_hf.MODELS[data.model_type]
    if encoder is not None:
        model = model_class.from_encoder_pretrained(encoder, **flags)
    else:
        model = model_class(config_class(vocab_size=len(tokenizer), **flags, **tokenizer_fields(tokenizer)))
    model.generation_config.max_length = tokenizer.model_max_length + 1  # the start token counts
    return model, tokenizer, splits, TextCollator(tokenizer)


def tell_cuts(lengths: list[int], limit: int) -> None:
    """Say how many sentences are as long as the limit, if that is many: they are cut there."""
    share = sum(length >= limit for length in lengths) / len(lengths)
    if share > LARGE_SHARE_CUT:
        say(f"{share:.0%} of the rows are cut at {limit} tokens; --max_length keeps more")


def prepare_vectors(data: DataArguments, flags: dict[str, Any], seed: int, checkpoint: str | None) -> tuple[Any, ...]:
    """Model, tokenizer if there is text, and vectors, to reconstruct vectors."""
    flags.pop("vocab_size")
    config_class, _, model_class, _ = hsvae_hf.MODELS[data.model_type]
    if data.vectors is not None:
        rows = load_vectors(data.vectors)
        flags["freeze_text_encoder"] = False
        model = model_class(config_class(encoder_type="vector", vector_size=rows.shape[1], **flags))
        tokenizer, vectors = None, split_vectors(rows, seed, data.max_train_samples, data.max_samples)
        say(f"data: {data.vectors}, vectors", *data_facts(vectors))
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
        got = "neither" if data.dataset is None else "both"
        raise ValueError(f"Give exactly one of `dataset` and `vectors`, got {got}; --dataset docstrings is at hand.")
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
    ignored = ("prompt_name", "text_column", "dataset_config_name", "max_length")
    ignored = [name for name in ignored if getattr(data, name) is not None]
    if data.vectors is not None and ignored:
        raise ValueError(f"`{ignored[0]}` must be left out with `vectors`: there is no text.")
    if data.streaming:
        raise ValueError("`streaming` must be off with `decoder_type` 'vector': the vectors are computed once, before.")


def check_sources(data: DataArguments) -> None:
    """Refuse an encoder or a tokenizer that is not there, before anything is read."""
    for name in ("encoder_name_or_path", "tokenizer_name_or_path"):
        if getattr(data, name) is not None:
            check_source(getattr(data, name), name)


def main() -> None:
    """Parse, train in a folder that is this run's alone."""
    data, flags, arguments = parse_arguments()
    check_input(data, flags)
    check_schedule(flags, arguments)
    check_sources(data)
    sources = (data.dataset, data.vectors, data.tokenizer_name_or_path, data.encoder_name_or_path)
    with claimed_output_dir(arguments, sources) as checkpoint:
        train(data, flags, arguments, checkpoint)


def train(
    data: DataArguments, flags: dict[str, Any], arguments: TextVAETrainingArguments, checkpoint: str | None
) -> None:
    """Prepare, train, evaluate, save."""
    say(f"train.py: {data.model_type} on {data.dataset or data.vectors}, to {arguments.output_dir}")
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
    report_steps(trainer, remedy(data))
    say(model_facts(model))
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
        tell(data, arguments.output_dir, metrics)


def tell(data: DataArguments, folder: str, metrics: dict[str, Any]) -> None:
    """Say where the run is, what came out, and how to look at it."""
    figures = {
        "perplexity per word": metrics.get("eval_perplexity"),
        "neighbours kept": metrics.get("eval_neighbours_kept"),
        "non-zeros per code": metrics.get("eval_active_dims"),
        "mutual information": metrics.get("eval_mutual_information"),
    }
    if not any(value is not None for value in figures.values()):
        figures = {"loss": metrics["train_loss"]}
    names = ("dataset", "dataset_config_name", "vectors", "text_column")
    source = {name: getattr(data, name) for name in names}
    result = f"{folder}: the model{'' if data.vectors else ', its tokenizer'}, and all figures in all_results.json"
    report = Path(folder) / "report.json"
    finish(result, figures, command_line("evaluate_model.py", model_name_or_path=folder, **source, output=report))


if __name__ == "__main__":
    run(main)
