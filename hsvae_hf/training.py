"""Trainer with the paper's settings: logs every loss term, saves whole checkpoints or none, anneals the KL."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.files import staged_folder
from hsvae_hf.training_arguments import RunArguments

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


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
