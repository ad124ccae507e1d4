"""Checkpoints: what a run must be like to go on from one, and the folder that they lie in."""

import hashlib
import json
import logging
import zipfile
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pyarrow.compute as pc
import torch
from datasets import Dataset, IterableDataset
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hsvae_hf.vector_data import VectorDataset

logger = logging.getLogger(__name__)
COURSE_NAME = "course.json"  # in a checkpoint: what decided the course of training
_STREAMED_ROWS = 1000  # of a stream, so many rows are compared
_SETTINGS: tuple[str, ...] = ("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay")
_SETTINGS += ("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "per_device_train_batch_size")
_SETTINGS += ("gradient_accumulation_steps", "world_size", "seed", "data_seed", "bf16", "fp16")
_SETTINGS += ("train_sampling_strategy", "dataloader_drop_last", "kl_annealing", "kl_warmup_steps", "kl_cycles")
_SETTINGS += ("lr_scheduler_kwargs", "optim_args", "neftune_noise_alpha", "ignore_data_skip", "label_smoothing_factor")


def check_whole(checkpoint: str, arguments: TrainingArguments) -> None:
    """Make sure that a checkpoint holds all that a run needs to go on as if it had not stopped.

    Raises:
        ValueError: naming what is missing.
    """
    folder = Path(checkpoint)
    needed = [(TRAINER_STATE_NAME,), (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)]
    if not arguments.deepspeed and not arguments.fsdp:  # those have files of their own
        several = [f"rng_state_{number}.pth" for number in range(arguments.world_size)]
        needed += [(OPTIMIZER_NAME,), (SCHEDULER_NAME,)]
        needed += [(name,) for name in several] if len(several) > 1 else [("rng_state.pth",)]
    for names in needed:
        if not any((folder / name).is_file() for name in names):
            raise ValueError(
                f"`resume_from_checkpoint` must be a whole checkpoint, got {checkpoint!r} without {names[0]}; resume "
                "from another one, or start anew in another folder."
            )


def check_intact(checkpoint: str) -> None:
    """Make sure that the files of a checkpoint can be read: those of torch are archives with checksums.

    Raises:
        ValueError: naming the first that is damaged.
    """
    for path in sorted(Path(checkpoint).glob("*.pt*")):
        if not zipfile.is_zipfile(path) or zipfile.ZipFile(path).testzip() is not None:
            raise ValueError(
                f"`resume_from_checkpoint` must be a whole checkpoint, got a damaged {str(path)!r}; resume from the "
                "one before it."
            )


def course(arguments: TrainingArguments, dataset: object) -> dict[str, Any]:
    """What decides the course of training: settings, and the `data_fingerprint` of the data set."""
    values = {name: getattr(arguments, name) for name in _SETTINGS if hasattr(arguments, name)}
    settings = {name: getattr(value, "value", value) for name, value in values.items()}
    settings["optim"] = str(settings["optim"]).removesuffix("_fused")  # the same steps; the default goes by the machine
    return {"settings": settings, "data": data_fingerprint(dataset)}


def data_fingerprint(dataset: Any) -> str | None:
    """A hash of tokens, their order and their labels, the same on every machine; of a stream, of its first rows.

    Of vectors in files, that of `VectorDataset`. None of other data, such as vectors in memory.
    """
    if isinstance(dataset, VectorDataset):
        return dataset.fingerprint
    if not isinstance(dataset, Dataset | IterableDataset) or "input_ids" not in (dataset.column_names or "input_ids"):
        return None
    found = hashlib.sha256()
    columns = [name for name in ("input_ids", "label") if name in (dataset.column_names or ("input_ids",))]
    if isinstance(dataset, IterableDataset):
        rows = [{name: row[name] for name in columns} for row in islice(dataset, _STREAMED_ROWS)]
        dataset = Dataset.from_list(rows)
    parts: Any = dataset.select_columns(columns).with_format("arrow").iter(10_000)
    for table in parts:
        ids = table.column("input_ids")
        for numbers in (pc.list_value_length(ids), pc.list_flatten(ids)):
            found.update(numbers.to_numpy().astype("<i8").tobytes())
        if "label" in columns:
            found.update(str(table.column("label").to_pylist()).encode())
    return found.hexdigest()[:16]


def read_course(checkpoint: str) -> dict[str, Any]:
    """What `course` gave when the checkpoint was made; nothing of one that an earlier version wrote."""
    path = Path(checkpoint) / COURSE_NAME
    if not path.is_file():
        logger.warning("%s does not say on which data and with which settings it was made: give the same", checkpoint)
        return {}
    return cast(dict[str, Any], _read_json(path))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"`resume_from_checkpoint` must be a whole checkpoint, got a damaged {str(path)!r} ({error}); resume "
            "from the one before it."
        ) from error


