"""Systems of a comparison: what each row of its table trains.

A system is named, and its name may hold changes: `HSVAE prior_alpha=1 prior_beta=4` has another prior,
`HSVAE learning_rate=0.01` another rate.
"""

import json
from dataclasses import dataclass, field, fields, replace
from typing import Any

from transformers import PreTrainedConfig

import hsvae_hf
from hsvae_hf.command_line import MODEL_NAMES, choose

# The released settings with an estimator of less noise. All systems drop the same share of the words.
PAPER = hsvae_hf.RELEASED | {"kl_estimator": "rao_blackwell"}
del PAPER["word_dropout"]
# Training settings that a system may change.
TRAINING: dict[str, type] = {
    "learning_rate": float,
    "weight_decay": float,
    "max_steps": int,
    "kl_warmup_steps": int,
    "lr_scheduler_type": str,
    "kl_annealing": str,
}
# Fields of a configuration that the comparison sets.
SET_BY_COMPARISON = {"model_type", "vocab_size", "num_labels", "num_samples", "encoder_type", "encoder_config"}
SET_BY_COMPARISON |= {"decoder_type", "freeze_encoder", "freeze_text_encoder"}


@dataclass(frozen=True)
class System:
    """What one row of a comparison trains.

    Attributes:
        name: in tables and in the file names of runs, with its changes.
        model_type: a key of `hsvae_hf.MODELS`.
        fields: of the configuration; the comparison sets the sizes.
        training: settings that differ from the comparison's.
        pretrained: whether it stands on a pretrained text encoder.
        classifier: whether it trains with labels and without a decoder.
    """

    name: str
    model_type: str
    fields: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    classifier: bool = False


# All KL terms weigh 0.01, as HSVAE's.
SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System("HSVAE", "hsvae", PAPER),
        System("HSVAE-balanced", "hsvae"),
        System("VAE", "gaussian-vae"),
        System("VAE_L1", "gaussian-vae", {"penalty_norm": 1, "penalty_weight": 0.01}),
        System("VAE_L2", "gaussian-vae", {"penalty_norm": 2, "penalty_weight": 0.01}),
        System("MAT-VAE", "mat-vae"),
        System("VSC", "vsc"),
        System("SDLGM", "sdlgm"),
        System("Sparsemax", "sparsemax-ae"),
        System("Simple", "text-encoder", classifier=True),
        System("B-HSVAE", "hsvae", PAPER, pretrained=True),
        System("B-HSVAE-balanced", "hsvae", pretrained=True),
        System("B-VAE", "gaussian-vae", pretrained=True),
        System("B-MAT-VAE", "mat-vae", pretrained=True),
        System("BERT", "text-encoder", pretrained=True, classifier=True),
    )
}


def find_system(text: str) -> System:
    """The system that a name says, in any spelling: a key of `SYSTEMS` or a model type, and changes after it.

    Raises:
        ValueError: if there is no such system or field, or a training setting has a value of another type.
    """
    word, *changes = text.split() or [text]
    model_types = {model_type: name for name, model_type in reversed(MODEL_NAMES.items())}
    system = SYSTEMS[choose("models", word, SYSTEMS, model_types, "of")]
    configuration, training = dict(system.fields), dict(system.training)
    for change in changes:
        name, _, value = change.partition("=")
        if value and name in TRAINING and not (system.classifier and name.startswith("kl_")):
            training[name] = _training_setting(name, value)
        elif value and name in _changeable_fields(system.model_type):
            configuration[name] = _parse(value)
        else:
            raise ValueError(
                f"`models` must give fields of {system.model_type} as name=value, got {change!r} in {text!r}; name one."
            )
    return replace(system, name=" ".join([system.name, *changes]), fields=configuration, training=training)


def _changeable_fields(model_type: str) -> set[str]:
    shared = {item.name for item in fields(PreTrainedConfig)} | SET_BY_COMPARISON
    names = {item.name for item in fields(hsvae_hf.MODELS[model_type].config)} - shared
    return {name for name in names if not name.endswith("_token_id")}


def _training_setting(name: str, value: str) -> Any:
    kind = TRAINING[name]
    try:
        return kind(value)
    except ValueError as error:
        raise ValueError(f"`models` must give {name} as {kind.__name__}, got {value!r}; correct it.") from error


def _parse(value: str) -> Any:
    """A number, `true`, `false` or `null`; any other word is itself."""
    try:
        return json.loads(value)
    except ValueError:
        return value
