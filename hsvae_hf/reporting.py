"""Output of a run for a person: at its start, at every logging step, at its end."""

import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import has_length
from transformers.training_args import TrainingArguments
from transformers.utils.logging import disable_progress_bar

ESTIMATE_STEPS, ESTIMATE_SECONDS, LEAST_SECONDS = 10, 20.0, 3.0  # after which the time left is said
LONG_RUN = 1800.0  # seconds left, from which on the remedy is said
LABELS = {
    "reconstruction_loss": "reconstruction",
    "z_kl": "KL of values",
    "gamma_kl": "KL of gates",
    "squared_error": "squared error",
    "active_dims": "dimensions on",
    "active_units": "varying",
    "dead_dims": "never on",
    "always_on_dims": "always on",
    "mutual_information": "mutual information",
    "neighbours_kept": "neighbours kept",
}
NOT_SHOWN = ("epoch", "runtime", "per_second", "grad_norm", "learning_rate", "flos", "hoyer", "gate_std", "fraction")


class _Warnings(logging.Handler):
    """Warnings of this package, a line each, past a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        tqdm.write(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def prepare_output() -> None:
    """Leave out what the libraries print that is no information, and let this package's warnings stand in lines.

    That is, bars where nobody watches, and the bars of every save.
    """
    disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    logger = logging.getLogger("hsvae_hf")
    if not logger.handlers:
        logger.addHandler(_Warnings())


def figure(value: float, digits: int = 3) -> str:
    """A number with so many significant digits; whole numbers, and what is before the point, in full.

    >>> [figure(value) for value in (0.94401, 12345.678, 7)]
    ['0.944', '12,346', '7']
    """
    if math.isfinite(value) and value == int(value):
        return f"{int(value):,}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}" if abs(value) >= 1e-3 else f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(9000)
    '2.5 hours'
    """
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 1.5 * size:
            number = f"{seconds / size:.1f}".removesuffix(".0") if unit != "minute" else f"{seconds / size:.0f}"
            return f"{number} {unit}s"
    return f"{max(1, round(seconds))} second{'' if round(seconds) <= 1 else 's'}"


def size_of(path: str | Path) -> str:
    """The size of a file."""
    size = float(Path(path).stat().st_size)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{figure(size) if unit != 'bytes' else int(size)} {unit}"
        size /= 1000
    return f"{figure(size)} GB"


def say(*lines: str | None) -> None:
    """Print lines, past a progress bar, and at once where the output goes to a file; None is left out.

    Of several processes the first alone does.
    """
    if os.environ.get("RANK", "0") == "0":
        tqdm.write("\n".join(filter(None, lines)))
        sys.stdout.flush()


def finish(result: str, figures: Mapping[str, float | str | None], *commands: str) -> None:
    """Say where the result is, what came out, and what to type next.

    Args:
        result: where it is.
        figures: by name, the few that count; those that are None are left out.
        commands: to copy; see `command_line`.
    """
    shown = [
        f"{name} {value if isinstance(value, str) else figure(value)}"
        for name, value in figures.items()
        if value is not None
    ]
    lines = [f"\n{result}", *([f"  {', '.join(shown)}"] if shown else [])]
    say(*lines, *(["next:"] if commands else []), *(f"  {command}" for command in commands))


def data_facts(splits: Any, labels: bool = True) -> list[str]:
    """What was read: the columns that were chosen, and the rows of every split.

    Args:
        splits: of `load_text_dataset`.
        labels: whether the run would use classes.
    """
    summary = getattr(splits, "summary", None)
    if summary is None:
        return ["rows: " + ", ".join(f"{name} {len(split):,}" for name, split in splits.items() if has_length(split))]
    facts = [f"data: {summary.dataset}, text from `{summary.text_column}`"]
    if labels and summary.label_column is not None:
        facts[0] += f", labels from `{summary.label_column}` ({len(summary.classes)} classes)"
    elif labels:
        facts.append(f"no labels: --label_column names them, of the columns {', '.join(summary.columns)}")
    rows = ", ".join(f"{name} {count:,}" for name, count in summary.rows.items())
    held_out = ", validation held out of train" if summary.held_out else ""
    return facts + ([f"rows: {rows}{held_out}"] if rows else [])


def command_line(script: str, **options: Any) -> str:
    """A command to copy: a script beside the one that runs, with those of the options that are given."""
    words = ["python", str(Path(sys.argv[0]).with_name(script))]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return shlex.join(words)


