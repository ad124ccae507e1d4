"""Statistics of a model over a corpus: loss terms, sparsity, gates, collapse; what classes share."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from transformers import PreTrainedModel

from hsvae_hf.encoding import at_length_one, evaluation_mode
from hsvae_hf.input_checks import check_model, check_positive
from hsvae_hf.models.modeling_text_vae import TextVAEForPreTraining, TextVAEModel
from hsvae_hf.models.outputs import TextVAEModelOutput
from hsvae_hf.sparsity_measures import AverageHoyer, Codes, CodeStatistics, Moments, as_matrix

ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2016: a unit is active if E[z_i|x] varies more than this over sentences
MUTUAL_INFORMATION_ROWS = 512  # the ceiling of the estimate is the logarithm of this number, 6.2 nats
NEIGHBOURS = 10
NEIGHBOUR_ROWS = 1000
FEWEST_NEIGHBOUR_ROWS = 100  # ten neighbours are a large share of fewer rows
SIMILARITIES = ("cosine", "dot")  # how codes are compared; the first where both keep as many neighbours
AVERAGE_HOYER = {  # name in the report: name of the draw, or in `LatentHead.diagnostics`
    "samples": "z",
    "posterior_means": "posterior_mean",
    "slab_means": "slab_mean",
}


class EvenSample:
    """An even sample of the rows of a stream: every row draws a random number, and the smallest stay.

    Args:
        size: number of rows to keep.

    Example:
        >>> sample = EvenSample(size=3)
        >>> sample.update(torch.arange(5)); sample.update(torch.arange(5, 10))
        >>> sample.columns[0].shape
        torch.Size([3])
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.columns: list[Tensor] = []  # of the rows that are kept
        self._keys = torch.empty(0, dtype=torch.float64)
        self._generator = np.random.default_rng(0)

    def update(self, *columns: Tensor) -> None:
        """Add rows.

        Args:
            columns: what is kept of a row, `(batch, ...)` each; the same number of columns in every call.
        """
        keys = torch.from_numpy(self._generator.random(len(columns[0]))).to(columns[0].device)
        if self.columns:
            keys = torch.cat([self._keys, keys])
            columns = tuple(torch.cat([kept, added]) for kept, added in zip(self.columns, columns, strict=True))
        smallest = keys.argsort()[: self.size]
        self._keys = keys[smallest]
        self.columns = [column[smallest] for column in columns]