def check_settings(checkpoint: str, arguments: TrainingArguments) -> None:
    """Make sure that a resumed run goes on with the settings that it was started with.

    Raises:
        ValueError: naming the first that differs.
    """
    now = course(arguments, None)["settings"]
    for name, saved in read_course(checkpoint).get("settings", {}).items():
        if now.get(name, saved) != saved:
            named = "number of processes" if name == "world_size" else name
            raise ValueError(
                f"`{named}` must stay {saved!r}, as in {checkpoint!r}, got {now[name]!r}; resume a run with the "
                "options that it was started with."
            )


def check_same_data(checkpoint: str, dataset: object) -> None:
    """Make sure that a resumed run goes on with the data it was started with.

    Raises:
        ValueError: if it has other words, or in another order.
    """
    saved, now = read_course(checkpoint).get("data"), data_fingerprint(dataset)
    if saved is not None and saved != now:
        raise ValueError(
            f"`resume_from_checkpoint` must be a run on the same data, got {checkpoint!r} of other rows or words; "
            "resume with the data set, columns, number of rows, tokenizer, length and seed that it was started with."
        )


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of all weights and their names, as they are now."""
    found = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def check_same_source(checkpoint: str, source: str) -> None:
    """Make sure that a resumed classifier goes on from the trained model that it was started from.

    Args:
        checkpoint: its folder.
        source: the `weights_fingerprint` of the trained model.

    Raises:
        ValueError: if that model has other weights.
    """
    if read_course(checkpoint).get("source", source) != source:
        raise ValueError(
            f"`model_name_or_path` must stay the model that the run was started from, got one with other weights than "
            f"{checkpoint!r} began with; resume with the former, or start anew in another folder."
        )


def check_resumable(checkpoint: str, options: dict[str, Any]) -> None:
    """Make sure that a resumed run goes on with the model it was started with.

    Args:
        checkpoint: its folder.
        options: what its configuration must hold.

    Raises:
        ValueError: if the configuration holds another value or a file is damaged.
    """
    for path in Path(checkpoint).glob("*.json"):
        _read_json(path)
    config = AutoConfig.from_pretrained(checkpoint)
    for name, value in options.items():
        saved = getattr(config, name, None)
        if saved != value:
            raise ValueError(
                f"`{name}` must stay {saved!r}, as in {checkpoint!r}, got {value!r}; resume a run with the options "
                "that it was started with."
            )
    weights = Path(checkpoint) / SAFE_WEIGHTS_NAME
    try:
        if weights.is_file():
            safe_open(weights, framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"`resume_from_checkpoint` must be a whole checkpoint, got damaged weights in {str(weights)!r} ({error}); "
            "delete that checkpoint and resume from the one before it."
        ) from error


def check_same_vectors(checkpoint: str, model: nn.Module) -> None:
    """Make sure that a resumed run goes on with the vectors it was started with.

    Their statistics change with the text, the encoder, the prompt, the length and the split.

    Raises:
        ValueError: if the standardizer of `model`, of the vectors now, is not that of `checkpoint`.
    """
    now: Any = model.get_submodule("model.standardizer")
    with safe_open(Path(checkpoint) / SAFE_WEIGHTS_NAME, framework="pt") as weights:
        for name in ("mean", "std"):
            if not torch.allclose(weights.get_tensor(f"model.standardizer.{name}"), getattr(now, name), atol=1e-4):
                raise ValueError(
                    f"`resume_from_checkpoint` must be a run on the same vectors, got {checkpoint!r} of others; resume "
                    "with the data, encoder, prompt, length and seed that it was started with."
                )
