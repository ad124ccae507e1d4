"""Training: data and options in, a finished model out. `train` and `fit` are for Python; the scripts call the same."""

import logging
import os
import tempfile
from contextlib import nullcontext
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, set_seed

from hsvae_hf.active_dims import sets_threshold
from hsvae_hf.callbacks import CollapseMonitor, report_steps
from hsvae_hf.checkpoints import check_resumable, check_same_vectors
from hsvae_hf.console import model_facts, say
from hsvae_hf.data import describe
from hsvae_hf.models.sources import check_source
from hsvae_hf.options import DataArguments, check_data, check_schedule, complete, resolve
from hsvae_hf.preparation import Rows, prepare_vectors, prepare_words
from hsvae_hf.runs import Run, check_output_dir, claimed_output_dir, run_settings, save_run
from hsvae_hf.trainer import TextVAETrainer
from hsvae_hf.training_arguments import TextVAETrainingArguments
from hsvae_hf.vector_files import VectorShards, VectorSource, listed_paths, mapped_file, open_vectors, read_vectors

logger = logging.getLogger(__name__)
FEW_VECTORS = 1000  # below which a warning is given


def train(
    dataset: "str | PathLike[str] | Dataset | DatasetDict | list[str]",
    output_dir: "str | PathLike[str]",
    model_type: str = "hsvae",
    **options: object,
) -> Run:
    """Train a model on raw sentences, without labels.

    The sentences are tokenised by a tokenizer that is trained on them. 5% of the rows are held out for validation where
    the data have no validation split. Training logs every term of the loss, leaves whole checkpoints and ends with the
    threshold, the scale of codes and the generation length set. The folder then loads by `AutoModel.from_pretrained`.

    Args:
        dataset: a short name (`docstrings`, `yelp`, `dbpedia`, `yahoo`), a Hub id, a local folder or file, a `Dataset`
            or `DatasetDict` with a column of sentences, or a list of sentences.
        output_dir: folder of the run; it must be new or empty, unless `overwrite_output_dir=True` or
            `resume_from_checkpoint=True` is given.
        model_type: one of `hsvae_hf.MODELS`.
        options: by name, of three kinds. Fields of `hsvae_hf.options.DataArguments`, such as `preset`,
            `text_column`, `max_length`, `max_train_samples`, `encoder_name_or_path`. Fields of the configuration, such
            as `latent_size`, `target_active_dims`, `hidden_size` (see `hsvae_hf.HSVAEConfig`). Fields of
            `hsvae_hf.training_arguments.TextVAETrainingArguments`, which is a `transformers.TrainingArguments`, such as
            `max_steps`, `learning_rate`, `seed`. What is left open comes from the preset: "small", which trains in
            minutes on two cores, unless an encoder is given.

    Returns:
        The finished run.

    Raises:
        ValueError: for an option that does not exist, has another type or is out of range, or for data that cannot be
            read; before training starts.

    Example:
        >>> import hsvae_hf
        >>> run = hsvae_hf.train("reviews.csv", "runs/reviews", target_active_dims=12)  # doctest: +SKIP
        >>> codes = hsvae_hf.encode(run.model, run.tokenizer, ["A good film."])  # doctest: +SKIP
    """
    if isinstance(dataset, str | PathLike):
        return run_training(*resolve(os.fspath(dataset), None, output_dir, model_type, options))
    data, config_fields, arguments = resolve(describe(dataset), None, output_dir, model_type, options)
    return run_training(data, config_fields, arguments, dataset)


def fit(
    vectors: VectorSource,
    output_dir: "str | PathLike[str] | None" = None,
    model_type: str = "hsvae",
    validation: VectorSource | None = None,
    **options: object,
) -> PreTrainedModel:
    """Train sparse codes for the sentence vectors of any encoder.

    Args:
        vectors: `(rows, size)`, finite; some thousand rows at least. Or where they are: a `.npy`, `.parquet` or
            `.arrow` file, a folder of such, or a list. Files may be larger than memory
            (`hsvae_hf.vector_files.open_vectors`), and so may an array that is mapped into memory.
        output_dir: folder of the run, as in `train`; None keeps nothing on disk. `model.save_pretrained` saves the
            model later.
        model_type: one of `hsvae_hf.MODELS`.
        validation: other vectors of the same encoder, on which the threshold of the codes is set, read into memory;
            None holds out 5% of the rows.
        options: as in `train`; what is left open are the values of `hsvae_hf.presets.VECTOR_DEFAULTS`.

    Returns:
        A finished model for `encode_vectors`, in evaluation mode.

    Raises:
        ValueError: as `train`; if `vectors` are no matrix of finite numbers.

    Example:
        >>> import hsvae_hf
        >>> import numpy as np
        >>> vectors = np.random.default_rng(0).normal(size=(200, 8))
        >>> coder = hsvae_hf.fit(vectors, latent_size=16, target_active_dims=4, max_steps=2)  # doctest: +ELLIPSIS
        a ndarray of 200 rows...
        >>> hsvae_hf.encode_vectors(coder, vectors).shape
        (200, 16)
    """
    arrays = {"train": open_vectors(vectors)}
    if validation is not None:
        arrays["validation"] = read_vectors(validation, "validation")
    if len(arrays["train"]) < FEW_VECTORS:
        logger.warning("`vectors` has %d rows: codes learn from thousands. Give more.", len(arrays["train"]))
    widths = [array.shape[1] for array in arrays.values()]
    if len(set(widths)) > 1:
        raise ValueError(f"`validation` must have {widths[0]} numbers a row, as `vectors`, got {widths[1]}.")
    _check_resuming(output_dir, options)
    name = ", ".join(map(str, listed_paths(vectors))) or describe(vectors)
    if output_dir is not None:
        data, config_fields, arguments = resolve(None, name, output_dir, model_type, options)
        return run_training(data, config_fields, arguments, arrays).model
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"save_strategy": "no", "report_to": "none", "logging_steps": 500}
        data, config_fields, arguments = resolve(None, name, folder, model_type, quiet | options)
        return run_training(data, config_fields, arguments, arrays, kept=False).model


