"""Compare models on one data set under one budget: a table, and a figure in the form of the paper's Figure 2."""

import signal
import sys

if __name__ == "__main__":  # the imports take seconds: a signal ends them without a traceback
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

from transformers import HfArgumentParser

from hsvae_hf.cli import run
from hsvae_hf.comparison import CompareArguments, compare, markdown


def main() -> None:
    """Run what is missing, write the table and the figure, print the table."""
    (options,) = HfArgumentParser(CompareArguments).parse_args_into_dataclasses()
    result = compare(options)
    print(markdown(result["models"]))
    print(f"TF-IDF with logistic regression on the same rows, untruncated: {result['tfidf']:.3f}")


if __name__ == "__main__":
    run(main)
