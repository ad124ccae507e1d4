"""Active dimensions, as an `evaluate` module."""

from hsvae_hf.metrics import code_metric
from hsvae_hf.sparsity_measures import CodeStatistics

FIELDS = ("active_dims", "min_active_dims", "max_active_dims", "sparsity_ratio", "ever_active_ratio", "empty_rows")


class ActiveDims(code_metric.CodeMetric):
    """Non-zero dimensions of sparse codes over a corpus; the README beside this file names the fields of the result."""

    accumulator_class = CodeStatistics

    def _compute(self, accumulator: CodeStatistics) -> dict[str, float | int]:
        result = accumulator.compute()
        return {name: result[name] for name in FIELDS}
