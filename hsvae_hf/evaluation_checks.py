"""Checks of what an evaluation takes, before the first row is measured: budgets, tasks, vectors of training rows."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.evaluation_systems import VALUE_BITS, active_dims_of_bytes
from hsvae_hf.evaluation_tasks import Task
from hsvae_hf.input_checks import check_active_dims, check_numbers, check_vectors


def check_systems(
    model: PreTrainedModel, active_dims: Any, bytes_per_code: Any, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Refuse budgets that codes of the model cannot have; the arguments are those of `model_systems`.

    Raises:
        ValueError: naming the argument.
    """
    check_numbers(bytes_per_code=bytes_per_code)
    if not isinstance(active_dims, Sequence | np.ndarray):
        check_numbers(active_dims=active_dims)
    for count in active_dims:
        check_active_dims(model, active_dims=count)
    words = model.config.decodes_words
    if words and tokenizer is None:
        raise ValueError("`tokenizer` must be the model's for one that decodes words, got None; pass it.")
    if words and len(bytes_per_code):
        raise ValueError(f"`bytes_per_code` needs a model of vectors, got {list(bytes_per_code)}; leave it out.")
    for size in bytes_per_code:
        check_bytes(size, model.config.latent_size)


def check_bytes(size: int, width: int) -> None:
    """Refuse a number of bytes in which there is no room for one of `width` dimensions.

    Raises:
        ValueError: saying so.
    """
    if not any(active_dims_of_bytes(size, width, bits) for bits in VALUE_BITS):
        raise ValueError(f"`bytes_per_code` must fit one of {width} dimensions, got {size}; allow more bytes.")


def check_tasks(tasks: Any) -> Sequence[Task]:
    """Refuse what holds no tasks; those of a list are given back to look at, an iterator is left unread.

    Raises:
        ValueError: saying what to pass.
    """
    several = isinstance(tasks, Iterable) and not isinstance(tasks, str | Task)
    listed = tasks if several and isinstance(tasks, Sequence) else ()
    wrong = next((task for task in listed if not isinstance(task, Task)), None) if several else tasks
    if wrong is not None or not several:
        raise ValueError(
            f"`tasks` must be several tasks, got {type(wrong).__name__} {str(wrong)[:50]!r}; pass those of "
            "`load_tasks(suite, ...)`, a single one as a list."
        )
    return listed


def check_fits(model: PreTrainedModel, task: Task) -> None:
    """Refuse a task that the model cannot code: without text for a model of words, of vectors of another width.

    Raises:
        ValueError: naming the task.
    """
    check_tasks([task])
    if model.config.decodes_words:
        if not all(part in task.texts for part in task.vectors):
            raise ValueError(f"`tasks` must have text for a model of words, got none in {task.name}; leave it out.")
        return
    for part, vectors in task.vectors.items():
        if vectors.shape[1] != model.config.feature_size:
            raise ValueError(
                f"`tasks` must have vectors of {model.config.feature_size} numbers for this model, got "
                f"{vectors.shape[1]} in {task.name}, {part}; encode them by the encoder of this model."
            )


def check_training(models: Iterable[Any], training: Any, name: str = "training") -> np.ndarray:
    """Vectors that baselines are fitted on and that choose the bits of a value, once they are known to be such.

    Args:
        models: that are measured; those of words put no condition on the width.
        training: what was given.
        name: how to call it in an error.

    Raises:
        ValueError: if they are no matrix of finite numbers with two rows, or of another width than a model takes.
    """
    for model in models:
        if not model.config.decodes_words:
            training = check_vectors(model, training, name)
    array = np.asarray(training)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(
            f"`{name}` must be finite numbers, (rows, size), of at least 2 rows, got {array.dtype} of {array.shape}; "
            "give vectors of training rows."
        )
    return array
