"""One report of a trained model: loss terms, sparsity, gates, collapse, and what linear probes read from the codes."""

import logging
import math
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.batching import input_batches
from hsvae_hf.data import labelled
from hsvae_hf.embedding_cache import embed_dataset
from hsvae_hf.explanation import describe_dimensions
from hsvae_hf.extras import require
from hsvae_hf.probes import probe_accuracy, representations, tfidf_accuracy
from hsvae_hf.reporting import figure, say
from hsvae_hf.statistics import corpus_statistics

logger = logging.getLogger(__name__)
REPORTED = {  # what `print_report` shows, by people's names
    "rows": "rows",
    "reconstruction_loss": "reconstruction, nats per row",
    "perplexity": "perplexity per word",
    "z_kl": "KL of values, nats",
    "gamma_kl": "KL of gates, nats",
    "squared_error_code": "squared error of the code",
    "neighbours_kept": "nearest neighbours kept",
    "active_dims": "non-zeros per code",
    "empty_rows": "share of empty codes",
    "active_units": "dimensions that vary",
    "dead_dims": "dimensions never on",
    "always_on_dims": "dimensions always on",
    "switching_fraction": "share of dimensions that switch",
    "mutual_information": "mutual information, nats",
}
PROBES = {
    "code": "from the code",
    "gate": "from the gates alone",
    "slab_mean": "from the slab's mean",
    "posterior_mean": "from the posterior's mean",
    "samples": "from draws",
    "dense": "from the vectors",
    "tfidf": "from TF-IDF",
    "majority": "of the largest class",
}


def advice(statistics: dict[str, Any], config: Any) -> str | None:
    """One sentence on what is wrong with a latent and what to try, from `corpus_statistics`; None if nothing is.

    Args:
        statistics: of the model.
        config: of the model; what it does not have, or has set already, is not advised.
    """
    if statistics["active_units"] == 0 or statistics.get("mutual_information", 1.0) < 0.1:
        lower = [name for name in ("z_kl_weight", "gamma_kl_weight") if getattr(config, name, 0) > 0]
        remedies = [f"lower {' and '.join(lower)}, warm the KL up by --kl_annealing linear"] if lower else []
        if config.decodes_words:
            remedies.append("raise word_dropout")
        return (
            "The code ignores the sentence (posterior collapse): train longer if it has just begun"
            f"{'; else ' + ', or '.join(remedies) if remedies else ''}."
        )
    return _gate_advice(statistics, config) if "gate_std" in statistics else None


def _gate_advice(statistics: dict[str, Any], config: Any) -> str | None:
    """`advice` on gates, relative to the number of dimensions that codes have, or are to have."""
    size = len(statistics.get("kl_per_dimension", ())) or config.latent_size
    active, always = statistics["active_dims"], statistics["always_on_dims"]
    target = getattr(config, "target_active_dims", None)
    if active < min(1.0, target or 1.0) / 2:
        settable = hasattr(config, "target_active_dims") and target is None
        return f"Codes are empty: {'set target_active_dims, or ' if settable else ''}lower gamma_kl_weight."
    # Where fewer than 5% switch, at most 10% of the dimensions are on for some of the sentences: the rest of a code is
    # the same in all. Sparser codes have no dimension that is on for 5% of the sentences, and need none.
    constant = max(always, active - 0.1 * size)
    if statistics["switching_fraction"] < 0.05 and constant > active / 2:
        return f"Gates hardly follow the sentence, the same dimensions are on for all: {_balance(config)}train longer."
    uses = statistics.get("rows", math.inf) * active / size  # of a dimension, if all were used alike
    if statistics["dead_dims"] > size / 2 and uses >= 10:
        remedy = "lower latent_size or gamma_kl_weight" if config.gamma_kl_weight > 0 else "lower latent_size"
        return f"{statistics['dead_dims']} of {size} dimensions are never on: {remedy}."
    if always > size / 2:
        remedies = [_balance(config).removesuffix(", or ")] if _balance(config) else []
        if hasattr(config, "target_active_dims"):
            remedies.append("set target_active_dims" if target is None else "lower target_active_dims")
        return f"{always} of {size} dimensions are always on: {', and '.join(remedies) or 'raise latent_size'}."
    return None


