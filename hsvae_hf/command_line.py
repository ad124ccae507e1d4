"""Command lines of the scripts: grouped help, one line for an error, the nearest name for an unknown one."""

import argparse
import difflib
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from transformers import HfArgumentParser, PreTrainedConfig, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils.chat_template_utils import parse_google_format_docstring

# Options of the Trainer that `--help` shows.
TRAINING_FIRST = (
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "seed",
    "bf16",
)
OUTPUT_FIRST = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "eval_strategy", "save_strategy")
# Help of options whose text in transformers is long, or does not hold here.
HELP = {
    "decoder_type": "What is reconstructed: words (gru), or the vectors of a frozen encoder (vector).",
    "target_active_dims": "Non-zeros per code, on average, that training steers to (hsvae).",
    "num_train_epochs": "Passes over the training rows, instead of max_steps.",
    "max_steps": "Steps to train, instead of num_train_epochs; -1 goes by the epochs.",
    "seed": "Of the weights, the order of the rows and the draws.",
    "bf16": "Compute in bfloat16, on a GPU that can.",
    "resume_from_checkpoint": "Go on: true, from the last checkpoint in output_dir; or the folder of a checkpoint.",
}
_INTERVALS = tuple(str(kind.value) for kind in IntervalStrategy)
CHOICES: dict[str, tuple[str, ...]] = {  # of options that are plain strings to the Trainer
    "eval_strategy": _INTERVALS,
    "logging_strategy": _INTERVALS,
    "save_strategy": tuple(str(kind.value) for kind in SaveStrategy),
    "lr_scheduler_type": tuple(str(kind.value) for kind in SchedulerType),
    "optim": tuple(str(kind.value) for kind in OptimizerNames),
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
}
# Names of the paper and of `compare.py` for a `model_type`. Their case does not matter.
MODEL_NAMES = {"VAE": "gaussian-vae", "Sparsemax": "sparsemax-ae", "Simple": "text-encoder"}

_KINDS: dict[Any, str] = {int: "a whole number", float: "a number"}
_PLACEHOLDERS: dict[Any, str] = {int: "N", float: "X", Path: "PATH"}
_HELP_ALL = ("--help-all", "--help_all")
_NEGATIVE = re.compile(r"-[\d.]+([eE][+-]?\d+)?")  # a number, no option
_SHOWN_CHOICES, _MOST_NAMES = 7, 15  # of longer lists help shows none, and errors the nearest
_NOT_CONFIGURABLE = {"classifier_hidden_size", "freeze_encoder", "num_samples", "is_encoder_decoder"}
# These follow from --encoder_name_or_path, or from what that encoder says of itself.
_NOT_CONFIGURABLE |= {"encoder_type", "encoder_config", "pooling", "normalize_vectors", "prompts"}
_NOT_CONFIGURABLE |= {"default_prompt_name", "vector_size", "tokenizer_checksum", "use_cache"}


