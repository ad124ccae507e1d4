"""Thresholds and code scales fitted after training: how many non-zeros codes have, and how large they are."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from scipy import sparse
from scipy.optimize import fmin_l_bfgs_b
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.corpus import input_batches
from hsvae_hf.encoding import evaluation_mode
from hsvae_hf.input_checks import (
    as_tensor,
    check_model,
    check_positive,
    check_sentences,
    check_strings,
    check_vectors,
)
from hsvae_hf.models.modeling_text_vae import TextVAEModel
from hsvae_hf.sparsity_measures import Moments

logger = logging.getLogger(__name__)

SMALLEST_THRESHOLD = 1e-6  # a threshold of 0 or 1 would switch all dimensions off or on
NEAR_PAIRS, OTHER_PAIRS = 50, 5  # of each row, for the scale of codes
RIDGE = 0.3  # pull towards one scale for all: rare dimensions meet too few pairs to tell


def calibrate_threshold(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Dataset | Iterable[str] | np.ndarray | Tensor,
    target_active_dims: float | None = None,
    batch_size: int = 256,
) -> float:
    """Set `active_threshold` so that codes of `dataset` have `target_active_dims` non-zeros on average.

    Without a number, codes get as many as draws have on: `mean_x sum_i P(dimension i is on | x)`. Whatever the number,
    it is the dimensions whose gates are the most open that are on.

    Give rows that the model was not trained on, of the kind that it is to encode. Codes of its training rows are longer
    than those of other rows, so a threshold from them gives other rows too few non-zeros: 13 instead of 16, for
    instance. Two warnings are logged: if these are the vectors that the model was trained on, and if the rows are too
    few for a reliable mean.

    Args:
        model: with gates, with or without its decoder.
        tokenizer: the model's; None where it takes vectors alone.
        dataset: held-out rows, of which a few thousand are enough: sentences, an array of vectors `(rows, size)`, or a
            `Dataset` with a column `text` or `vectors`.
        target_active_dims: between 0 and the number of dimensions; None is the mean number that draws use.
        batch_size: sentences per forward pass.

    Returns:
        The threshold, which is in `model.config` now; `save_pretrained` keeps it.

    Raises:
        ValueError: if `dataset` holds nothing that the model takes, the model has no gates, or it cannot have so many
            active dimensions.
    """
    _check_gates(model)
    if target_active_dims is not None:
        _check_target(model, target_active_dims)
    rows = _as_dataset(model, dataset)
    body = cast(TextVAEModel, model.base_model)
    seen = Moments()  # of the standardised vectors

    def batches() -> Iterator[dict[str, Tensor]]:
        for _, inputs in input_batches(model, tokenizer, rows, batch_size, "Calibrate"):
            if not model.config.decodes_words:
                seen.update(body.standardizer(inputs["vectors"].float()).cpu().numpy())
            yield inputs

    threshold, counts = _threshold(model, _gates(model, batches()), target_active_dims)
    number, error = counts.mean(), 2 * counts.std() / np.sqrt(len(counts))
    if error > 0.1 * number:
        logger.warning(
            "`dataset` has %d rows, too few to tell: codes of others will have %.3g non-zeros on average, give or take "
            "%.2g. Give more rows.",
            len(counts),
            number,
            error,
        )
    if not model.config.decodes_words and _are_training_rows(model, seen):
        logger.warning(
            "`dataset` holds the vectors that the model was trained on, whose codes are longer than others: codes of "
            "other rows will have fewer than %.3g non-zeros. Give rows that were held out.",
            number,
        )
    model.config.active_threshold = threshold
    return threshold


def hold_target(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Set `active_threshold` so that codes have the number of non-zeros that the model was trained for.

    That is `target_active_dims`, or what the prior wants where gates are balanced. Where it was trained for none, or
    the gates do not allow the prior's number, it is the mean number that draws use, as of `calibrate_threshold`. Where
    they do not allow `target_active_dims`, a warning is logged and the threshold stays, since a run is not lost.

    Args:
        model: with or without its decoder; one without a threshold to set is left alone.
        batches: held-out rows, as the model takes them.
    """
    if not sets_threshold(model):
        return
    wanted = cast(Any, model.base_model).latent_head.wanted_active_dims
    asked_for = getattr(model.config, "target_active_dims", None) is not None
    try:
        gates = _gates(model, batches)
        try:
            threshold, _ = _threshold(model, gates, wanted)
        except ValueError:
            if wanted is None or asked_for:
                raise
            threshold, _ = _threshold(model, gates, None)
        model.config.active_threshold = threshold
    except ValueError as error:
        logger.warning("`active_threshold` stays %s: %s", model.config.active_threshold, error)


def sets_threshold(model: PreTrainedModel) -> bool:
    """Whether a threshold on gates decides how many non-zeros codes have, so that training ends by setting it."""
    check_model(model)
    return hasattr(model.config, "active_threshold") and not is_fixed(model)


