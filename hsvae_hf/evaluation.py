"""One report of a trained model: loss terms, sparsity, gates, collapse, and what linear probes read from the codes."""

from pathlib import Path
from typing import Any, cast

import evaluate
import numpy as np
import torch
from datasets import Dataset
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.analysis import GateStatistics
from hsvae_hf.batches import input_batches
from hsvae_hf.metrics import metric_path

ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2016: a unit is active if E[z_i|x] varies more than this over sentences


@torch.inference_mode()
def representations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Dataset,
    num_samples: int = 5,
    batch_size: int = 256,
) -> dict[str, np.ndarray | sparse.csr_matrix]:
    """What the probes read, one row per sentence, in the order of `dataset`.

    Args:
        model: for pre-training.
        tokenizer: the model's.
        dataset: with a column `text`.
        num_samples: K, draws of z per sentence.
        batch_size: sentences per forward pass.

    Returns:
        `code` and, where the model has gates, `gate` (1 = on), both CSR `(rows, latent_size)`; `slab_mean` where the
        model has one, else `posterior_mean`, `(rows, latent_size)`; `samples`, `(rows, num_samples, latent_size)`.
    """
    base, parts, order = model.model, [], []
    for rows, inputs in input_batches(model, tokenizer, dataset, batch_size, "Representations"):
        posterior = base(**inputs)
        report = base.latent_head.diagnostics(posterior)
        mean = "slab_mean" if "slab_mean" in report else "posterior_mean"
        part = {"code": posterior.sparse_embedding, mean: report[mean]}
        if "spike_probability" in report:
            part["gate"] = report["spike_probability"] < getattr(model.config, "active_threshold", 0.5)
        part["samples"] = torch.stack([base.sample(posterior)["z"] for _ in range(num_samples)], dim=1)
        parts.append({name: value.float().cpu().numpy() for name, value in part.items()})
        order.append(rows)
    inverse = np.argsort(np.concatenate(order))
    found = {name: np.concatenate([part[name] for part in parts])[inverse] for name in parts[0]}
    return {name: sparse.csr_matrix(value) if name in ("code", "gate") else value for name, value in found.items()}


def probe_accuracy(
    train: np.ndarray | sparse.csr_matrix, labels: np.ndarray, test: np.ndarray | sparse.csr_matrix, truth: np.ndarray
) -> float:
    """Accuracy of logistic regression on features scaled to unit variance (not centred, so that zeros stay zeros).

    Args:
        train: `(rows, features)`; or `(rows, K, features)`: K samples per row, each a training row of its own, and in
            the test the class probabilities are averaged over the samples, `p(y|x) = mean_k p(y|z_k)`.
        labels: classes of `train`, `(rows,)`.
        test: like `train`.
        truth: classes of `test`.
    """
    samples = train.shape[1] if train.ndim == 3 else 1
    flat = [part.reshape(-1, part.shape[-1]) if part.ndim == 3 else part for part in (train, test)]
    probe = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(C=0.1, max_iter=2000))
    probe.fit(flat[0], np.repeat(labels, samples))
    probabilities = probe.predict_proba(flat[1]).reshape(len(truth), samples, -1).mean(1)
    return float((probe.classes_[probabilities.argmax(1)] == truth).mean())


def average_hoyer(codes: np.ndarray) -> float:
    """Average Hoyer of `codes` `(rows, latent_size)`, normalised; see the metric of that name."""
    return float(evaluate.load(metric_path("average_hoyer")).compute(predictions=codes)["average_hoyer"])