@dataclass(kw_only=True)
class DatasetArguments:
    """Options of a script that reads a data set. The dataclass of the script inherits them."""

    dataset: str | None = field(
        default=None, metadata={"help": "docstrings, yelp, dbpedia, yahoo, a Hub id, or a local folder or file."}
    )
    dataset_config_name: str | None = field(
        default=None,
        metadata={"aliases": ["--dataset_config"], "help": "Configuration of a data set that has several."},
    )
    text_column: str | None = field(default=None, metadata={"help": "Column of the sentences, if not found by name."})
    max_samples: int | None = field(default=None, metadata={"help": "Rows of every split but the training split."})

    def dataset_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_text_dataset`: those of its parameters that are options of the script.

        >>> LabelledDatasetArguments(dataset="docstrings", label_column="label").dataset_options()["label_column"]
        'label'
        """
        names = ("dataset", "dataset_config_name", "text_column", "label_column", "max_train_samples", "max_samples")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}


@dataclass(kw_only=True)
class LabelledDatasetArguments(DatasetArguments):
    """The same for a script that uses classes."""

    label_column: str | None = field(default=None, metadata={"help": "Column of the classes, if not found by name."})


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that `word` was most likely meant to be: one that has it as a part or as initials, or that is alike.

    >>> nearest("lr", ["latent_size", "learning_rate"])
    'learning_rate'
    """
    known = {name.casefold(): name for name in names}
    lower = word.casefold()
    close = difflib.get_close_matches(lower, known, n=1, cutoff=0.6)
    parts = [name for name in known if f"_{lower}_" in f"_{name}_"]
    initials = [name for name in known if len(lower) > 1 and "".join(part[:1] for part in name.split("_")) == lower]
    best = next(iter([*(parts if "_" in lower else []), *close, *initials, *parts]), None)
    return None if best is None else known[best]


def choose(
    argument: str, value: str, names: Iterable[str], other: Mapping[str, str] | None = None, rule: str = "one of"
) -> str:
    """The one of `names` that `value` says, in whatever case.

    Args:
        argument: that it was given for.
        value: what was given.
        names: to choose from.
        other: further names, and which of `names` they mean.
        rule: what goes before the names in the error.

    Raises:
        ValueError: if there is none, with the nearest.
    """
    names = list(names)
    known = {name.casefold(): meant for name, meant in (other or {}).items()} | {
        name.casefold(): name for name in names
    }
    if value.casefold() in known:
        return known[value.casefold()]
    close = nearest(value, known)
    remedy = "name one of them" if close is None else f"did you mean {known[close]}?"
    shown = names if len(names) <= _MOST_NAMES else [*difflib.get_close_matches(value, names, 3, 0), "..."]
    raise ValueError(f"`{argument}` must be {rule} {', '.join(shown)}, got {value!r}; {remedy}.".replace("?.", "?"))


class ScriptParser(HfArgumentParser):
    """HfArgumentParser whose `--help` shows what people need first, and whose errors are one line.

    What is wrong with the command line is a `ValueError`, as all other bad input; see `hsvae_hf.cli.run`.

    Args:
        kinds: dataclasses of options, by the heading of their section in `--help-all`.
        first: names of the options to show under `--help`, by heading; all of them without it.
        elsewhere: says of the name of an unknown option where there is one of this name, or nothing.
        options: of `argparse.ArgumentParser`.
    """

    def __init__(
        self,
        kinds: Mapping[str, type] | None = None,
        first: Mapping[str, Sequence[str]] | None = None,
        elsewhere: Callable[[str], str | None] = lambda name: None,
        **options: object,
    ) -> None:
        self.kinds, self.first, self.elsewhere = dict(kinds or {}), first, elsewhere
        self.everything = False  # whether help shows all options
        super().__init__(cast(Any, tuple(self.kinds.values())), allow_abbrev=False, add_help=False, **options)
        for action in self._actions:
            self._plain(action)
        if self.kinds:
            text = "Show the options that are needed first." if first else "Show this text."
            self.add_argument("-h", "--help", action="help", help=text)
            self.add_argument(*_HELP_ALL, action="help", help="Show all options.")

    def _plain(self, action: argparse.Action) -> None:
        """Give an option its short text, its placeholder, and a reader with errors that a person understands."""
        action.help = HELP.get(action.dest, action.help)
        names = tuple(map(str, CHOICES.get(action.dest, action.choices or ())))
        if action.nargs == 0:
            return
        kind, switch = action.type, action.nargs == "?"
        if names:
            action.metavar = f"{{{','.join(names)}}}" if len(names) <= _SHOWN_CHOICES else "NAME"
        elif not switch:
            action.metavar = _PLACEHOLDERS.get(kind, "NAME" if action.dest.endswith("column") else "TEXT")
        action.choices = None
        action.type = lambda word: _read(action.dest, word, kind, names)

    def error(self, message: str) -> NoReturn:
        """Raise the error of argparse as a `ValueError` in the words of the package."""
        if message.startswith("argument "):  # argument --a_b/--a-b: ...
            name, _, rule = message.removeprefix("argument ").partition(": ")
            rule = "must be followed by a value, got none" if rule.startswith("expected") else rule
            message = rule if rule.startswith("`") else f"`{name.split('/')[0].lstrip('-')}` {rule}"
        elif ": " in message and message.startswith("the following"):
            names = [f"`{name.split('/')[0].lstrip('-')}`" for name in message.partition(": ")[2].split(", ")]
            message = f"{' and '.join(filter(None, (', '.join(names[:-1]), names[-1])))} must be given, got nothing"
        raise ValueError(f"{message}; --help explains it." if not message.endswith(("?", ".")) else message)

    def parse(self, words: Sequence[str] | None = None) -> tuple[Any, ...]:
        """The command line as instances of the dataclasses.

        Args:
            words: without the script's name; those that it was called with, by default.

        Raises:
            ValueError: for an unknown option, a value that is none, or a required option that is missing.
        """
        words = sys.argv[1:] if words is None else list(words)
        self.everything = not set(_HELP_ALL).isdisjoint(words)
        for word in words:
            self._check_known(word)
        *parsed, left = self.parse_args_into_dataclasses(words, return_remaining_strings=True, look_for_args_file=False)
        if left:
            raise ValueError(
                f"`{self.prog}` takes options with their values, got {left[0]!r} that belongs to none; put the option "
                "before it, and what has spaces into quotation marks."
            )
        return tuple(parsed)

    def _check_known(self, word: str) -> None:
        written = word.partition("=")[0]
        name = written.lstrip("-").replace("-", "_")
        if not written.startswith("-") or not name or " " in word or _NEGATIVE.fullmatch(word):
            return
        if written in self._option_string_actions:
            return
        known = [*(name for names in (self.first or {}).values() for name in names)]
        known += [action.dest for action in self._actions if action.dest not in known and action.option_strings]
        other, close = self.elsewhere(name), nearest(name, known)
        remedy = f"it is an option of {other}" if other is not None else f"did you mean `--{close}`?"
        remedy = "`--help-all` lists all" if other is None and close is None else remedy
        raise ValueError(f"`{written}` is no option of {self.prog}; {remedy}.".replace("?.", "?"))

    def knows(self, name: str) -> bool:
        """Whether there is such an option."""
        return any(action.dest == name for action in self._actions)

    def format_help(self) -> str:
        """The options by section; without `--help-all` those that are needed first."""
        formatter = _Formatter(self.prog, max_help_position=34)
        formatter.add_usage(f"{self.prog} [options]", [], [])
        formatter.add_text(self.description)
        actions = {action.dest: action for action in reversed(self._actions) if action.nargs != 0}
        shown: set[str] = set()
        for title, names in (self.first or {}).items():
            self._section(formatter, title, [actions[name] for name in names if name in actions])
            shown |= set(names)
        for title, kind in self.kinds.items() if self.everything or self.first is None else ():
            rest = [item.name for item in fields(kind) if item.name in actions and item.name not in shown]
            self._section(formatter, f"{title}, the rest" if shown else title, [actions[name] for name in rest])
        if self.first is not None and not self.everything and len(shown) < len(actions):
            formatter.add_text(f"`{self.prog} --help-all` shows all {len(actions)} options.")
        formatter.add_text(self.epilog)
        return formatter.format_help()

    @staticmethod
    def _section(formatter: argparse.HelpFormatter, title: str, actions: list[argparse.Action]) -> None:
        formatter.start_section(title)
        formatter.add_arguments(actions)
        formatter.end_section()


