"""Output of a run for a person: at its start, at every logging step, at its end."""

import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import datasets
import torch
from tqdm.auto import tqdm
from transformers.trainer_utils import has_length
from transformers.utils.logging import disable_progress_bar

LINE_SECONDS = 30.0  # between lines of progress in a log


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


class RowProgress:
    """How many rows are done: a bar where a person watches, elsewhere a line now and then, for a log.

    Args:
        what: is done with them.
        total: rows, where it is known.
        done: rows that are done before.
        shown: whether to show anything.
    """

    def __init__(self, what: str, total: int | None = None, done: int = 0, shown: bool = True) -> None:
        watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.what, self.total, self.before, self.done = what, total, done, done
        self.lines = shown and not watched
        self.bar = tqdm(desc=what, total=total, initial=done, unit=" rows", disable=not shown or not watched)
        self.started = self.told = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self, rows: int) -> None:
        """So many more are done."""
        self.done += rows
        self.bar.update(rows)
        now = time.monotonic()
        if self.lines and now - self.told >= LINE_SECONDS:
            self.told, rate = now, (self.done - self.before) / max(now - self.started, 1e-9)
            left = None if self.total is None else duration((self.total - self.done) / rate)
            speed = f"{self.what}: {self.done:,} rows, {figure(rate)} rows per second"
            say(speed + ("" if left is None else f", about {left} left"))


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


def command_line(script: str, **options: object) -> str:
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
    wanted = model.base_model.latent_head.wanted_active_dims
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
