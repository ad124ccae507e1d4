"""Average Hoyer: how sparse the codes of a corpus are, row by row."""

import datasets
import evaluate

from hsvae_hf.metrics import code_metric
from hsvae_hf.sparsity import AverageHoyer

_DESCRIPTION = """\
Hoyer(z) = (sqrt(d) - |z|_1 / |z|_2) / (sqrt(d) - 1) is 1 for a row with a single non-zero and 0 for a row of equal
magnitudes. Average Hoyer is its mean over the rows of a corpus, by default after dividing every dimension by its
standard deviation over the corpus. Values are not comparable between codes of different width.
"""

_INPUTS = """\
Args:
    predictions: codes, (batch, d), d at least 2: a numpy array, torch tensor, scipy sparse matrix or nested list.
    normalize (bool): divide every dimension by its standard deviation over the corpus first. Defaults to True.
Returns:
    average_hoyer (float): mean over the rows that are not all zero, NaN if every row is.
    empty_rows (float): share of the rows that are all zero; such a row has no Hoyer and is left out of the mean.
    constant_dims (int): dimensions of zero standard deviation, which are not divided; 0 without `normalize`.
Examples:
    >>> metric = evaluate.load("average_hoyer")
    >>> metric.add_batch(predictions=[[0.0, 3.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    >>> metric.compute(normalize=False)
    {'average_hoyer': 0.5, 'empty_rows': 0.0, 'constant_dims': 0}
"""

_CITATION = """\
@article{hurley2009comparing,
  title={Comparing Measures of Sparsity},
  author={Hurley, Niall and Rickard, Scott},
  journal={IEEE Transactions on Information Theory},
  volume={55}, number={10}, pages={4723--4741}, year={2009}
}
@inproceedings{prokhorov2021learning,
  title={Learning Sparse Sentence Encoding without Supervision: An Exploration of Sparsity in Variational Autoencoders},
  author={Prokhorov, Victor and Li, Yingzhen and Shareghi, Ehsan and Collier, Nigel},
  booktitle={Proceedings of the 6th Workshop on Representation Learning for NLP (RepL4NLP-2021)},
  year={2021}
}
"""


class AverageHoyerMetric(code_metric.CodeMetric):
    """Average Hoyer over a corpus that is added in batches."""

    accumulator_class = AverageHoyer

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float32"))}),
        )

    def _compute(self, accumulator: AverageHoyer, normalize: bool = True) -> dict[str, float | int]:
        return accumulator.compute(normalize)