def model_facts(model: Any) -> str:
    """A model in a line: its type and sizes."""
    config = model.config
    parts = [f"model: {config.model_type}, {config.latent_size:,} dimensions"]
    wanted = getattr(config, "wanted_active_dims", None)
    if wanted is not None:
        parts.append(f"{figure(float(wanted))} on per sentence wanted")
    if config.decodes_words:
        reader = "GRU" if config.encoder_config is None else f"{config.encoder_config.model_type}, GRU decoder"
        parts.append(f"{reader} of {config.hidden_size:,}, {config.vocab_size:,} words")
    else:
        parts.append(f"vectors of {config.feature_size:,} numbers")
    learnt = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in model.parameters()) - learnt
    return ", ".join(parts) + f"; {_count(learnt)} parameters" + (f", {_count(frozen)} more frozen" if frozen else "")


def _count(number: int) -> str:
    return f"{figure(number / 1e6)} million" if number >= 1e6 else f"{number:,}"


def device_name(device: str | torch.device) -> str:
    """Where a run computes."""
    kind = torch.device(device).type
    if kind == "cpu":
        return f"the CPU ({torch.get_num_threads()} of {os.cpu_count()} cores)"
    return torch.cuda.get_device_name(device) if kind == "cuda" else kind


def report_steps(trainer: Trainer, remedy: str | None = None) -> None:
    """Let a trainer report by `ReportCallback`, in place of what transformers prints.

    Args:
        trainer: a trainer of any kind.
        remedy: advice for a run with hours left on a CPU.
    """
    usual = [trainer.pop_callback(kind) for kind in (PrinterCallback, ProgressCallback, ReportCallback)]
    if any(callback is not None for callback in usual):  # in a notebook there is a table, which stays
        trainer.add_callback(ReportCallback(remedy))
        if sys.stderr.isatty() and not trainer.args.disable_tqdm:
            trainer.add_callback(_Bars())


class ReportCallback(TrainerCallback):
    """Says how long training is, soon how much time is left, and every log in one line.

    Args:
        remedy: what to do where much time is left on a CPU.
    """

    def __init__(self, remedy: str | None = None) -> None:
        self.remedy = remedy
        self.training = False
        self._start: tuple[int, float] | None = None  # step and time that the estimate counts from
        self._estimated = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say the number of steps and the device."""
        self.training, self._start, self._estimated = state.is_world_process_zero, None, False
        if not self.training:
            return
        batches, parts = kwargs.get("train_dataloader"), []
        if has_length(batches):
            epochs = state.max_steps * args.gradient_accumulation_steps / max(1, len(batches))
            parts.append(f"{figure(epochs)} epochs")
        if state.global_step:
            parts.append(f"from step {state.global_step:,} on")
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = f"{state.max_steps:,} steps of {rows:,} rows" + (f" ({', '.join(parts)})" if parts else "")
        say(f"training: {steps}, on {device_name(args.device)}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say once how much time is left, by the steps after the first, which is slower."""
        if not self.training:
            return
        now = time.monotonic()
        if self._start is None:
            self._start = state.global_step, now
        steps, seconds = state.global_step - self._start[0], now - self._start[1]
        known = seconds >= ESTIMATE_SECONDS or (steps >= ESTIMATE_STEPS and seconds >= LEAST_SECONDS)
        if self._estimated or not known or steps == 0:
            return
        self._estimated = True
        left = (state.max_steps - state.global_step) * seconds / steps
        slow = self.remedy is not None and left >= LONG_RUN and torch.device(args.device).type == "cpu"
        say(f"about {duration(left)} left" + (f"; {self.remedy}" if slow else ""))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print one line, while training."""
        if not self.training or not logs:
            return
        if "train_runtime" in logs:
            say(f"trained for {duration(logs['train_runtime'])}")
            return
        held_out = any(name.startswith("eval_") for name in logs)
        group = "train" if not held_out else ("held out" if "eval_loss" in logs else "codes")
        named = {name.removeprefix("eval_"): value for name, value in logs.items()}
        kept = {name: value for name, value in named.items() if not any(part in name for part in NOT_SHOWN)}
        shown = [
            f"{LABELS.get(name, name.replace('_', ' '))} {value if isinstance(value, str) else figure(value, 4)}"
            for name, value in kept.items()
        ]
        width = len(f"{state.max_steps:,}")
        say(f"step {state.global_step:>{width},}/{state.max_steps:,}  {group:<8}  {', '.join(shown)}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say no more: what is logged later is the caller's to print."""
        self.training = False


class _Bars(ProgressCallback):
    """The bars of transformers, without its lines."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Print nothing."""