def tfidf_accuracy(train: Dataset, test: Dataset) -> float:
    """Accuracy of TF-IDF (words and pairs, sublinear) with logistic regression on the same rows."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
    probe = make_pipeline(words, LogisticRegression(C=10, max_iter=2000))
    probe.fit(train["text"][:], train["label"][:])
    return float(probe.score(test["text"][:], test["label"][:]))


def _means(sums: dict[str, float], rows: int) -> dict[str, float]:
    """Per sentence; where there are words, their number and the perplexity too."""
    tokens = sums.pop("num_tokens", None)
    means = {name: value / rows for name, value in sums.items()}
    if tokens is None:
        return means
    return means | {"tokens": int(tokens), "perplexity": float(np.exp(means["reconstruction_loss"] * rows / tokens))}


@torch.inference_mode()
def corpus_statistics(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, dataset: Dataset, batch_size: int = 256
) -> dict[str, Any]:
    """Loss terms, sparsity, gates and collapse on a corpus, in one pass and in bounded memory.

    Args:
        model: for pre-training, in evaluation mode.
        tokenizer: the model's.
        dataset: with a column `text`, or `vectors` for a model that takes them.
        batch_size: sentences per forward pass.

    Returns:
        Among the rest, where vectors are reconstructed: `squared_error`, per standardised dimension, of a draw, and
        `squared_error_code`, of the deterministic code.
    """
    base, decoder = cast(Any, model.model), cast(Any, model.decoder)
    hoyer: dict[tuple[str, bool], Any] = {}
    active = evaluate.load(metric_path("active_dims"))
    gates = GateStatistics(getattr(model.config, "active_threshold", 0.5))
    sums: dict[str, float] = {}
    moments = np.zeros((2, model.config.latent_size))
    has_gate = False
    for rows, inputs in input_batches(model, tokenizer, dataset, batch_size, "Evaluate"):
        posterior = base(**inputs)
        terms = dict(model(**inputs, encoder_outputs=posterior))
        if model.config.decoder_type == "vector":
            terms["squared_error_code"] = (decoder.mean(posterior.latent) - posterior.features).square().mean()
        for name, value in terms.items():
            weight = 1 if name == "num_tokens" else len(rows)
            sums[name] = sums.get(name, 0.0) + float(value) * weight
        report = base.latent_head.diagnostics(posterior)
        codes = {"samples": base.sample(posterior)["z"], "posterior_means": report["posterior_mean"]}
        if "slab_mean" in report:
            codes["slab_means"] = report["slab_mean"]
        for name, code in codes.items():
            for normalize in (True, False):
                metric = hoyer.setdefault((name, normalize), None) or evaluate.load(
                    metric_path("average_hoyer"), experiment_id=f"{name}-{normalize}"
                )
                hoyer[name, normalize] = metric
                metric.add_batch(predictions=code.float().cpu().numpy())
        active.add_batch(predictions=posterior.sparse_embedding.float().cpu().numpy())
        if "spike_probability" in report:
            has_gate = True
            gates.update(report["spike_probability"].float().cpu().numpy())
        mean = report["posterior_mean"].double().cpu().numpy()
        moments += np.stack([mean.sum(0), (mean**2).sum(0)])
    result: dict[str, Any] = {"rows": len(dataset)} | _means(sums, len(dataset))
    for (name, normalize), metric in hoyer.items():
        scores = metric.compute(normalize=normalize)
        result[f"average_hoyer_{name}{'' if normalize else '_raw'}"] = scores["average_hoyer"]
    result |= active.compute()
    if has_gate:
        found = gates.result()
        result |= {name: found[name] for name in ("gate_std", "switching_fraction")}
    variance = moments[1] / len(dataset) - (moments[0] / len(dataset)) ** 2
    result["active_units"] = int((variance > ACTIVE_UNIT_VARIANCE).sum())
    return result


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
    """
    torch.manual_seed(seed)
    model.eval()
    report = corpus_statistics(model, tokenizer, test, batch_size)
    if train is not None and "label" in train.column_names and "label" in test.column_names:
        labels, truth = np.array(train["label"][:]), np.array(test["label"][:])
        splits = [representations(model, tokenizer, split, num_samples, batch_size) for split in (train, test)]
        accuracy = {name: probe_accuracy(splits[0][name], labels, splits[1][name], truth) for name in splits[0]}
        accuracy["majority"] = float((truth == np.bincount(labels).argmax()).mean())
        if "text" in train.column_names:
            accuracy["tfidf"] = tfidf_accuracy(train, test)
        report |= {"accuracy": accuracy, "probe_rows": len(train)}
    return report


def print_report(report: dict[str, Any]) -> None:
    """Print a report as an aligned table."""
    rows = [(name, value) for name, value in report.items() if not isinstance(value, dict)]
    rows += [(f"accuracy, {name}", value) for name, value in report.get("accuracy", {}).items()]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value:.4g}" if isinstance(value, float) else f"{name:<{width}}  {value}")


def check_output(path: str | Path, overwrite: bool, suffix: str) -> Path:
    """The path of a result file that may be written.

    Raises:
        ValueError: if it has another suffix, or exists and `overwrite` is not set.
    """
    target = Path(path)
    if target.suffix != suffix:
        raise ValueError(f"`output` must end in {suffix}, got {str(target)!r}; rename it.")
    if target.name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        raise ValueError(f"`output` must not be a file of a model, got {str(target)!r}; rename it.")
    if target.exists() and not overwrite:
        raise ValueError(f"`output` must be a new file, got {str(target)!r}; add --overwrite to replace it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