def _check_gates(model: PreTrainedModel) -> None:
    check_model(model)
    if not hasattr(model.config, "active_threshold"):
        raise ValueError(
            f"`model` must have gates with a threshold, got a {model.config.model_type}; use another type."
        )
    if is_fixed(model):
        raise ValueError(
            f"`model` must have codes whose length the gates decide, got one with {model.config.min_active_dims} "
            "non-zeros in every code; pass `active_dims` to `encode`, or set its `min_active_dims` and "
            "`max_active_dims` apart."
        )


def _check_target(model: PreTrainedModel, target_active_dims: object) -> None:
    number = isinstance(target_active_dims, Real) and not isinstance(target_active_dims, bool)
    least, most = model.config.min_active_dims, most_active_dims(model)
    if not number or not least < cast(float, target_active_dims) < most:
        raise ValueError(
            f"`target_active_dims` must be between {least} and {most}, got {target_active_dims!r}; choose such a "
            "number."
        )


def is_fixed(model: PreTrainedModel) -> bool:
    """Whether all codes have the same number of non-zeros."""
    return bool(model.config.min_active_dims == most_active_dims(model))


def most_active_dims(model: PreTrainedModel) -> int:
    """The number of non-zeros that a code has at most."""
    size = int(model.config.latent_size)
    return min(size, model.config.max_active_dims or size)


def _as_dataset(model: PreTrainedModel, dataset: Dataset | Iterable[str] | np.ndarray | Tensor) -> Dataset:
    if isinstance(dataset, Tensor) or (isinstance(dataset, np.ndarray) and dataset.dtype.kind not in "OSU"):
        if model.config.decodes_words:
            raise ValueError("`dataset` must be sentences for a model of words, got an array; pass a list of them.")
        rows = Dataset.from_dict({"vectors": list(check_vectors(model, dataset))})
    elif isinstance(dataset, Dataset):
        rows = dataset
    else:
        check_sentences(dataset, "dataset")
        texts = list(dataset)
        check_strings(texts, "dataset")
        rows = Dataset.from_dict({"text": texts})
    if len(rows) == 0:
        raise ValueError("`dataset` must hold at least one row, got none; give some thousand.")
    return rows


def _are_training_rows(model: PreTrainedModel, standardized: Moments) -> bool:
    """Whether a model of vectors was trained on the very rows whose moments, standardised by the model, are given.

    The mean of other rows differs from the one in the standardizer by chance: the mean square of the difference is
    about 1 / rows. For the rows that the model was trained on, or a file of which it was trained on 95%, it is a
    twentieth of that at most.
    """
    trained = bool(cast(TextVAEModel, model.base_model).standardizer.mean.any())
    by_chance = 1 / standardized.rows
    return trained and standardized.rows > 1 and float(np.square(standardized.mean).mean()) < 0.1 * by_chance


