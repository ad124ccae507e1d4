"""Trainer with the paper's settings: logs every loss term, saves whole checkpoints or none, anneals the KL."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, cast

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    TrainOutput,
    get_last_checkpoint,
    has_length,
    rotate_checkpoints,
)
from transformers.utils import is_torch_xla_available

from hsvae_hf.callbacks import AnnealingCallback, ResumedCallback
from hsvae_hf.data import LengthGroupedSampler
from hsvae_hf.extras import require
from hsvae_hf.files import UNFINISHED, claimed_folder, staged_folder, uninterrupted
from hsvae_hf.hub import model_card
from hsvae_hf.rehearsal import check_best_metric, check_choices, check_push, check_ranges, check_warmup, rehearse
from hsvae_hf.reporting import report_steps
from hsvae_hf.resuming import COURSE_NAME, check_same_data, check_same_source, check_settings, check_whole, course

TERMS = ("reconstruction_loss", "z_kl", "gamma_kl", "penalty", "similarity", "squared_error")  # of the objective
HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


@dataclass
class RunArguments(TrainingArguments):
    """TrainingArguments with the paper's settings: Adam 8e-4, batches of 256, 15 epochs, no decay, no warm-up.

    The gradient is clipped at norm 100, far above what training shows: a guard against a single bad batch, which the
    paper does not have.
    """

    output_dir: str = field(default="", metadata={"help": "Folder of the run: model, tokenizer, checkpoints, logs."})
    learning_rate: float = field(default=8e-4, metadata={"help": "Learning rate of Adam."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Schedule of the learning rate."})
    per_device_train_batch_size: int = field(default=256, metadata={"help": "Sentences per step and process."})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "Sentences per evaluation step."})
    num_train_epochs: float = field(default=15.0, metadata={"help": "Passes over the training split."})
    max_grad_norm: float = field(default=100.0, metadata={"help": "Gradient norm to clip at; 0 is off."})
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "random or group_by_length."})
    logging_steps: float = field(default=50, metadata={"help": "Log the loss terms every so many steps."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps or epoch."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluate the loss terms alone."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches in memory, for a GPU."}
    )
    report_to: str = field(default="tensorboard", metadata={"help": "Where to log."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave NaN and infinity out of the log."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete what is in output_dir."})
    measured: ClassVar[tuple[str, ...]] = ("loss", "accuracy")  # in evaluation, for `metric_for_best_model`

    def __post_init__(self) -> None:
        """Refuse what would train nothing, or fails at the first step or checkpoint, before anything is read."""
        require("accelerate")
        for name in ("learning_rate", "num_train_epochs"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be positive and finite, got {value}; choose a value above 0.")
        batches = ("per_device_train_batch_size", "per_device_eval_batch_size")
        for name in (*batches, "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}; choose a positive number.")
        if self.max_steps < 1 and self.max_steps != -1:
            raise ValueError(f"`max_steps` must be at least 1, got {self.max_steps}; -1 goes by `num_train_epochs`.")
        check_ranges(self)
        check_choices(self)
        check_warmup(self)
        check_best_metric(self, self.measured)
        if not torch.accelerator.is_available() and not is_torch_xla_available():
            self.use_cpu = True  # without it, processes of torchrun on CPUs would not know of each other
        super().__post_init__()


@dataclass
class TextVAETrainingArguments(RunArguments):
    """The settings of every run, and the annealing of the KL."""

    kl_annealing: Literal["none", "linear", "cyclical"] = field(
        default="none", metadata={"help": "Scale the KL terms: linear warm-up, or cycles of ramp and plateau."}
    )
    kl_warmup_steps: int | None = field(
        default=None, metadata={"help": "Steps of the linear warm-up; a third of all steps by default."}
    )
    kl_cycles: int = field(default=4, metadata={"help": "Number of cycles of cyclical annealing."})
    measured: ClassVar[tuple[str, ...]] = ("loss", *TERMS, "perplexity")

    def __post_init__(self) -> None:
        """Refuse an annealing that there is not."""
        AnnealingCallback(self.kl_annealing, self.kl_warmup_steps, self.kl_cycles)
        if self.label_smoothing_factor != 0:
            raise ValueError(
                f"`label_smoothing_factor` must be 0 without classes, got {self.label_smoothing_factor}; leave it out."
            )
        super().__post_init__()


@contextmanager
def _named(checkpoint: str | None, what: str) -> Iterator[None]:
    """Turn whatever a damaged file of a checkpoint raises into one clear error."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"`resume_from_checkpoint` must be a whole checkpoint of this run, got {checkpoint!r} with a {what} that "
            f"cannot be read ({type(error).__name__}: {error}); resume from the one before it."
        ) from error


