"""Training options that cannot work are refused before the data is read, not hours later at the first checkpoint."""

import copy
import sys
from typing import Any

import torch
from huggingface_hub import HfApi
from transformers import SchedulerType, Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from hsvae_hf.arguments import CHOICES, choose
from hsvae_hf.sources import HTTP_ERROR

_TIMES = ("runtime", "samples_per_second", "steps_per_second")  # that every evaluation reports, and nobody wants
_LEAST, _MOST = sys.float_info.min, sys.float_info.max
_RANGES: dict[str, tuple[float, float, str]] = {
    "weight_decay": (0, _MOST, "at least 0 and finite"),
    "max_grad_norm": (0, _MOST, "at least 0 (off) and finite"),
    "label_smoothing_factor": (0, 1, "from 0 to 1"),
    "save_steps": (_LEAST, _MOST, "above 0 and finite"),
    "eval_steps": (_LEAST, _MOST, "above 0 and finite"),
}


def check_choices(arguments: TrainingArguments) -> None:
    """Refuse names that there are not, and packages that are not installed.

    Raises:
        ValueError: if there are any.
    """
    for name, names in CHOICES.items():
        value = getattr(arguments, name)
        choose(name, str(getattr(value, "value", value)), names)
    named = arguments.report_to if isinstance(arguments.report_to, list) else [str(arguments.report_to)]
    found = get_available_reporting_integrations()
    missing = [name for name in named if name not in ("all", "none", "None", *found)]
    if missing:
        remedy = "pip install 'hsvae_hf[train]'" if missing[0] == "tensorboard" else "install its package"
        raise ValueError(
            f"`report_to` must be one of {', '.join([*found, 'none'])}, which this machine has, got {missing[0]!r}; "
            f"{remedy}, or add --report_to none."
        )
    if arguments.fp16 and not torch.accelerator.is_available():
        raise ValueError("`fp16` must be off without a GPU, got on; use `bf16`.")


def check_ranges(arguments: TrainingArguments) -> None:
    """Refuse numbers that would do nothing, or harm, in silence.

    Raises:
        ValueError: if there are any.
    """
    for name, (low, high, rule) in _RANGES.items():
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:  # NaN is in no range
            raise ValueError(f"`{name}` must be {rule}, got {value}; leave it out for its default.")


def check_warmup(arguments: TrainingArguments) -> None:
    """Refuse a warm-up of the learning rate that is ignored, or never ends.

    Raises:
        ValueError: if it is one.
    """
    kind, steps, most = SchedulerType(arguments.lr_scheduler_type), arguments.warmup_steps, arguments.max_steps
    if steps > 0 and kind == SchedulerType.CONSTANT:
        raise ValueError(
            f"`warmup_steps` must be left out with a constant learning rate, which ignores it, got {steps:g}; add "
            "--lr_scheduler_type constant_with_warmup."
        )
    if 0 < most <= steps:
        raise ValueError(f"`warmup_steps` must be below `max_steps`, got {steps:g} and {most}; lower it.")


def check_best_metric(arguments: TrainingArguments, metrics: tuple[str, ...]) -> None:
    """Refuse to choose the best model by what is not measured; say which end of a metric is the good one.

    Args:
        arguments: of the run.
        metrics: what evaluation measures, without its prefix. All but accuracies are better when lower.

    Raises:
        ValueError: if `metric_for_best_model` is none of them.
    """
    named = arguments.metric_for_best_model
    if named is None:
        return
    if named.removeprefix("eval_") not in (*metrics, *_TIMES):
        raise ValueError(
            f"`metric_for_best_model` must be measured in evaluation, got {named!r}; name one of {', '.join(metrics)}."
        )
    if arguments.greater_is_better is None:  # the library knows of losses only that less is better
        arguments.greater_is_better = named.endswith(("accuracy", "per_second"))


def check_push(arguments: TrainingArguments) -> None:
    """Ask the Hub who pushes, where `push_to_hub` is set.

    Raises:
        ValueError: if it does not answer, or knows no such user.
    """
    if not arguments.push_to_hub:
        return
    try:
        HfApi().whoami(token=arguments.hub_token)
    except (HTTP_ERROR, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(
            f"`push_to_hub` must be off unless the Hub answers and knows you, got True: {reason}; log "
            "in with `hf auth login` and check the network, or push the finished run with scripts/push_to_hub.py."
        ) from error


def rehearse(arguments: TrainingArguments) -> None:
    """Set a Trainer up for a model of one weight, so that what it refuses is known before the data is read.

    Raises:
        ValueError: in one line, for whatever it refuses.
    """
    tried: Any = copy.copy(arguments)
    tried.push_to_hub, tried.label_smoothing_factor = False, 0.0
    named = "training options"
    try:
        trainer = Trainer(torch.nn.Linear(1, 1), tried, train_dataset=[{}], eval_dataset=[{}])
        named = "optim"
        optimizer = trainer.create_optimizer()
        named = "lr_scheduler_type"
        trainer.create_scheduler(max(arguments.max_steps, 1), optimizer)
    except Exception as error:  # the packages behind these options raise what they like
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        value = getattr(arguments, named, "some")
        raise ValueError(
            f"`{named}` must work together and on this machine, got {getattr(value, 'value', value)}, which did not: "
            f"{reason}; change it."
        ) from error
