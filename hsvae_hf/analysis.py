"""What gates and codes do over a corpus: statistics, use by class, neighbours kept, and figures.

Gates come as `gate_mean`, E[gamma|x], shape `(sentences, latent_size)`. gamma is the spike probability: near 1 the
dimension is off. A dimension is on where `gate_mean < threshold`, as in the model's sparse embedding.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from hsvae_hf.extras import require
from hsvae_hf.files import staged_file
from hsvae_hf.inputs import check_positive


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


def dimension_order(activity: np.ndarray) -> np.ndarray:
    """Order of the dimensions that shows structure: a block for each class, then what classes share, then the unused.

    A dimension belongs to the class that uses it most if that class stands out from the mean by at least 0.1.
    """
    share = activity[~np.isnan(activity).any(axis=1)]
    mean = share.mean(axis=0)
    contrast = share.max(axis=0) - mean
    distinctive = contrast >= 0.1
    block = np.where(distinctive, share.argmax(axis=0), len(share))
    return np.lexsort((-np.where(distinctive, contrast, mean), block))


def new_figure(**options: Any) -> Any:
    """A matplotlib `Figure` without a screen.

    Raises:
        ImportError: without matplotlib, of the extra `train`.
    """
    require("matplotlib")
    from matplotlib.figure import Figure

    return Figure(**options)


def plot_gate_heatmap(
    activity: np.ndarray, class_names: Sequence[str], path: str | os.PathLike[str], title: str | None = None
) -> None:
    """Write a heat map of the dimensions each class uses, classes by dimensions, as a PNG.

    Dimensions are reordered: first a block for each class, of the dimensions that class uses more than the others do,
    then the others, from always on to never on.

    Args:
        activity: result of `class_gate_activity`, `(num_classes, latent_size)`; a row of NaN is left grey.
        class_names: one name per class.
        path: file to write; it appears under this name only when complete.
        title: line above the heat map.

    Raises:
        ImportError: without matplotlib, of the extra `train`.
        ValueError: if there is not one name per class.
    """
    activity = _to_array(activity)
    if activity.ndim != 2 or len(class_names) != len(activity):
        raise ValueError(
            f"`class_names` must name each row of `activity`, got {len(class_names)} names for shape {activity.shape}. "
            "Pass the names in the order of the labels."
        )
    num_classes, latent_size = activity.shape
    figure = new_figure(figsize=(9, 1.3 + 0.3 * num_classes), dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.8")
    image = axes.imshow(
        activity[:, dimension_order(activity)], aspect="auto", cmap="magma_r", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_yticks(range(num_classes), class_names)
    axes.set_yticks(np.arange(0.5, num_classes - 1), minor=True)
    axes.grid(axis="y", which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.set_xticks([])
    axes.set_ylabel("class")
    axes.set_xlabel(f"{latent_size} latent dimensions: those of each class, then those shared, then those hardly on")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="share of sentences\nwith the dimension on", aspect=25, pad=0.02)
    if title is not None:
        axes.set_title(title, loc="left")
    with staged_file(Path(path), "path") as unfinished:
        figure.savefig(unfinished, format="png")


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
