"""One report of a trained model: loss terms, sparsity, gates, collapse, and what linear probes read from the codes."""

import itertools
import logging
import math
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from scipy import sparse
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.analysis import GateStatistics, neighbours_kept
from hsvae_hf.batches import input_batches
from hsvae_hf.data import labelled
from hsvae_hf.explanation import describe_dimensions
from hsvae_hf.extras import require
from hsvae_hf.metrics import metric_path
from hsvae_hf.reporting import figure, say
from hsvae_hf.vectors import embed_dataset

logger = logging.getLogger(__name__)

MUTUAL_INFORMATION_ROWS = 512  # the estimate's ceiling is their logarithm, 6.2 nats
NEIGHBOURS, FEWEST_ROWS, NEIGHBOUR_ROWS = 10, 100, 1000  # of few rows, ten are a large share
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
ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2016: a unit is active if E[z_i|x] varies more than this over sentences


@torch.inference_mode()
def representations(
    model: PreTrainedModel, batches: Iterable[tuple[np.ndarray, dict[str, Any]]], num_samples: int = 5
) -> dict[str, np.ndarray | sparse.csr_matrix]:
    """What the probes read, one row per sentence.

    Args:
        model: for pre-training.
        batches: row numbers and what the model takes; see `input_batches`. Rows come out in the order of their numbers.
        num_samples: K, draws of z per sentence.

    Returns:
        `code` and, where the model has gates, `gate` (1 = on), both CSR `(rows, latent_size)`; `slab_mean` where the
        model has one, else `posterior_mean`, `(rows, latent_size)`; `samples`, `(rows, num_samples, latent_size)`.
    """
    base, parts, order = model.model, [], []
    for rows, inputs in batches:
        posterior = base(**inputs)
        report = base.latent_head.diagnostics(posterior)
        mean = "slab_mean" if "slab_mean" in report else "posterior_mean"
        part = {"code": posterior.sparse_embedding, mean: report[mean]}
        if "spike_probability" in report:
            part["gate"] = posterior.sparse_embedding != 0
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
    require("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    samples = train.shape[1] if train.ndim == 3 else 1
    flat = [part.reshape(-1, part.shape[-1]) if part.ndim == 3 else part for part in (train, test)]
    probe = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(C=0.1, max_iter=2000))
    probe.fit(flat[0], np.repeat(labels, samples))
    probabilities = probe.predict_proba(flat[1]).reshape(len(truth), samples, -1).mean(1)
    return float((probe.classes_[probabilities.argmax(1)] == truth).mean())


def average_hoyer(codes: np.ndarray) -> float:
    """Average Hoyer of `codes` `(rows, latent_size)`, normalised; see the metric of that name."""
    return float(_metric("average_hoyer").compute(predictions=codes)["average_hoyer"])


def _metric(name: str, experiment_id: str | None = None) -> Any:
    require("evaluate")
    import evaluate

    return evaluate.load(metric_path(name), experiment_id=experiment_id)


