"""Average Hoyer, as an `evaluate` module."""

from hsvae_hf.metrics import code_metric
from hsvae_hf.sparsity_measures import AverageHoyer


class AverageHoyerMetric(code_metric.CodeMetric):
    """Average Hoyer of codes over a corpus; the README beside this file names the fields of the result.

    `compute(normalize=False)` leaves out the division of every dimension by its standard deviation over the corpus.
    """

    accumulator_class = AverageHoyer

    def _compute(self, accumulator: AverageHoyer, normalize: bool = True) -> dict[str, float | int]:
        return accumulator.compute(normalize)