class WholeCheckpointTrainer(Trainer):
    """Trainer whose checkpoints get their name once they are whole, so that a killed run can always resume."""

    source: str | None = None  # of a classifier: the `weights_fingerprint` of the trained model under it
    _unfinished = False
    _course: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._resumed = ResumedCallback()
        self.add_callback(self._resumed)
        report_steps(self)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """The Trainer's own; where `overwrite_output_dir` is set, the folder is emptied once all is ready to start.

        Raises:
            ValueError: if there is nothing to train on or, in a finished run that is resumed, nothing left to do; if
                the run was started with other data; if another process writes into the folder; if the loss is no
                longer finite.
        """
        batches = self.get_train_dataloader()
        if has_length(batches) and len(batches) == 0:
            raise ValueError("`train_dataset` must fill a batch, got too few rows; lower per_device_train_batch_size.")
        self.create_optimizer()
        folder = Path(str(self.args.output_dir))
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if resume_from_checkpoint:
            check_same_data(resume_from_checkpoint, self.train_dataset)
            if self.source is not None:
                check_same_source(resume_from_checkpoint, self.source)
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            self._resumed.max_steps = state.max_steps
        self._course = course(self.args, self.train_dataset) | ({"source": self.source} if self.source else {})
        first = self.args.process_index == 0
        with claimed_folder(folder) if first else nullcontext():
            overwrite = getattr(self.args, "overwrite_output_dir", False) and not resume_from_checkpoint
            if overwrite and first:
                for path in folder.iterdir():
                    if path.name != UNFINISHED:
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            found = super().train(resume_from_checkpoint, *args, **kwargs)
        self._check_weights()
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's own; a loss that is not finite ends the run before a checkpoint keeps what it did."""
        for name, value in logs.items():
            watched = name.endswith("loss") or (name == "grad_norm" and not self.args.fp16)  # fp16 skips such a step
            if watched and not math.isfinite(value):
                self._raise_diverged({"loss": "the loss"}.get(name, name), value)
        super().log(logs, start_time)

    def _raise_diverged(self, what: str, value: object) -> NoReturn:
        raise ValueError(
            f"`learning_rate` must be lower: {what} at step {self.state.global_step} is {value}; the checkpoints "
            "before it are whole."
        )

    def _check_weights(self) -> None:
        if not all(bool(weight.isfinite().all()) for weight in cast(nn.Module, self.model).parameters()):
            self._raise_diverged("a weight", "not finite")

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        try:
            return super()._determine_best_metric(metrics, trial)
        except KeyError as error:
            names = ", ".join(name.removeprefix("eval_") for name in metrics)
            raise ValueError(
                f"`metric_for_best_model` must be measured in evaluation, got {self.args.metric_for_best_model!r}; "
                f"name one of {names}."
            ) from error

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Tied weights are saved once: none of them is missing; what is missing else is an error."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [name for name in load_result.missing_keys if name not in tied]
        if missing:
            raise ValueError(
                f"`resume_from_checkpoint` must hold all weights of the model, got one without {missing[0]!r}; resume "
                "from the one before it."
            )
        load_result.missing_keys.clear()
        super()._issue_warnings_after_load(load_result)

    def create_model_card(self, *args: Any, model_name: str | None = None, **kwargs: Any) -> None:
        """The card of `hsvae_hf.hub.model_card`, written to `output_dir`; called by `push_to_hub`."""
        if self.is_world_process_zero():
            folder = Path(str(self.args.output_dir))
            model_card(folder, self.hub_model_id or model_name or folder.name).save(folder / "README.md")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _named(checkpoint, "optimizer or scheduler"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _named(checkpoint, "random state"):
            super()._load_rng_state(checkpoint)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._unfinished else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint under a temporary name, then rename it: a killed run leaves whole ones only."""
        self._check_weights()
        run = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(run / UNFINISHED / name, ignore_errors=True)  # of an attempt that failed
        self.accelerator.wait_for_everyone()
        self._unfinished = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._unfinished = False
        self.accelerator.wait_for_everyone()
        staged, best = run / UNFINISHED / name, self.state.best_model_checkpoint
        if best is not None and Path(best).parent.name == UNFINISHED:
            self.state.best_model_checkpoint = str(run / Path(best).name)
        if self.args.should_save:
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            (staged / COURSE_NAME).write_text(json.dumps(self._course, indent=2) + "\n")
            replaced = run / UNFINISHED / "replaced"  # a deletion that is cut short leaves half of it
            with uninterrupted():
                if (run / name).exists():
                    (run / name).rename(replaced)
                staged.rename(run / name)
            shutil.rmtree(replaced, ignore_errors=True)
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()


class TextVAETrainer(WholeCheckpointTrainer):
    """Trainer that also logs the terms of the objective and the perplexity per token, in training and evaluation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.label_names: list[str] = []  # the input is the target: without this, evaluation looks for labels
        self._terms: dict[str, dict[str, Tensor]] = {"": {}, "eval_": {}}
        names = ("kl_annealing", "kl_warmup_steps", "kl_cycles")
        self.add_callback(AnnealingCallback(*(getattr(self.args, name) for name in names if hasattr(self.args, name))))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's loss; its other terms are summed up for the next log."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        rows = len(next(iter(inputs.values())))
        sums = self._terms["" if model.training else "eval_"]
        terms = {name: outputs.get(name) for name in TERMS}
        weight = 1.0 if model.training else float(rows)  # as the Trainer weighs the loss that stands beside them
        # nn.DataParallel gathers scalars into vectors
        batch = {name: value.detach().float().mean() * weight for name, value in terms.items() if value is not None}
        batch["weight"] = loss.new_full((), weight)
        if "num_tokens" in outputs:  # words: the perplexity is theirs
            batch["num_tokens"] = outputs["num_tokens"].float().sum()
            batch["nats"] = outputs["reconstruction_loss"].detach().float().mean() * rows
        for name, value in batch.items():
            sums[name] = sums[name] + value if name in sums else value
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms' means since the last log, over all processes, to what is logged."""
        found = next((name for name in logs if name.endswith("loss") and name != "train_loss"), None)
        prefix = "" if found is None else found.removesuffix("loss")  # that of an evaluation is the caller's choice
        mode = "eval_" if prefix else ""
        if found is not None and self._terms[mode]:
            names, sums = zip(*self._terms[mode].items(), strict=True)
            self._terms[mode] = {}
            total = dict(zip(names, self.accelerator.reduce(torch.stack(sums), "sum").tolist(), strict=True))
            weight, nats, tokens = total.pop("weight"), total.pop("nats", None), total.pop("num_tokens", None)
            logs |= {f"{prefix}{name}": value / weight for name, value in total.items()}
            if tokens is not None:
                logs[f"{prefix}perplexity"] = math.exp(min(nats / tokens, 700.0))
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The Trainer's own; sums up the terms of this data set alone."""
        self._terms["eval_"] = {}
        return super().evaluation_loop(*args, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weights of layers alone: neither a standard deviation nor sentences decay towards 0."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.endswith(("log_std", "pseudo_inputs"))]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # The argument has lost the column `length`, which the model does not read.
        dataset: Any = self.train_dataset
        columns = getattr(dataset, "column_names", None) or []
        if self.args.train_sampling_strategy != "group_by_length" or "length" not in columns:
            return super()._get_train_sampler(train_dataset)
        head = self.accelerator.unwrap_model(self.model).model.latent_head
        batch = self.args.train_batch_size * self.args.world_size
        return LengthGroupedSampler(
            dataset["length"][:],
            batch,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            window=1 if head.needs_even_batches else 8,  # one batch sorted by itself is not grouped
            epoch=lambda: int(self.state.epoch or 0),
        )


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
        remedy = "add --resume_from_checkpoint true to go on, or --overwrite_output_dir to delete it"
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


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of sentences whose most probable class is theirs, for the Trainer's `compute_metrics`."""
    return {"accuracy": float((np.asarray(prediction.predictions).argmax(-1) == prediction.label_ids).mean())}


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
