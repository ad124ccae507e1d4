"""The base of this package's `evaluate` modules."""

from typing import Any

import datasets
import evaluate

from hsvae_hf.sparsity_measures import AverageHoyer, Codes, CodeStatistics

_INPUTS = """\
Args:
    predictions: codes, (batch, d): a numpy array, torch tensor, scipy sparse matrix or nested list.
"""


class CodeMetric(evaluate.Metric):
    """A metric of codes that hands batches to an accumulator, where `evaluate` would keep Python lists of numbers.

    Raises:
        ValueError: if `num_process` is not 1: an accumulator sees the codes of one process.
    """

    accumulator_class: type[AverageHoyer] | type[CodeStatistics]

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        if self.num_process != 1:
            raise ValueError(f"`num_process` must be 1, got {self.num_process}; gather the codes in one process.")
        self.accumulator = self.accumulator_class()

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float32"))}),
        )

    def __len__(self) -> int:
        """Number of codes since the last `compute`."""
        return self.accumulator.rows

    def add(self, *, prediction: object, **others: object) -> None:
        """Add one code, `(d,)`."""
        self.add_batch(predictions=[prediction])

    def add_batch(self, *, predictions: Codes, **others: object) -> None:
        """Add codes, `(batch, d)`."""
        self.accumulator.update(predictions)

    def compute(
        self, *, predictions: Codes | None = None, references: None = None, **options: object
    ) -> dict[str, Any]:
        """Give the result for `predictions` and all codes before, and start afresh."""
        if predictions is not None:
            self.add_batch(predictions=predictions)
        accumulator, self.accumulator = self.accumulator, self.accumulator_class()
        return self._compute(accumulator, **options)
