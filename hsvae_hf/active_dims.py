"""Thresholds and code scales that are fitted after training."""

import logging
from collections.abc import Iterable, Sized
from numbers import Real
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from scipy import sparse
from scipy.optimize import fmin_l_bfgs_b
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.batching import input_batches
from hsvae_hf.encoding import evaluation_mode
from hsvae_hf.inputs import check_model, check_positive, check_sentences, check_strings, check_vectors

logger = logging.getLogger(__name__)


def calibrate_threshold(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Dataset | Iterable[str] | np.ndarray,
    target_active_dims: float,
    batch_size: int = 256,
) -> float:
    """Set `active_threshold` so that codes of `dataset` have `target_active_dims` non-zeros on average.

    Give rows that the model was not trained on, of the kind that it is to encode. Those that it was trained on have
    longer codes than others, so other codes would be too short: 13 non-zeros instead of 16, for instance.
    The vectors that a model was trained on are recognised and warned of, and so are rows too few to tell.

    Args:
        model: with gates, with or without its decoder.
        tokenizer: the model's; None where it takes vectors alone.
        dataset: sentences, or an array of vectors `(rows, size)`, or a `Dataset` with a column `text` or `vectors`;
            held-out rows, of which a few thousand are enough.
        target_active_dims: between 0 and the number of dimensions.
        batch_size: sentences per forward pass.

    Returns:
        The threshold, which is in `model.config` now; `save_pretrained` keeps it.

    Raises:
        ValueError: if `dataset` holds nothing that the model takes, the model has no gates, or it cannot have so many
            active dimensions.
    """
    _check_target(model, target_active_dims)
    rows = _as_dataset(model, dataset)
    seen = _Seen(model)
    batches = (seen.note(inputs) for _, inputs in input_batches(model, tokenizer, rows, batch_size, "Calibrate"))
    threshold, counts = _fit_threshold(model, batches, target_active_dims)
    error = 2 * counts.std() / np.sqrt(len(counts))
    if error > 0.1 * target_active_dims:
        logger.warning(
            "`dataset` has %d rows, too few to tell: codes of others will have %.3g non-zeros on average, give or take "
            "%.2g. Give more rows.",
            len(counts),
            target_active_dims,
            error,
        )
    if seen.in_training():
        logger.warning(
            "`dataset` holds the vectors that the model was trained on, whose codes are longer than others: codes of "
            "other rows will have fewer than %.3g non-zeros. Give rows that were held out.",
            target_active_dims,
        )
    model.config.active_threshold = threshold
    return threshold


def _as_dataset(model: PreTrainedModel, dataset: Any) -> Dataset:
    rule = "`dataset` must be a list of sentences or rows of vectors"
    if isinstance(dataset, str):
        raise ValueError(f"{rule}, got the string {dataset[:50]!r}; give some.")
    shape = getattr(dataset, "shape", None)
    if isinstance(dataset, Sized) and shape != () and not len(dataset):
        raise ValueError(f"{rule}, got an empty {type(dataset).__name__}; give some.")
    if isinstance(dataset, Dataset):
        return dataset
    if isinstance(dataset, np.ndarray | Tensor) and np.asarray(dataset).dtype.kind not in "OSU":
        if model.config.decodes_words:
            raise ValueError("`dataset` must be sentences for a model of words, got an array; pass a list of them.")
        return Dataset.from_dict({"vectors": list(check_vectors(model, dataset))})
    check_sentences(dataset, "dataset")
    texts = list(dataset)
    check_strings(texts, "dataset")
    if not texts:
        raise ValueError(f"{rule}, got an empty {type(dataset).__name__}; give some.")
    return Dataset.from_dict({"text": texts})


