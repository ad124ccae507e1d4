"""Statistics of codes, gates and posteriors over a corpus."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from transformers import PreTrainedModel

from hsvae_hf.extras import require
from hsvae_hf.inputs import check_positive
from hsvae_hf.metrics import metric_path

MUTUAL_INFORMATION_ROWS = 512  # the estimate's ceiling is their logarithm, 6.2 nats
NEIGHBOURS, FEWEST_ROWS, NEIGHBOUR_ROWS = 10, 100, 1000  # of few rows, ten are a large share
ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2016: a unit is active if E[z_i|x] varies more than this over sentences


def average_hoyer(codes: np.ndarray) -> float:
    """Average Hoyer of `codes` `(rows, latent_size)`, normalised; see the metric of that name."""
    return float(_metric("average_hoyer").compute(predictions=codes)["average_hoyer"])


def _metric(name: str, experiment_id: str | None = None) -> Any:
    require("evaluate")
    import evaluate

    return evaluate.load(metric_path(name), experiment_id=experiment_id)


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
        if not self.model.config.decodes_words:
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


def _to_array(values: Any) -> np.ndarray:
    if sparse.issparse(values):
        return np.asarray(values.toarray())
    if isinstance(values, torch.Tensor):
        tensor = values.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16
    return np.asarray(values)


def _check_gates(gate_mean: object) -> np.ndarray:
    gates = _to_array(gate_mean)
    if gates.dtype.kind not in "fiub" or gates.ndim != 2 or 0 in gates.shape:
        raise ValueError(
            f"`gate_mean` must be a (sentences, latent_size) matrix with at least one row, got shape {gates.shape}. "
            "Pass the `gate_mean` of a model's output."
        )
    if not (gates.min() >= 0 and gates.max() <= 1):  # not true of NaN either
        raise ValueError(
            f"`gate_mean` must hold probabilities in [0, 1], got values from {gates.min()} to {gates.max()}. "
            "Pass the `gate_mean` of a model's output, and check the model for divergence."
        )
    return gates


def _check_labels(labels: object, rows: int, num_classes: int) -> np.ndarray:
    classes = _to_array(labels)
    if classes.shape != (rows,):
        raise ValueError(
            f"`labels` must have shape ({rows},), one per sentence, got {classes.shape}. Pass them in order."
        )
    if rows and classes.dtype.kind not in "iub":
        raise ValueError(
            f"`labels` must be class indices, got {classes.dtype} such as {classes[0]!r}. Number the classes."
        )
    if rows and not (classes.min() >= 0 and classes.max() < num_classes):
        raise ValueError(
            f"`labels` must be in [0, {num_classes}), got values from {classes.min()} to {classes.max()}. "
            "Pass `num_classes` of the data set, and no unlabelled sentences."
        )
    return classes


class GateStatistics:
    """Statistics of the gates over a corpus seen in batches; memory is a few numbers per dimension.

    Args:
        threshold: a dimension is on where E[gamma|x] is below it.

    Example:
        >>> statistics = GateStatistics()
        >>> statistics.update(np.array([[0.1, 0.9, 0.9], [0.9, 0.9, 0.9]]))
        >>> statistics.result()["active_dims"]
        0.5
    """

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold
        self.sentences = 0

    def update(self, gate_mean: object, sparse_embedding: object = None) -> None:
        """Add a batch.

        Args:
            gate_mean: E[gamma|x], `(batch, latent_size)`, array or tensor.
            sparse_embedding: the codes, `(batch, latent_size)`; with them a dimension is on where the code is not 0,
                which `max_active_dims` can make fewer than the gates below the threshold.

        Raises:
            ValueError: if a shape does not fit, or a gate is not a probability.
        """
        gates = _check_gates(gate_mean)
        if self.sentences == 0:
            self._origin = gates[0].astype(np.float64)
            self._sum, self._squares, self._on = np.zeros((3, gates.shape[1]))
        if gates.shape[1] != len(self._origin):
            raise ValueError(
                f"`gate_mean` must be {len(self._origin)} wide like the batches before, got {gates.shape[1]}. "
                "Use one GateStatistics per model."
            )
        on = gates < self.threshold if sparse_embedding is None else _to_array(sparse_embedding) != 0
        if on.shape != gates.shape:
            raise ValueError(
                f"`sparse_embedding` must have the shape of `gate_mean`, {gates.shape}, got {on.shape}. "
                "Pass both from one model output."
            )
        offset = gates - self._origin  # counted from the first row, a gate that never moves has exactly zero variance
        self._sum += offset.sum(axis=0)
        self._squares += np.square(offset).sum(axis=0)
        self._on += on.sum(axis=0)
        self.sentences += len(gates)

    def result(self) -> dict[str, float]:
        """Statistics of everything added so far.

        Returns:
            `gate_std`: standard deviation over sentences of E[gamma_i|x], mean over dimensions; near 0, the gates
            ignore the input. `switching_fraction`: share of dimensions that are on for 5% to 95% of the sentences.
            `active_dims`: mean number of active dimensions of a sentence.

        Raises:
            ValueError: if nothing was added.
        """
        if self.sentences == 0:
            raise ValueError("`gate_mean` must hold at least one row, got none. Call `update` before `result`.")
        variance = self._squares / self.sentences - np.square(self._sum / self.sentences)
        on_share = self._on / self.sentences
        return {
            "gate_std": float(np.sqrt(np.maximum(variance, 0)).mean()),
            "switching_fraction": float(((on_share >= 0.05) & (on_share <= 0.95)).mean()),
            "active_dims": float(on_share.sum()),
        }


def class_gate_activity(active: object, labels: object, num_classes: int) -> np.ndarray:
    """Share of the sentences of each class for which each dimension is on (Prokhorov et al. 2021, Figure 4).

    The paper binarises E[gamma|x] of each sentence at 0.5 and averages per class: gamma_class, 1 where a dimension is
    off for the whole class. Here it is `1 - gamma_class`, so that a larger number means more use.

    Args:
        active: whether a sentence's dimension is on, or its code, 0 where it is off, `(sentences, latent_size)`.
        labels: class indices, `(sentences,)`.
        num_classes: number of classes.

    Returns:
        `(num_classes, latent_size)`, in [0, 1]; a row of NaN for a class without sentences.

    Raises:
        ValueError: if shapes do not fit or a label is out of range.
    """
    check_positive(num_classes=num_classes)
    on = _to_array(active) != 0
    if on.ndim != 2:
        raise ValueError(f"`active` must be a (sentences, latent_size) matrix, got shape {on.shape}; pass codes.")
    classes = _check_labels(labels, len(on), num_classes)
    activity = np.full((num_classes, on.shape[1]), np.nan)
    for index in np.unique(classes):
        activity[index] = on[classes == index].mean(axis=0)
    return activity


def class_kl(token_ids: Iterable[Sequence[int]], labels: object, num_classes: int, vocab_size: int) -> np.ndarray:
    """Kullback-Leibler divergence between the word distributions of each pair of classes, add-1 smoothed.

    Args:
        token_ids: one list of word indices per sentence, without padding or special tokens.
        labels: class indices, `(sentences,)`.
        num_classes: number of classes.
        vocab_size: size of the vocabulary.

    Returns:
        `(num_classes, num_classes)`, in nats: KL(row's class || column's class), 0 on the diagonal.

    Raises:
        ValueError: if there is not one label per sentence, or an index is out of range.
    """
    check_positive(num_classes=num_classes, vocab_size=vocab_size)
    sentences = list(token_ids)
    classes = _check_labels(labels, len(sentences), num_classes)
    counts = np.ones((num_classes, vocab_size))
    for row, (index, sentence) in enumerate(zip(classes, sentences, strict=True)):
        words = np.asarray(sentence)
        if words.size and words.dtype.kind not in "iu":
            raise ValueError(f"`token_ids` must be whole numbers, got {words.dtype} in row {row}. Pass ids, not words.")
        words = words.astype(np.int64)
        if words.size and not (words.min() >= 0 and words.max() < vocab_size):
            raise ValueError(
                f"`token_ids` must be in [0, {vocab_size}), got values from {words.min()} to {words.max()}. "
                "Pass the `vocab_size` of the tokenizer that made them."
            )
        np.add.at(counts[index], words, 1)
    log_share = np.log(counts) - np.log(counts.sum(axis=1, keepdims=True))
    share = np.exp(log_share)
    return np.sum(share * log_share, axis=1)[:, None] - share @ log_share.T


def neighbours_kept(vectors: np.ndarray, codes: sparse.csr_matrix, count: int = 10) -> float:
    """Share of each row's `count` nearest rows, by cosine of `vectors`, that the codes' dot product finds again.

    Args:
        vectors: `(rows, size)`, some thousand rows at most: all pairs are compared.
        codes: of the same rows, `(rows, latent_size)`.
        count: fewer than there are rows.

    Raises:
        ValueError: if there are not so many other rows.
    """
    if not sparse.issparse(codes) or np.ndim(vectors) != 2 or codes.shape[0] != len(vectors):
        shapes = f"{np.shape(vectors)} and a {type(codes).__name__} of {np.shape(codes)}"
        raise ValueError(
            f"`codes` must be a sparse matrix with a row for each of `vectors`, got {shapes}; encode them."
        )
    check_positive(count=count)
    if not 0 < count < len(vectors):
        raise ValueError(f"`count` must be from 1 to {len(vectors) - 1}, the other rows, got {count}; give more rows.")
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    nearest = []
    for similarity in (unit @ unit.T, (codes @ codes.T).toarray()):
        np.fill_diagonal(similarity, -np.inf)
        nearest.append(np.argpartition(-similarity, count, axis=1)[:, :count])
    return float(np.mean([len(np.intersect1d(a, b)) / count for a, b in zip(*nearest, strict=True)]))
