"""The folder of a training run: who may write there, and what is left in it."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from hsvae_hf.checkpoints import check_settings, check_whole
from hsvae_hf.files import UNFINISHED, claimed_folder, staged_folder
from hsvae_hf.training_arguments import RunArguments, check_push, rehearse

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


@dataclass
class Run:
    """A finished run.

    Args:
        model: for pre-training, in evaluation mode, with its threshold and the scale of its codes set.
        tokenizer: of the model; None where the model takes vectors.
        metrics: of training (`train_loss`, ...) and of the validation rows (`eval_loss`, `eval_active_dims`, ...).
        output_dir: folder of the model, its tokenizer, its checkpoints and `all_results.json`.
    """

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase | None = field(repr=False)
    metrics: dict[str, Any] = field(repr=False)
    output_dir: str


def check_output_dir(arguments: RunArguments, inputs: Iterable[str | None] = ()) -> str | None:
    """Make sure that a run overwrites nothing unasked, and none of what it reads.

    Args:
        arguments: of the run.
        inputs: what the run reads: folders, files or Hub ids.

    Returns:
        The checkpoint to resume from, if that was asked for.

    Raises:
        ValueError: if `output_dir` holds files of another run and overwriting was not asked for, or holds an input; if
            there is nothing to resume from, or its checkpoint is not whole or was made with other settings.
    """
    folder, resume = Path(arguments.output_dir), arguments.resume_from_checkpoint
    for path in filter(None, inputs):
        if Path(path).exists() and Path(path).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"`output_dir` must not hold what the run reads, got {str(folder)!r} with {path!r} in it.")
    last = None
    if resume is not None and str(resume).lower() != "false":
        last = get_last_checkpoint(str(folder)) if str(resume).lower() == "true" and folder.is_dir() else str(resume)
        if last is None or not (Path(last) / TRAINER_STATE_NAME).is_file():
            raise ValueError(
                f"`resume_from_checkpoint` must be a whole checkpoint, got none in {str(last or folder)!r}; start the "
                "run anew, with --overwrite_output_dir where its folder holds files."
            )
        check_settings(last, arguments)
        check_whole(last, arguments)
    if arguments.process_index > 0 or not folder.is_dir():
        return last
    inside = last is not None and Path(last).resolve().parent == folder.resolve()
    logs = {UNFINISHED, "runs"}  # TensorBoard's, all that a run leaves which ends before its first checkpoint
    holds = any(path.name not in logs for path in folder.iterdir())
    if holds and not inside and (last is not None or not arguments.overwrite_output_dir):
        remedy = "set `resume_from_checkpoint` to true to go on, or `overwrite_output_dir` to delete it"
        remedy = remedy if last is None else "a run that goes on elsewhere needs a folder of its own"
        raise ValueError(f"`output_dir` must be empty or new, got {str(folder)!r}; {remedy}.")
    return last


@contextmanager
def claimed_output_dir(arguments: RunArguments, inputs: Iterable[str | None] = ()) -> Iterator[str | None]:
    """The folder of a run for this run alone, with all that can be refused before the data is read.

    Args:
        arguments: of the run.
        inputs: as of `check_output_dir`.

    Yields:
        The checkpoint to resume from, if that was asked for.

    Raises:
        ValueError: as `check_output_dir`; if `output_dir` is missing, cannot be written, or another process writes
            there; if the options of training do not work together or on this machine.
    """
    if not arguments.output_dir:
        raise ValueError("`output_dir` must be given, got nothing; name the folder of this run.")
    with claimed_folder(arguments.output_dir) if arguments.process_index == 0 else nullcontext():
        checkpoint = check_output_dir(arguments, inputs)
        rehearse(arguments)
        if arguments.process_index == 0:
            check_push(arguments)
        yield checkpoint


def save_run(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    metrics: dict[str, Any],
    settings: dict[str, Any] | None = None,
) -> None:
    """Save model, tokenizer if any, `all_results.json` and `train_settings.json` to `folder`: whole files or none."""
    with staged_folder(folder) as temporary:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        for path in temporary.glob("*.safetensors"):  # which the library keeps from other users
            shutil.copymode(temporary / "config.json", path)
        for name, content in (("all_results", metrics), ("train_settings", settings)):
            if content is not None:
                (temporary / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def run_settings(arguments: RunArguments, **options: Any) -> dict[str, Any]:
    """What a model card says about training: `options`, the model of the Hub under it, and what decides the result."""
    names: tuple[str, ...] = ("learning_rate", "lr_scheduler_type", "per_device_train_batch_size")
    names += ("weight_decay", "gradient_accumulation_steps", "max_grad_norm", "seed", "bf16")
    names += ("kl_annealing",)
    if getattr(arguments, "kl_annealing", "none") == "linear":
        names += ("kl_warmup_steps",)
    names += ("num_train_epochs" if arguments.max_steps < 0 else "max_steps",)
    values = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    values = {name: getattr(value, "value", value) for name, value in values.items()}
    versions = {"processes": arguments.world_size, "transformers": transformers.__version__, "torch": torch.__version__}
    source = options.get("encoder_name_or_path") or options.get("model_name_or_path")
    if source is not None and HUB_ID.fullmatch(source) and not Path(source).exists():  # later, who could tell
        options["base_model"] = source
    return {name: value for name, value in options.items() if value is not None} | values | versions