def _gates(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> np.ndarray:
    """Probabilities of being off, `(rows, latent_size)`."""
    _check_gates(model)
    body = cast(TextVAEModel, model.base_model)
    with evaluation_mode(body):
        posteriors = (body(**inputs) for inputs in batches)
        parts = [body.latent_head.diagnostics(posterior)["spike_probability"].cpu() for posterior in posteriors]
    if not parts:
        raise ValueError("`batches` must hold at least one batch of the model's input, got none; give some rows.")
    return torch.cat(parts).float().numpy()


def _threshold(model: PreTrainedModel, gates: np.ndarray, target_active_dims: float | None) -> tuple[float, np.ndarray]:
    """The threshold between the gates that are wanted on and the others; the non-zeros of each row, `(rows,)`."""
    if target_active_dims is not None:
        _check_target(model, target_active_dims)
    least, most = model.config.min_active_dims, most_active_dims(model)
    drawn = float(np.clip((1 - gates).sum(axis=1).mean(), least, most))  # as far as the limits of a code allow
    threshold, counts = threshold_of(gates, drawn if target_active_dims is None else target_active_dims, least, most)
    nearest = float(counts.mean())
    if target_active_dims is not None and abs(nearest - target_active_dims) > max(0.5, 0.1 * target_active_dims):
        raise ValueError(
            f"`target_active_dims` must be a number that the gates allow, got {target_active_dims}: the nearest is "
            f"{nearest:.1f}, as gates of equal value cannot be told apart."
        )
    return threshold, counts


def threshold_of(gates: np.ndarray, target_active_dims: float, least: int, most: int) -> tuple[float, np.ndarray]:
    """The threshold that gives codes so many non-zeros on average, or as near to it as gates of equal value allow.

    Args:
        gates: probabilities of being off, `(rows, latent_size)`; a dimension is on below the threshold.
        target_active_dims: from `least` to `most`.
        least: non-zeros that every code has.
        most: non-zeros that a code has at most.

    Returns:
        The threshold, and the non-zeros of each row, `(rows,)`.
    """
    ascending = np.sort(np.sort(gates, axis=1)[:, least:most], axis=None)  # gates that the threshold decides on
    wanted = round((target_active_dims - least) * len(gates))  # non-zeros of all rows together, beside the fewest
    wanted = min(max(wanted, 1), len(ascending) - 1)  # one gate below the threshold and one above
    last_on, first_off = ascending[wanted - 1].astype(np.float64), ascending[wanted].astype(np.float64)
    threshold = float(np.clip((last_on + first_off) / 2, SMALLEST_THRESHOLD, 1 - SMALLEST_THRESHOLD))
    counts = (gates < threshold).sum(axis=1).clip(least, most)
    return threshold, counts


@torch.inference_mode()
def fit_code_scale(model: PreTrainedModel, vectors: np.ndarray, rows: int = 8000) -> None:
    """Set the scale of each code dimension so that dot products of codes rank neighbours as those of the vectors do.

    The scales `s > 0` minimise `sum_{m, n} (sum_i s_i^2 c_mi c_ni - x_m . x_n)^2`, c the unscaled codes and x the
    vectors, a quadratic in `s^2`. The sum is over each row's nearest rows and a few at random; over all pairs, far ones
    would decide. A ridge pulls the scales towards one for all. Dimensions that no row uses get the mean scale.

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
    body = cast(TextVAEModel, model.base_model)
    scale = body.code_scale
    scale.fill_(1.0)
    chosen = np.sort(np.random.default_rng(0).permutation(len(vectors))[:rows])  # rows may be sorted by class
    data = as_tensor(vectors[chosen]).to(scale.device)
    with evaluation_mode(body):
        parts = [body(vectors=part, return_dict=True).sparse_embedding.cpu() for part in data.split(1024)]
    codes = sparse.vstack([sparse.csr_matrix(part) for part in parts])
    weights = _fit_weights(codes, *_pairs(data))
    if weights is not None:
        scale.copy_(torch.from_numpy(weights).sqrt())


def _fit_weights(
    codes: sparse.csr_matrix, first: np.ndarray, second: np.ndarray, products: np.ndarray
) -> np.ndarray | None:
    """The squared scales, `(latent_size,)`; None if no two rows share a dimension.

    Args:
        codes: unscaled, `(rows, latent_size)`.
        first: row numbers, of `_pairs`.
        second: likewise.
        products: dot products of the vectors, of `_pairs`.
    """
    shared = codes[first].multiply(codes[second]).tocsr().astype(np.float64)  # (pairs, latent_size)
    quadratic, linear = (shared.T @ shared).toarray(), shared.T @ products
    if not quadratic.sum() > 0:
        return None
    even = max(linear.sum() / quadratic.sum(), 1e-12)  # the best weight if there were one for all
    used = codes.getnnz(axis=0) > 0
    ridge = RIDGE * quadratic.diagonal()[used].mean()
    quadratic = quadratic + ridge * np.eye(len(linear))
    linear = linear + ridge * even

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient of `w A w / 2 - b w`."""
        product = quadratic @ weights
        return 0.5 * weights @ product - linear @ weights, product - linear

    start = np.full(len(linear), even)
    bounds = [(0.01 * even, None)] * len(linear)  # a scale of 0 would switch a dimension off
    weights, _, _ = fmin_l_bfgs_b(objective, start, bounds=bounds, maxiter=500)
    weights[~used] = weights[used].mean()
    return cast(np.ndarray, weights)


def _pairs(data: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row of `data` `(rows, size)` with its nearest rows and some others, never with itself.

    Returns:
        Row numbers of the first and of the second of each pair, and the dot products of their vectors, `(pairs,)` each.
    """
    size = len(data)
    generator = torch.Generator().manual_seed(0)
    first, second, similarity = [], [], []
    for start in range(0, size, 1024):
        rows = torch.arange(start, min(start + 1024, size))
        products = data[rows] @ data.T
        products[torch.arange(len(rows)), rows] = -torch.inf
        near = products.topk(min(NEAR_PAIRS, size - 1)).indices
        others = torch.randint(1, max(2, size), (len(rows), OTHER_PAIRS), generator=generator) + rows.unsqueeze(1)
        chosen = torch.cat([near, others.to(near.device) % size], dim=1)  # (rows, pairs of a row)
        first.append(rows.unsqueeze(1).expand_as(chosen).flatten())
        second.append(chosen.flatten())
        similarity.append(products.gather(1, chosen).flatten())
    columns = [torch.cat(parts).cpu().numpy() for parts in (first, second, similarity)]
    kept = np.isfinite(columns[2])  # of a single row there is no other
    return columns[0][kept], columns[1][kept], columns[2][kept].astype(np.float64)