class _Seen:
    """Whether a model of vectors was trained on the very rows that it is given.

    The mean of rows that it was not trained on is off that of its standardizer by chance, and the mean square of the
    difference is about one divided by the number of rows, in standardised units. Of those it was trained on, or of a
    file of which it was trained on 95%, it is a twentieth of that at most.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.standardizer = getattr(model.base_model, "standardizer", None)
        self.rows, self.sum = 0, np.zeros(1)

    def note(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if self.standardizer is not None:
            rows = self.standardizer(inputs["vectors"].float())
            self.rows, self.sum = self.rows + len(rows), self.sum + rows.double().sum(0).cpu().numpy()
        return inputs

    def in_training(self) -> bool:
        if self.rows < 2 or self.standardizer is None or not self.standardizer.mean.any():  # not trained on anything
            return False
        return bool(((self.sum / self.rows) ** 2).mean() * self.rows < 0.1)


def set_threshold(model: PreTrainedModel, batches: Iterable[dict[str, Any]], target_active_dims: float) -> float:
    """`calibrate_threshold` on batches of the model's input.

    Raises:
        ValueError: as there; if there is no batch.
    """
    model.config.active_threshold, _ = _fit_threshold(model, batches, target_active_dims)
    return cast(float, model.config.active_threshold)


def _check_target(model: PreTrainedModel, target_active_dims: Any) -> int:
    """The number of dimensions that a code has at most."""
    check_model(model)
    if not hasattr(model.config, "active_threshold"):
        raise ValueError(
            f"`model` must have gates with a threshold, got a {model.config.model_type}; use another type."
        )
    size = model.config.latent_size
    most = min(size, model.config.max_active_dims or size)
    number = isinstance(target_active_dims, Real) and not isinstance(target_active_dims, bool)
    if not number or not 0 < target_active_dims < most:
        raise ValueError(
            f"`target_active_dims` must be between 0 and {most}, got {target_active_dims!r}; choose such a number."
        )
    return int(most)


def _fit_threshold(
    model: PreTrainedModel, batches: Iterable[dict[str, Any]], target_active_dims: float
) -> tuple[float, np.ndarray]:
    """The threshold, and the number of non-zeros of each row at it."""
    most = _check_target(model, target_active_dims)
    base = cast(Any, model.base_model)
    with evaluation_mode(base):
        parts = (base.latent_head.diagnostics(base(**inputs))["spike_probability"] for inputs in batches)
        arrays = [part.float().cpu().numpy() for part in parts]
    if not arrays:
        raise ValueError("`batches` must hold at least one batch of the model's input, got none; give some rows.")
    gates = np.concatenate(arrays)
    off = np.partition(gates, most - 1, axis=1)[:, :most].ravel()  # no code has more than `max_active_dims`
    rank = min(max(1, round(target_active_dims * len(gates))), len(off) - 1)
    threshold = float(np.partition(off, (rank - 1, rank))[rank - 1 : rank + 1].mean(dtype=np.float64))
    threshold = min(max(threshold, 1e-6), 1 - 1e-6)
    found = float((off < threshold).sum()) / len(gates)
    if abs(found - target_active_dims) > max(0.5, 0.1 * target_active_dims):
        raise ValueError(
            f"`target_active_dims` must be a number that the gates allow, got {target_active_dims}: the nearest is "
            f"{found:.1f}, as gates of equal value cannot be told apart."
        )
    return threshold, np.minimum((gates < threshold).sum(axis=1), most)


def hold_target(model: PreTrainedModel, batches: Iterable[dict[str, Any]]) -> None:
    """`set_threshold` to the number of active dimensions that the model was trained for, if to any.

    Training holds that number on its own text. Gates that do not allow it are warned of, since a run is not lost.
    """
    check_model(model)
    target = cast(Any, model.base_model).latent_head.target_active_dims
    if target is None:
        return
    try:
        set_threshold(model, batches, target)
    except ValueError as error:
        logger.warning("`active_threshold` stays %s: %s", model.config.active_threshold, error)


NEAR_PAIRS, OTHER_PAIRS = 50, 5  # of each row
RIDGE = 0.3  # pull towards one scale for all: rare dimensions meet too few pairs to tell


@torch.inference_mode()
def fit_code_scale(model: PreTrainedModel, vectors: np.ndarray, rows: int = 8000) -> None:
    """Set the scale of each code dimension so that dot products of codes rank neighbours as those of the vectors do.

    The least-squares solution over each row's nearest rows and a few at random: scales `s > 0` that minimise
    `sum_{m, n} (sum_i s_i^2 c_mi c_ni - x_m . x_n)^2`, c the unscaled codes and x the vectors, a quadratic in `s^2`.
    A ridge pulls them towards one scale for all. Over all pairs, far ones would decide. Dimensions that no row uses get
    the mean scale.

    Args:
        model: of `decoder_type="vector"`.
        vectors: of its encoder, `(any, feature_size)`; `rows` of them are used.
        rows: at least a few thousand, where there are so many.

    Raises:
        ValueError: if the model reconstructs words, or the vectors are not such as it takes.
    """
    check_model(model)
    check_positive(rows=rows)
    if model.config.decodes_words:
        raise ValueError("`model` must be one of `decoder_type='vector'`, got one of words: its codes have no scale.")
    vectors = check_vectors(model, vectors)
    if not len(vectors):
        raise ValueError("`vectors` must hold at least one row, got none; give some thousand.")
    base: Any = model.base_model
    scale: Tensor = base.code_scale
    scale.fill_(1.0)
    chosen = np.sort(np.random.default_rng(0).permutation(len(vectors))[:rows])  # rows may be sorted by class
    data = torch.from_numpy(vectors[chosen].astype(np.float32, copy=False)).to(scale.device)
    with evaluation_mode(base):
        parts = [base(vectors=part, return_dict=True).sparse_embedding.cpu() for part in data.split(1024)]
    codes = sparse.vstack([sparse.csr_matrix(part) for part in parts])
    first, second, products = _pairs(data)
    shared = codes[first].multiply(codes[second]).tocsr().astype(np.float64)
    used = codes.getnnz(axis=0) > 0
    a, b = (shared.T @ shared).toarray(), shared.T @ products
    if not a.sum() > 0:  # no two rows share a dimension
        return
    even = max(b.sum() / a.sum(), 1e-12)
    ridge = RIDGE * a.diagonal()[used].mean()
    a, b = a + ridge * np.eye(len(b)), b + ridge * even
    start, bounds = np.full(len(b), even), [(0.01 * even, None)] * len(b)  # a scale of 0 would switch dimensions off
    weights, _, _ = fmin_l_bfgs_b(
        lambda w: (0.5 * w @ (product := a @ w) - b @ w, product - b), start, bounds=bounds, maxiter=500
    )
    weights[~used] = weights[used].mean()
    scale.copy_(torch.from_numpy(weights).sqrt())


def _pairs(data: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row with its nearest rows and some others, never with itself: indices of both, and their dot products."""
    size, found = len(data), []
    generator = torch.Generator().manual_seed(0)
    for start in range(0, size, 1024):
        rows = torch.arange(start, min(start + 1024, size))
        products = data[rows] @ data.T
        products[torch.arange(len(rows)), rows] = -torch.inf
        near = products.topk(min(NEAR_PAIRS, size - 1)).indices
        others = torch.randint(1, max(2, size), (len(rows), OTHER_PAIRS), generator=generator) + rows.unsqueeze(1)
        chosen = torch.cat([near, others.to(near.device) % size], dim=1)
        pairs = rows.unsqueeze(1).expand_as(chosen), chosen, products.gather(1, chosen)
        found.append([part.reshape(-1).cpu().numpy() for part in pairs])
    first, second, similarity = (np.concatenate(parts) for parts in zip(*found, strict=True))
    kept = np.isfinite(similarity)  # of a single row there is no other
    return first[kept], second[kept], similarity[kept].astype(np.float64)
