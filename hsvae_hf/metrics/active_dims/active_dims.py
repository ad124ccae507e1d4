"""Active dimensions: how many dimensions of a code are not zero, over a corpus."""

import datasets
import evaluate

from hsvae_hf.metrics import code_metric
from hsvae_hf.sparsity import CodeStatistics

_DESCRIPTION = """\
Counts the non-zero dimensions of sparse codes. `active_dims` and `sparsity_ratio` mean what they mean in
sentence-transformers.
"""

_INPUTS = """\
Args:
    predictions: codes, (batch, d): a numpy array, torch tensor, scipy sparse matrix or nested list.
Returns:
    active_dims (float): mean number of non-zero dimensions of a row.
    min_active_dims, max_active_dims (int): the fewest and the most in a row.
    sparsity_ratio (float): share of all entries that are zero, 1 - active_dims / d.
    ever_active_ratio (float): share of the dimensions that are non-zero in at least one row.
    empty_rows (float): share of the rows that are all zero.
Examples:
    >>> metric = evaluate.load("active_dims")
    >>> metric.compute(predictions=[[0.0, 3.0, 0.0, 0.0], [0.0, 1.0, 0.0, -1.0]])
    {'active_dims': 1.5, 'min_active_dims': 1, 'max_active_dims': 2, 'sparsity_ratio': 0.625,
     'ever_active_ratio': 0.5, 'empty_rows': 0.0}
"""

_REPORTED = (
    "active_dims",
    "min_active_dims",
    "max_active_dims",
    "sparsity_ratio",
    "ever_active_ratio",
    "empty_rows",
)


class ActiveDims(code_metric.CodeMetric):
    """Active dimensions over a corpus that is added in batches."""

    accumulator_class = CodeStatistics

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float32"))}),
        )

    def _compute(self, accumulator: CodeStatistics) -> dict[str, float | int]:
        result = accumulator.compute()
        return {name: result[name] for name in _REPORTED}
