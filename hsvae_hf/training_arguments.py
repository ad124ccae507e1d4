"""Arguments of a training run: the paper's settings, and checks that refuse at once what fails or harms later."""

import copy
import math
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub import HfApi
from transformers import SchedulerType, Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations, is_tensorboard_available
from transformers.utils import is_torch_xla_available

from hsvae_hf.command_line import CHOICES, choose
from hsvae_hf.models.sources import HTTP_ERROR

TERMS = (
    "reconstruction_loss",
    "z_kl",
    "gamma_kl",
    "penalty",
    "similarity",
    "code_reconstruction",
    "revival",
    "squared_error",
)  # of the objective


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
    report_to: str = field(
        default_factory=lambda: "tensorboard" if is_tensorboard_available() else "none",
        metadata={"help": "Where to log: tensorboard where it is installed, else none."},
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave NaN and infinity out of the log."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete what is in output_dir."})
    measured: ClassVar[tuple[str, ...]] = ("loss", "accuracy")  # in evaluation, for `metric_for_best_model`

    def __post_init__(self) -> None:
        """Refuse what would train nothing, or fails at the first step or checkpoint, before anything is read."""
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
        check_annealing(self.kl_annealing, self.kl_warmup_steps, self.kl_cycles)
        if self.label_smoothing_factor != 0:
            raise ValueError(
                f"`label_smoothing_factor` must be 0 without classes, got {self.label_smoothing_factor}; leave it out."
            )
        super().__post_init__()


_TIMES = ("runtime", "samples_per_second", "steps_per_second")  # that every evaluation reports, and nobody wants
_LEAST, _MOST = sys.float_info.min, sys.float_info.max
_RANGES: dict[str, tuple[float, float, str]] = {
    "weight_decay": (0, _MOST, "at least 0 and finite"),
    "max_grad_norm": (0, _MOST, "at least 0 (off) and finite"),
    "label_smoothing_factor": (0, 1, "from 0 to 1"),
    "save_steps": (_LEAST, _MOST, "above 0 and finite"),
    "eval_steps": (_LEAST, _MOST, "above 0 and finite"),
}


def check_annealing(kind: str, warmup_steps: int | None, cycles: int) -> None:
    """Refuse an annealing of the KL that does not exist.

    Raises:
        ValueError: naming the argument.
    """
    for name, value in (("kl_warmup_steps", warmup_steps), ("kl_cycles", cycles)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}; leave it out.")
    if kind not in ("none", "linear", "cyclical"):
        raise ValueError(f"`kl_annealing` must be none, linear or cyclical, got {kind!r}; name one of them.")
    if warmup_steps is not None and kind != "linear":
        raise ValueError(f"`kl_warmup_steps` must be left out unless `kl_annealing` is linear, got it with {kind!r}.")


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