def tfidf_accuracy(train: Dataset, test: Dataset) -> float:
    """Accuracy of TF-IDF (words and pairs, sublinear) with logistic regression on the same rows."""
    require("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

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
def corpus_statistics(model: PreTrainedModel, batches: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Loss terms, sparsity, gates and collapse on a corpus, in one pass and in bounded memory.

    Args:
        model: for pre-training, in evaluation mode.
        batches: the corpus, as the model takes it; see `input_batches`.

    Returns:
        Among the rest: `kl_per_dimension`, nats, unweighted, of values and gate; `dead_dims` and `always_on_dims`,
        dimensions that no code uses, and those that more than 99% use; `mutual_information`, see there; where vectors
        are reconstructed `squared_error`, per standardised dimension, of a draw, and `squared_error_code`, of the
        deterministic code, and of the first 1,000 rows (at least 100) `neighbours_kept`, see there.
    """
    statistics = _Statistics(model)
    for inputs in batches:
        statistics.update(inputs)
    return statistics.result()


class _Statistics:
    """What `corpus_statistics` sums up."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.base, self.decoder = cast(Any, model), cast(Any, model.base_model), cast(Any, model).decoder
        self.hoyer: dict[tuple[str, bool], Any] = {}
        self.active = _metric("active_dims")
        self.gates = GateStatistics()
        self.sums: dict[str, float] = {}
        self.squares, self.means, self.used, self.kl = np.zeros((4, model.config.latent_size))
        self.sample: tuple[Tensor, ...] | None = None
        self.draw = np.random.default_rng(0)
        self.vectors: list[tuple[np.ndarray, sparse.csr_matrix]] = []
        self.rows = 0

    def update(self, inputs: dict[str, Any]) -> None:
        """Add a batch."""
        posterior = self.base(**inputs, return_dict=True)
        report = self.base.latent_head.diagnostics(posterior)
        draw = self.base.sample(posterior)
        self._add_terms(posterior, dict(self.model(**inputs, encoder_outputs=posterior, return_dict=True)))
        self._add_codes(posterior, {"samples": draw["z"]} | report)
        independent = self.base.latent_head.independent_gates
        for name, cost in self.base.costs(posterior, draw).items():
            if name == "z_kl" or (name == "gamma_kl" and independent):
                self.kl += cost.double().sum(0).cpu().numpy()
        std = posterior.get("slab_std", posterior.get("std"))
        if std is not None and independent:
            mean = report.get("slab_mean", report["posterior_mean"])
            off = report.get("spike_probability", torch.zeros_like(mean))
            keys = torch.from_numpy(self.draw.random(len(mean))).to(mean.device)  # the smallest stay: an even sample
            rows = keys, *(part.double() for part in (off, mean, std))
            rows = rows if self.sample is None else tuple(map(torch.cat, zip(self.sample, rows, strict=True)))
            order = rows[0].argsort()[:MUTUAL_INFORMATION_ROWS]
            self.sample = tuple(part[order] for part in rows)
        self.rows += len(posterior.latent)

    def _add_terms(self, posterior: Any, terms: dict[str, Tensor]) -> None:
        if self.model.config.decoder_type == "vector":
            latents = posterior.sparse_embedding / self.base.code_scale
            terms["squared_error_code"] = (self.decoder.mean(latents) - posterior.features).square().mean()
            if self.rows < NEIGHBOUR_ROWS:
                pair = self.base.standardizer.undo(posterior.features), posterior.sparse_embedding
                vectors, codes = (part[: NEIGHBOUR_ROWS - self.rows].float().cpu().numpy() for part in pair)
                self.vectors.append((vectors, sparse.csr_matrix(codes)))
        for name, value in terms.items():
            weight = 1 if name == "num_tokens" else len(posterior.latent)
            self.sums[name] = self.sums.get(name, 0.0) + float(value) * weight

    def _add_codes(self, posterior: Any, report: dict[str, Tensor]) -> None:
        names = {"samples": "samples", "posterior_means": "posterior_mean", "slab_means": "slab_mean"}
        for (plural, name), normalize in itertools.product(names.items(), (True, False)):
            if name in report and report[name].shape[-1] > 1:  # of one dimension it is not defined
                key = plural, normalize
                if key not in self.hoyer:
                    self.hoyer[key] = _metric("average_hoyer", f"{plural}-{normalize}")
                self.hoyer[key].add_batch(predictions=report[name].float().cpu().numpy())
        self.active.add_batch(predictions=posterior.sparse_embedding.float().cpu().numpy())
        self.used += (posterior.sparse_embedding != 0).sum(0).cpu().numpy()
        if "spike_probability" in report:
            self.gates.update(report["spike_probability"].float().cpu().numpy(), posterior.sparse_embedding)
        mean = report["posterior_mean"].double().cpu().numpy()
        self.means += mean.sum(0)
        self.squares += (mean**2).sum(0)

    def result(self) -> dict[str, Any]:
        """Everything, over all batches."""
        result: dict[str, Any] = {"rows": self.rows} | _means(self.sums, self.rows)
        for (name, normalize), metric in self.hoyer.items():
            scores = metric.compute(normalize=normalize)
            result[f"average_hoyer_{name}{'' if normalize else '_raw'}"] = scores["average_hoyer"]
        result |= self.active.compute()
        if self.gates.sentences:
            found = self.gates.result()
            result |= {name: found[name] for name in ("gate_std", "switching_fraction")}
        variance = self.squares / self.rows - (self.means / self.rows) ** 2
        result["active_units"] = int((variance > ACTIVE_UNIT_VARIANCE).sum())
        result["dead_dims"] = int((self.used == 0).sum())
        result["always_on_dims"] = int((self.used > 0.99 * self.rows).sum())
        if self.sample is not None:
            result["mutual_information"] = mutual_information(*self.sample[1:])
        if self.kl.any():
            result["kl_per_dimension"] = (self.kl / self.rows).tolist()
        if self.vectors and self.rows >= FEWEST_ROWS:
            vectors, codes = zip(*self.vectors, strict=True)
            result["neighbours_kept"] = neighbours_kept(np.concatenate(vectors), sparse.vstack(codes), NEIGHBOURS)
        return result


def mutual_information(off: Tensor, mean: Tensor, std: Tensor) -> float:
    """Estimate of I(x; z) in nats: how well a draw tells which of these N sentences it is of; at most log N.

    `1/N sum_n [log q(z_n|x_n) - log 1/N sum_m q(z_n|x_m)]`, `z_n ~ q(z|x_n)`, where z is taken with its spike/slab
    indicator, `q = prod_i off_i^(1-s_i) ((1 - off_i) N(z_i; mean_i, std_i^2))^(s_i)`.

    Args:
        off: probabilities of the spike, `(N, latent_size)`, 0 where there is none.
        mean: of the slab, likewise.
        std: of the slab, likewise.
    """
    on = (torch.rand_like(off) >= off).to(off.dtype)
    z = on * (mean + std * torch.randn_like(mean))
    log_on, log_off = torch.log1p(-off.clamp_max(1 - 1e-12)), off.clamp_min(1e-12).log()
    precision = std**-2
    constant = log_on - std.log() - 0.5 * mean**2 * precision - log_off  # of the slab against the spike, without z
    log_q = log_off.sum(1) + on @ constant.T + z @ (mean * precision).T - 0.5 * z**2 @ precision.T
    own = log_q.diagonal() - log_q.logsumexp(1) + math.log(len(off))
    return float(own.mean())


def advice(statistics: dict[str, Any], config: Any) -> str | None:
    """One sentence on what is wrong with a latent and what to try, from `corpus_statistics`; None if nothing is.

    Args:
        statistics: of the model.
        config: of the model; what it does not have, or has set already, is not advised.
    """
    if statistics["active_units"] == 0 or statistics.get("mutual_information", 1.0) < 0.1:
        lower = [name for name in ("z_kl_weight", "gamma_kl_weight") if getattr(config, name, 0) > 0]
        remedies = [f"lower {' and '.join(lower)}, warm the KL up by --kl_annealing linear"] if lower else []
        if config.decoder_type == "gru":
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
        if model.config.decoder_type == "vector":
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