@torch.inference_mode()
def corpus_statistics(model: TextVAEForPreTraining, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Loss terms, sparsity, gates and collapse on a corpus, in one pass and in bounded memory.

    Args:
        model: for pre-training, in evaluation mode.
        batches: the corpus, as the model takes it; see `input_batches`.

    Returns:
        The means of the loss terms per sentence, `rows`, and where words are decoded `tokens` and `perplexity`.
        `average_hoyer_samples` and so on, normalised, and the same without as `..._raw`.
        What `CodeStatistics.compute` gives, of the deterministic codes.
        `active_units`: dimensions whose posterior mean varies. `kl_per_dimension`: nats, unweighted, of values and
        gate. `mutual_information`, see there. Where vectors are reconstructed, `squared_error` of a draw and
        `squared_error_code` of the deterministic code, per standardised dimension, and `neighbours_kept`, see there, of
        the first 1,000 rows, by the model's own `similarity_fn_name`.

    Raises:
        ValueError: if there is no batch, or the model diverged.
    """
    statistics = _CorpusStatistics(model)
    for inputs in batches:
        statistics.update(inputs)
    return statistics.compute()


class _CorpusStatistics:
    """What `corpus_statistics` adds up."""

    def __init__(self, model: TextVAEForPreTraining) -> None:
        self.model, self.body = model, model.model
        self.rows = 0
        self.terms: dict[str, float] = {}  # sums over rows
        self.codes = CodeStatistics()
        self.hoyer: dict[str, AverageHoyer] = {}
        self.posterior_means = Moments()
        self.posteriors = EvenSample(MUTUAL_INFORMATION_ROWS)
        self.kl = np.zeros(model.config.latent_size)  # sum over rows
        self.neighbours = _Neighbours(self.body)

    def update(self, inputs: Mapping[str, Tensor]) -> None:
        """Add a batch."""
        posterior: TextVAEModelOutput = self.body(**inputs, return_dict=True)
        report = self.body.latent_head.diagnostics(posterior)
        draw = self.body.sample(posterior)
        terms = dict(self.model(**inputs, encoder_outputs=posterior, return_dict=True))
        if not self.model.config.decodes_words:
            terms["squared_error_code"] = self._squared_error(posterior)
            self.neighbours.update(posterior)
        for name, value in terms.items():
            weight = 1 if name == "num_tokens" else len(posterior.latent)
            self.terms[name] = self.terms.get(name, 0.0) + float(value) * weight
        self.codes.update(posterior.sparse_embedding, report.get("spike_probability"))
        self.posterior_means.update(report["posterior_mean"].double().cpu().numpy())
        self._add_hoyer({"z": draw["z"]} | report)
        self._add_kl(self.body.costs(posterior, draw))
        self._add_posteriors(posterior, report)
        self.rows += len(posterior.latent)

    def _squared_error(self, posterior: TextVAEModelOutput) -> Tensor:
        """Mean squared error per standardised dimension of the deterministic code."""
        latents = posterior.sparse_embedding / self.body.code_scale
        return (self.model.decoder.mean(latents) - posterior.features).square().mean()

    def _add_hoyer(self, representations: Mapping[str, Tensor]) -> None:
        for name, key in AVERAGE_HOYER.items():
            if key in representations and representations[key].shape[-1] > 1:  # it is not defined for one dimension
                self.hoyer.setdefault(name, AverageHoyer()).update(representations[key])

    def _add_kl(self, costs: Mapping[str, Tensor]) -> None:
        names = ["z_kl", "gamma_kl"] if self.body.latent_head.independent_gates else ["z_kl"]
        for name in names:
            if name in costs:
                self.kl += costs[name].double().sum(0).cpu().numpy()

    def _add_posteriors(self, posterior: TextVAEModelOutput, report: Mapping[str, Tensor]) -> None:
        std = posterior.get("slab_std", posterior.get("std"))
        if std is None or not self.body.latent_head.independent_gates:
            return
        mean = report.get("slab_mean", report["posterior_mean"])
        off = report.get("spike_probability", torch.zeros_like(mean))
        self.posteriors.update(off.double(), mean.double(), std.double())

    def compute(self) -> dict[str, Any]:
        """Everything, over all batches."""
        codes = self.codes.compute()
        result: dict[str, Any] = {"rows": self.rows} | self._term_means()
        for name, statistics in self.hoyer.items():
            result[f"average_hoyer_{name}"] = statistics.compute()["average_hoyer"]
            result[f"average_hoyer_{name}_raw"] = statistics.compute(normalize=False)["average_hoyer"]
        result |= codes
        result["active_units"] = int((np.square(self.posterior_means.std) > ACTIVE_UNIT_VARIANCE).sum())
        if self.posteriors.columns:
            result["mutual_information"] = mutual_information(*self.posteriors.columns)
        if self.kl.any():
            result["kl_per_dimension"] = (self.kl / self.rows).tolist()
        if self.neighbours.rows >= FEWEST_NEIGHBOUR_ROWS:
            result["neighbours_kept"] = self.neighbours.kept(self.model.config.similarity_fn_name)
        return result

    def _term_means(self) -> dict[str, float]:
        """The loss terms per sentence; where there are words, their number and the perplexity too."""
        means = {name: value / self.rows for name, value in self.terms.items() if name != "num_tokens"}
        if "num_tokens" in self.terms:
            tokens = self.terms["num_tokens"]
            means["tokens"] = int(tokens)
            means["perplexity"] = math.exp(self.terms["reconstruction_loss"] / tokens)
        return means


class _Neighbours:
    """The first rows of a corpus, as vectors and as codes."""

    def __init__(self, body: TextVAEModel) -> None:
        self.body, self.rows = body, 0
        self.vectors: list[np.ndarray] = []
        self.codes: list[sparse.csr_matrix] = []

    def update(self, posterior: TextVAEModelOutput) -> None:
        """Add a batch, as far as rows are missing."""
        missing = NEIGHBOUR_ROWS - self.rows
        if missing > 0:
            vectors = self.body.standardizer.undo(posterior.features[:missing])
            self.vectors.append(vectors.float().cpu().numpy())
            self.codes.append(sparse.csr_matrix(posterior.sparse_embedding[:missing].float().cpu().numpy()))
            self.rows += len(vectors)

    def kept(self, similarity_fn_name: str) -> float:
        """`neighbours_kept` of these rows."""
        vectors, codes = np.concatenate(self.vectors), sparse.vstack(self.codes, format="csr")
        return neighbours_kept(vectors, codes, NEIGHBOURS, similarity_fn_name)


def fit_similarity(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """Set `similarity_fn_name` of the configuration to what keeps more of the ten nearest rows by vector.

    Args:
        model: of `decoder_type="vector"`, finished: what the scale and the threshold of codes are decides the answer.
        batches: held-out rows, as the model takes them; the first 1,000 are looked at.

    Returns:
        `neighbours_kept` by each scoring, in [0, 1]. Nothing, and nothing is set, of fewer than 100 rows.

    Raises:
        ValueError: if the model reconstructs words, and so has no vectors to measure by.
    """
    check_model(model)
    if model.config.decodes_words:
        raise ValueError("`model` must be one of `decoder_type='vector'`, got one of words, which keeps the cosine.")
    body = cast(TextVAEModel, model.base_model)
    rows = _Neighbours(body)
    with evaluation_mode(body):
        for inputs in batches:
            rows.update(body(**inputs, return_dict=True))
    if rows.rows < FEWEST_NEIGHBOUR_ROWS:
        return {}
    kept = {name: rows.kept(name) for name in SIMILARITIES}
    model.config.similarity_fn_name = max(SIMILARITIES, key=kept.__getitem__)
    return kept


def mutual_information(off: Tensor, mean: Tensor, std: Tensor) -> float:
    """Estimate of I(x; z) in nats: how well a draw tells which of these N sentences it is of; at most log N.

    `1/N sum_n [log q(z_n|x_n) - log 1/N sum_m q(z_n|x_m)]`, `z_n ~ q(z|x_n)`, where z is taken with its spike/slab
    indicator, `q = prod_i off_i^(1-s_i) ((1 - off_i) N(z_i; mean_i, std_i^2))^(s_i)`.

    Args:
        off: probabilities of the spike, `(N, latent_size)`, 0 where there is none.
        mean: of the slab, likewise.
        std: of the slab, likewise.

    Example:
        >>> distant = 100.0 * torch.arange(8.0).unsqueeze(1)
        >>> information = mutual_information(torch.zeros(8, 1), distant, torch.ones(8, 1))
        >>> math.isclose(information, math.log(8), rel_tol=1e-6)
        True
    """
    on = (torch.rand_like(off) >= off).to(off.dtype)
    z = on * (mean + std * torch.randn_like(mean))
    log_on, log_off = torch.log1p(-off.clamp_max(1 - 1e-12)), off.clamp_min(1e-12).log()
    precision = std**-2
    constant = log_on - std.log() - 0.5 * mean**2 * precision - log_off  # of the slab against the spike, without z
    log_q = log_off.sum(1) + on @ constant.T + z @ (mean * precision).T - 0.5 * z**2 @ precision.T  # (draws, sentences)
    information = log_q.diagonal() - log_q.logsumexp(1) + math.log(len(off))
    return float(information.mean())


def neighbours_kept(
    vectors: np.ndarray, codes: sparse.csr_matrix, count: int = 10, similarity_fn_name: str = "dot"
) -> float:
    """Share of each row's `count` nearest rows by cosine of `vectors` that are nearest by codes too, in [0, 1].

    Args:
        vectors: `(rows, size)`, some thousand rows at most: all pairs are compared.
        codes: of the same rows, `(rows, latent_size)`.
        count: fewer than there are rows.
        similarity_fn_name: how codes are compared, "dot" or "cosine".

    Raises:
        ValueError: if there are not so many other rows, or no such comparison.

    Example:
        >>> vectors = np.eye(3)[[0, 0, 1, 1, 2, 2]]
        >>> neighbours_kept(vectors, sparse.csr_matrix(vectors), count=1)
        1.0
    """
    if not sparse.issparse(codes) or np.ndim(vectors) != 2 or codes.shape[0] != len(vectors):
        shapes = f"{np.shape(vectors)} and a {type(codes).__name__} of {np.shape(codes)}"
        raise ValueError(
            f"`codes` must be a sparse matrix with a row for each of `vectors`, got {shapes}; encode them."
        )
    check_positive(count=count)
    if count >= len(vectors):
        raise ValueError(f"`count` must be from 1 to {len(vectors) - 1}, the other rows, got {count}; give more rows.")
    if similarity_fn_name not in SIMILARITIES:
        rule = " or ".join(map(repr, SIMILARITIES))
        raise ValueError(f"`similarity_fn_name` must be {rule}, got {similarity_fn_name!r}; choose one.")
    if similarity_fn_name == "cosine":
        codes = at_length_one(codes)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    by_vector = _nearest(unit @ unit.T, count)
    by_code = _nearest((codes @ codes.T).toarray(), count)
    shared = [len(np.intersect1d(first, second)) for first, second in zip(by_vector, by_code, strict=True)]
    return float(np.mean(shared) / count)


def _nearest(similarity: np.ndarray, count: int) -> np.ndarray:
    """The `count` most similar other rows of each row, `(rows, count)`, in no order."""
    np.fill_diagonal(similarity, -np.inf)
    return np.argpartition(-similarity, count, axis=1)[:, :count]


def class_gate_activity(active: Codes, labels: np.ndarray | Tensor, num_classes: int) -> np.ndarray:
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

    Example:
        >>> class_gate_activity([[2.0, 0.0], [0.0, 0.0], [1.0, 1.0]], np.array([0, 0, 1]), num_classes=2)
        array([[0.5, 0. ],
               [1. , 1. ]])
    """
    check_positive(num_classes=num_classes)
    codes = as_matrix(active)
    on = (codes.toarray() if sparse.issparse(codes) else codes) != 0
    classes = as_matrix(labels)
    if on.ndim != 2 or classes.shape != on.shape[:1]:
        raise ValueError(
            "`active` must be a (sentences, latent_size) matrix with one of `labels` per sentence, got shapes "
            f"{on.shape} and {classes.shape}; pass codes, and their labels in order."
        )
    if classes.dtype.kind not in "iub" or classes.min(initial=0) < 0 or classes.max(initial=0) >= num_classes:
        raise ValueError(
            f"`labels` must be class indices in [0, {num_classes}), got {classes.dtype} such as {classes[:3]}; "
            "pass `num_classes` of the data set, and no unlabelled sentences."
        )
    activity = np.full((num_classes, on.shape[1]), np.nan)
    for index in np.unique(classes):
        activity[index] = on[classes == index].mean(axis=0)
    return activity
