"""Reports of a trained model: what was measured, advice on it, and how both are printed."""

import logging
import os
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.advice import advice
from hsvae_hf.console import figure, say
from hsvae_hf.corpus import input_batches
from hsvae_hf.data import labelled
from hsvae_hf.embedding_cache import embed_dataset
from hsvae_hf.encoding import encode
from hsvae_hf.explanation import ENDS, LEAST_SENTENCES, Explanation, decode_switched, describe_dimensions, explain
from hsvae_hf.extras import require
from hsvae_hf.models.modeling_text_vae import TextVAEForPreTraining
from hsvae_hf.plots import plot_gate_heatmap
from hsvae_hf.probes import probe_accuracy, representations, tfidf_accuracy
from hsvae_hf.statistics import class_gate_activity, corpus_statistics

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


def evaluate_model(
    model: TextVAEForPreTraining,
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

    Returns:
        What `corpus_statistics` gives, and where there is some: `advice`, `accuracy` of each probe, `probe_rows` that
        they learned from, and `dimensions`, see `describe_dimensions`.

    Raises:
        ImportError: without the extra `train`.
        ValueError: if all texts of `train` or `test` are blank.
    """
    require("sklearn")
    for name, split in (("train", train), ("test", test)):
        _check_words(name, split)
    torch.manual_seed(seed)
    model.eval()

    def represent(split: Dataset, what: str, samples: int) -> dict[str, Any]:
        return representations(model, input_batches(model, tokenizer, split, batch_size, what), samples)

    batches = input_batches(model, tokenizer, test, batch_size, "Evaluate")
    report = corpus_statistics(model, (inputs for _, inputs in batches))
    sentence = advice(report, model.config)
    if sentence is not None:
        report["advice"] = sentence
    codes = None
    splits = _probe_rows(train, test)
    if splits is not None:
        learned, judged = (represent(split, "Probes", num_samples) for split in splits)
        if not model.config.decodes_words:
            learned["dense"], judged["dense"] = (embed_dataset(split, model, tokenizer) for split in splits)
        report |= {"accuracy": _accuracies(learned, judged, *splits), "probe_rows": len(splits[0])}
        codes = judged["code"] if len(splits[1]) == len(test) else None
    if "text" in test.column_names and tokenizer is not None:
        codes = represent(test, "Dimensions", 1)["code"] if codes is None else codes
        report["dimensions"] = describe_dimensions(codes, test["text"][:], num_sentences=0)
    return report


def _accuracies(
    learned: Mapping[str, Any], judged: Mapping[str, Any], train: Dataset, test: Dataset
) -> dict[str, float]:
    """Accuracy of a probe on each representation, of the largest class, and of TF-IDF where there is text."""
    labels, truth = (np.array(split["label"][:]) for split in (train, test))
    accuracy = {name: probe_accuracy(learned[name], labels, judged[name], truth) for name in learned}
    accuracy["majority"] = float((truth == np.bincount(labels).argmax()).mean())
    if "text" in train.column_names:
        accuracy["tfidf"] = tfidf_accuracy(train, test)
    return accuracy


def _check_words(name: str, split: Dataset | None) -> None:
    if split is not None and "text" in split.column_names and not any(text.strip() for text in split["text"]):
        raise ValueError(f"`{name}` must hold at least one word, got {len(split)} blank texts; check the text column.")


def _probe_rows(train: Dataset | None, test: Dataset) -> tuple[Dataset, Dataset] | None:
    """The rows with a class to learn from and to judge by; None, and a warning, if there are too few."""
    if train is None or "label" not in train.column_names or "label" not in test.column_names:
        return None
    learned, judged = labelled(train), labelled(test)
    if learned is None or judged is None:
        logger.warning("accuracies are left out: no row of %s has a class", "train" if learned is None else "test")
        return None
    if len(learned.unique("label")) < 2:
        logger.warning("accuracies are left out: the rows to learn from have one class alone")
        return None
    _check_words("train", learned)
    return learned, judged


def draw_gates(
    model: TextVAEForPreTraining,
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Dataset,
    path: str | os.PathLike[str],
    batch_size: int = 256,
    title: str | None = None,
) -> None:
    """Write the heat map of the dimensions that each class uses, `plot_gate_heatmap`.

    Args:
        model: for pre-training, in evaluation mode.
        tokenizer: the model's.
        dataset: with `label`; rows without a class are left out.
        path: PNG file to write.
        batch_size: sentences per forward pass.
        title: line above the heat map.

    Raises:
        ImportError: without matplotlib, of the extra `train`.
        ValueError: if no row has a class, or the model has no gates.
    """
    rows = labelled(dataset)
    if rows is None:
        raise ValueError("`heatmap` needs labels, got none in the data; leave it out.")
    batches = input_batches(model, tokenizer, rows, batch_size, "Heat map")
    codes = representations(model, batches, num_samples=1)
    if "gate" not in codes:
        raise ValueError(f"`heatmap` needs a model with gates, got a {model.config.model_type}; leave it out.")
    classes = rows.features["label"].names
    activity = class_gate_activity(codes["gate"], np.array(rows["label"][:]), len(classes))
    plot_gate_heatmap(activity, classes, path, title)


def print_report(report: Mapping[str, Any]) -> None:
    """Print what a person looks at first, a line each, and advice where there is some.

    Args:
        report: of `evaluate_model`.

    Example:
        >>> print_report({"rows": 1200, "active_dims": 15.93, "accuracy": {"code": 0.871}})
          rows                    1,200
          non-zeros per code      15.9
          accuracy from the code  0.871
    """
    rows = [(label, report[name]) for name, label in REPORTED.items() if name in report]
    accuracy = report.get("accuracy", {})
    rows += [(f"accuracy {label}", accuracy[name]) for name, label in PROBES.items() if name in accuracy]
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        say(f"  {label:<{width}}  {figure(value)}")
    if report.get("advice") is not None:
        say(f"  advice: {report['advice']}")


def print_dimensions(dimensions: Sequence[Mapping[str, Any]], sentences: int) -> None:
    """Print a line for each end of the dimensions that `describe_dimensions` gives, from so many sentences."""
    say("dimension and sign, share of the sentences that have it so, their words (- where none stands out)")
    for dimension in dimensions:
        for end, sign in zip(ENDS, "+-", strict=True):
            if end in dimension:
                share, words = dimension[end]["share"], dimension[end]["words"]
                say(f"{dimension['dimension']:>5}{sign} {share:>6.1%}  {', '.join(words) or '-'}")
    if not dimensions:
        say(f"    none is on for any of {sentences} sentences")
    if sentences < 10 * LEAST_SENTENCES:
        say(f"words need {LEAST_SENTENCES} sentences that switch a dimension on, of {sentences} in all: add text")


def print_details(dimension: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Print the sentences of both ends of a dimension; with a decoder of words, what it generates for them.

    Args:
        dimension: one of `describe_dimensions`; what is generated is added to each end as `decoder`.
        model: of the codes.
        tokenizer: the model's.
    """
    for name in ENDS:
        if name not in dimension:
            continue
        end = dimension[name]
        say(f"\n{name}, on average {end['mean']:+.2f}:")
        for sentence in end["sentences"]:
            say(f"    {shorten(sentence, 96)}")
        if model.config.decodes_words:
            texts = decode_switched(model, tokenizer, end["sentences"], dimension["dimension"])
            end["decoder"] = [{"off": off, "on": on} for off, on in texts]
            say("  the decoder, with it off and on:")
            for off, on in texts:
                say(f"    off  {shorten(off, 96)}\n    on   {shorten(on, 96)}")


def print_explanation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    dimensions: Sequence[Mapping[str, Any]],
    source: str | None,
) -> Explanation:
    """Print what two sentences share, a line for each dimension, with its words in `dimensions`, read from `source`."""
    words = {
        (dimension["dimension"], end): ", ".join(dimension[end]["words"]) or "-"
        for dimension in dimensions
        for end in ENDS
        if end in dimension
    }
    pair = explain(model, tokenizer, sentences[0], sentences[1])
    codes = encode(model, tokenizer, sentences).toarray()
    origin = f", its words in {source}" if source else ", its name" if pair.names else ""
    say(f"dimension, what it adds to the dot product of the two codes{origin}")
    for place, (index, value) in enumerate(pair.contributions):
        ends = dict.fromkeys(ENDS[0] if code > 0 else ENDS[1] for code in codes[:, index])  # two if they differ
        shown = " against ".join(words.get((index, end), "-") for end in ends) if source else ""
        shown = pair.names[place] if pair.names and not source else shown
        say(f"{index:>5}  {value:+.4f}  {shown}".rstrip())
    say(f"  sum  {pair.similarity:+.4f}   cosine {pair.cosine:+.4f}")
    ids = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in " ".join(sentences).split()}
    unknown = [word for word in ids if not ids[word] or tokenizer.unk_token_id in ids[word]]
    if unknown:
        say(f"words that the model does not know: {', '.join(unknown)}")
    if not source and not pair.names:
        say("for the words of these dimensions, add --dataset with text like what the model was trained on")
    return pair
