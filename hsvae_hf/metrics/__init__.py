"""Metrics of sparse codes as `evaluate` modules: `evaluate.load(metric_path("average_hoyer"))`."""

from pathlib import Path

_METRICS = ("active_dims", "average_hoyer")


def metric_path(name: str) -> str:
    """Folder of a metric, to hand to `evaluate.load` or to push to the Hub as a Space.

    Raises:
        ValueError: if the package has no metric of that name.
    """
    if name not in _METRICS:
        raise ValueError(f"`name` must be one of {list(_METRICS)}, got {name!r}. Pass one of these names.")
    return str(Path(__file__).parent / name)