def _probe_rows(train: Dataset | None, test: Dataset) -> tuple[Dataset, Dataset] | None:
    """The rows with a class to learn from and to judge by; None, and a warning, if there are too few."""
    if train is None or not {"label"} <= {*train.column_names} & {*test.column_names}:
        return None
    rows, judged = labelled(train), labelled(test)
    if rows is None or judged is None:
        logger.warning("accuracies are left out: no row of %s has a class", "train" if rows is None else "test")
        return None
    if len(rows.unique("label")) < 2:
        logger.warning("accuracies are left out: the rows to learn from have one class alone")
        return None
    _check_words("train", rows)
    return rows, judged


def _check_words(name: str, split: Dataset | None) -> None:
    if split is not None and "text" in split.column_names and not any(text.strip() for text in split["text"]):
        raise ValueError(f"`{name}` must hold at least one word, got {len(split)} blank texts; check the text column.")


def _balance(config: Any) -> str:
    """How gates are made to follow the sentence, as far as that is not set."""
    if not hasattr(config, "gate_balance_weight"):
        return ""
    remedies = ["set gate_balance_weight to 1"] if config.gate_balance_weight < 1 else []
    if config.gamma_kl_weight > 0.001:
        remedies.append("lower gamma_kl_weight to 0.001")
    return " and ".join(remedies) + ", or " if remedies else ""


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    train: Dataset | None,
    test: Dataset,
    num_samples: int = 5,
    batch_size: int = 256,
    seed: int = 42,
) -> dict[str, Any]:
    """The whole report; what the data does not allow to measure (probes without labels) is left out.

    Args:
        model: for pre-training.
        tokenizer: the model's.
        train: rows that the probes learn from, with `text` and `label`; None for no probes.
        test: rows to report on, with `text` and, for probes, `label`.
        num_samples: K of the probe on samples.
        batch_size: sentences per forward pass.
        seed: of the draws.

    Raises:
        ImportError: without the extra `train`.
        ValueError: if all texts of `train` or `test` are blank.
    """
    require("evaluate", "sklearn")
    for name, split in (("train", train), ("test", test)):
        _check_words(name, split)
    torch.manual_seed(seed)
    model.eval()
    batches = input_batches(model, tokenizer, test, batch_size, "Evaluate")
    report = corpus_statistics(model, (inputs for _, inputs in batches))
    sentence = advice(report, model.config)
    if sentence is not None:
        report["advice"] = sentence
    found = None
    probes = _probe_rows(train, test)
    if probes is not None:
        labels, truth = (np.array(split["label"][:]) for split in probes)
        splits = [
            representations(model, input_batches(model, tokenizer, split, batch_size, "Probes"), num_samples)
            for split in probes
        ]
        found = splits[1] if len(truth) == len(test) else None
        accuracy = {name: probe_accuracy(splits[0][name], labels, splits[1][name], truth) for name in splits[0]}
        accuracy["majority"] = float((truth == np.bincount(labels).argmax()).mean())
        if not model.config.decodes_words:
            dense = [embed_dataset(split, model, tokenizer) for split in probes]
            accuracy["dense"] = probe_accuracy(dense[0], labels, dense[1], truth)
        if "text" in probes[0].column_names:
            accuracy["tfidf"] = tfidf_accuracy(*probes)
        report |= {"accuracy": accuracy, "probe_rows": len(labels)}
    if "text" in test.column_names and tokenizer is not None:
        found = found or representations(model, input_batches(model, tokenizer, test, batch_size, "Dimensions"), 1)
        report["dimensions"] = describe_dimensions(found["code"], test["text"][:], num_sentences=0)
    return report


def print_report(report: dict[str, Any]) -> None:
    """Print what a person looks at first, a line each, and advice where there is some.

    Args:
        report: of `evaluate_model`.
    """
    rows = [(label, report[name]) for name, label in REPORTED.items() if name in report]
    accuracy = report.get("accuracy", {})
    rows += [(f"accuracy {label}", accuracy[name]) for name, label in PROBES.items() if name in accuracy]
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        say(f"  {label:<{width}}  {figure(value)}")
    if report.get("advice") is not None:
        say(f"  advice: {report['advice']}")