class _Formatter(argparse.HelpFormatter):
    """Texts in paragraphs; an option by one of its spellings, its text, and its default where that says something."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs; one whose lines are indented, such as commands to copy, stays as it is."""
        parts = [part.strip("\n") for part in re.split(r"\n\s*\n", text.strip())]
        kept = [
            part if part.startswith(" ") else super(_Formatter, self)._fill_text(part, width, indent) for part in parts
        ]
        return "\n\n".join(kept)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        name = action.option_strings[0]
        if action.nargs == "?" or action.metavar is None:
            return name
        return f"{name} {action.metavar}{' ...' if action.nargs in ('+', '*') else ''}"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = " ".join((action.help or "").split())
        if action.default in (None, False, "", argparse.SUPPRESS) or isinstance(action.default, dict | list):
            return text
        default = str(getattr(action.default, "value", action.default))
        default = default.lower() if isinstance(action.default, bool) else default
        return f"{text.rstrip('.')}. Default: {default}."


def _read(argument: str, word: str, kind: Any, names: tuple[str, ...]) -> Any:
    """The value that a word of the command line says, for `argparse`."""
    try:
        if names:
            word = choose(argument, word, names)
        return word if kind is None else kind(word)
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        if names:
            raise argparse.ArgumentTypeError(str(error)) from None
        rule = _KINDS.get(kind, "true or false" if "bool" in getattr(kind, "__name__", "") else str(error))
        raise argparse.ArgumentTypeError(f"`{argument}` must be {rule}, got {word!r}") from None


def parse(
    kind: type,
    description: str | None = None,
    words: Sequence[str] | None = None,
    sections: Mapping[str, Sequence[str]] | None = None,
    action: str | None = None,
) -> Any:
    """The command line of a script with one dataclass of options.

    Args:
        kind: the dataclass.
        description: what the script does; paragraphs, those that are indented as they are.
        words: without the script's name; those that it was called with, by default.
        sections: names of the options, by the heading under which help shows them; None for one heading.
        action: of the script, which goes before the options.

    Raises:
        ValueError: as `ScriptParser.parse`.
    """
    prog = " ".join(filter(None, [Path(sys.argv[0]).name, action]))
    return ScriptParser({"options": kind}, sections, description=description, prog=prog).parse(words)[0]


def config_arguments(config_class: type[PreTrainedConfig]) -> type:
    """A dataclass of flags: the configuration's own fields, each with its text in the docstring as help."""
    texts: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        if issubclass(base, PreTrainedConfig):
            texts |= parse_google_format_docstring(base.__doc__ or "")[1] or {}
    shared = {item.name for kind in (PreTrainedConfig, TrainingArguments) for item in fields(kind)} | _NOT_CONFIGURABLE
    flags: list[tuple[str, Any, Any]] = []
    for item in fields(config_class):
        if item.name in shared or item.name.endswith("_token_id") or item.default is MISSING:
            continue
        kind = {float | int: float, float | int | None: float | None}.get(item.type, item.type)
        simple = kind in (int, float, str, bool) or typing.get_origin(kind) in (typing.Literal, types.UnionType)
        if simple:
            text = texts.get(item.name, item.name).replace("%", "%%")
            flags.append((item.name, kind, field(default=item.default, metadata={"help": text[:1].upper() + text[1:]})))
    return make_dataclass("ConfigArguments", flags)
