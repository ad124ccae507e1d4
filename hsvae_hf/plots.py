"""Pictures of codes: which dimensions the sentences of each class switch on."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hsvae_hf.extras import require
from hsvae_hf.files import staged_file


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