def check_fit(output_dir: "str | PathLike[str] | None" = None, model_type: str = "hsvae", **options: object) -> None:
    """Refuse what `fit` would refuse of its options, before there are vectors.

    Raises:
        ValueError: as `fit`.
    """
    _check_resuming(output_dir, options)
    with tempfile.TemporaryDirectory() as folder:
        quiet = {} if output_dir is not None else {"report_to": "none"}
        options = {name: value for name, value in options.items() if name != "validation"}
        data, config_fields, arguments = resolve(None, "vectors", output_dir or folder, model_type, quiet | options)
        check_run(data, config_fields, arguments)
        if output_dir is not None:
            check_output_dir(arguments)


def _check_resuming(output_dir: object, options: dict[str, Any]) -> None:
    if output_dir is None and options.get("resume_from_checkpoint"):
        raise ValueError("`resume_from_checkpoint` must come with `output_dir`, the folder of the run to go on with.")


def files_of(rows: Rows) -> list[str]:
    """The files that rows are read from: those of a `Dataset`, of memory-mapped arrays, and of shards of vectors."""
    files: list[str] = []
    for part in rows.values() if isinstance(rows, dict) else [rows]:
        if isinstance(part, Dataset):
            files += [file["filename"] for file in part.cache_files]
        for source in [shard.source for shard in part.shards] if isinstance(part, VectorShards) else [part]:
            path = source if isinstance(source, Path) else mapped_file(source)
            files += [] if path is None else [str(path)]
    return files


def check_run(
    data: DataArguments, config_fields: dict[str, Any], arguments: TextVAETrainingArguments
) -> dict[str, Any]:
    """Refuse what contradicts itself; the arguments are those of `run_training`.

    Returns:
        All fields of the configuration.

    Raises:
        ValueError: naming the first.
    """
    config_fields, config = complete(data, config_fields)
    check_data(data, config)
    check_schedule(config, arguments)
    for name in ("encoder_name_or_path", "tokenizer_name_or_path"):
        if getattr(data, name) is not None:
            check_source(getattr(data, name), name)
    return config_fields


def run_training(
    data: DataArguments,
    config_fields: dict[str, Any],
    arguments: TextVAETrainingArguments,
    rows: Rows | None = None,
    kept: bool = True,
) -> Run:
    """Train in a folder that is this run's alone; everything that can be refused is refused before data are read.

    Args:
        data: what to train on.
        config_fields: fields of the configuration.
        arguments: of training.
        rows: the data themselves, where `data` only names them.
        kept: whether the folder outlives the call.
    """
    source = data.dataset or ", ".join(data.vectors or [])
    say(f"{source}: {data.model_type}, {f'to {arguments.output_dir}' if kept else 'in memory'}")
    config_fields = check_run(data, config_fields, arguments)
    places = [data.tokenizer_name_or_path, data.encoder_name_or_path]
    places += [data.dataset, *(data.vectors or []), *files_of(rows or [])]
    with claimed_output_dir(arguments, places) as checkpoint:
        return _train(data, config_fields, arguments, checkpoint, rows)


def _train(
    data: DataArguments,
    config_fields: dict[str, Any],
    arguments: TextVAETrainingArguments,
    checkpoint: str | None,
    rows: Rows | None,
) -> Run:
    """Prepare, train, evaluate, save."""
    set_seed(arguments.seed)
    vectors = config_fields.get("decoder_type") == "vector"
    # Of a text encoder's vectors, and of tokens, the first process fills the cache that the others read.
    with arguments.main_process_first() if data.vectors is None else nullcontext():
        prepare = prepare_vectors if vectors else prepare_words
        model, tokenizer, splits, collator = prepare(data, config_fields, arguments.seed, checkpoint, rows)
    if checkpoint is not None:
        names = ["model_type", "vocab_size", "encoder_type", "vector_size", "pooling", "normalize_vectors", "prompts"]
        names += ["default_prompt_name", *config_fields]
        check_resumable(checkpoint, {name: getattr(model.config, name) for name in names})
        if vectors:
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
    large = data.preset in ("paper", "released") and data.encoder_name_or_path is None and not vectors
    report_steps(trainer, "these sizes are for a GPU: --preset small takes minutes on two cores" if large else None)
    say(model_facts(model))
    monitor = CollapseMonitor(trainer)
    if "validation" in splits:
        trainer.add_callback(monitor)
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    if "validation" in splits:
        metrics |= trainer.evaluate() | monitor.figures()
        if sets_threshold(model):
            metrics["active_threshold"] = model.config.active_threshold
    if trainer.is_world_process_zero():
        count = None if data.streaming else len(splits["train"])
        settings = run_settings(arguments, train_rows=count, **asdict(data))
        save_run(arguments.output_dir, model, tokenizer, metrics, settings)
    return Run(model.eval(), tokenizer, metrics, str(arguments.output_dir))
