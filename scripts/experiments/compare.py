"""Compare models on one data set under one budget: a table, and a figure in the form of the paper's Figure 2."""

import signal
import sys

if __name__ == "__main__":  # the imports take seconds: a signal ends them without a traceback
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

from comparison import CompareArguments, compare, markdown

from hsvae_hf.arguments import parse
from hsvae_hf.cli import run
from hsvae_hf.reporting import finish, say


def main() -> None:
    """Run what is missing, write the table and the figure, print the table."""
    options = parse(CompareArguments, __doc__)
    say(
        f"compare.py: {len(options.models)} models on {options.dataset}, to {options.output_dir}",
        f"training: {options.max_steps:,} steps of {options.batch_size:,} rows, {options.seeds} runs of each",
    )
    result = compare(options)
    print(markdown(result["models"]))
    print(f"TF-IDF with logistic regression on the same rows, untruncated: {result['tfidf']:.3f}")
    finish(f"{options.output_dir}: comparison.md and .json, comparison.png; finished runs are in runs/", {})


if __name__ == "__main__":
    run(main)
