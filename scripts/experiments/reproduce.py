"""The paper's figures: `reproduce.py figure2 --dataset yahoo dbpedia --output_dir runs/reproduction`, and so on."""

import signal
import sys

if __name__ == "__main__":  # the imports take seconds: a signal ends them without a traceback
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

from reproduction import ReproduceArguments, reproduce

from hsvae_hf.arguments import parse
from hsvae_hf.cli import run
from hsvae_hf.reporting import finish, say


def main() -> None:
    """Run what is missing, write the figure, print what it shows."""
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words.insert(0, "--figure")  # `reproduce.py figure2` reads better
    options = parse(ReproduceArguments, __doc__, words)
    say(f"reproduce.py: {options.figure} on {', '.join(options.dataset)}, size {options.size}, to {options.output_dir}")
    print(reproduce(options))
    finish(f"{options.output_dir}: the figure, its table, and finished runs in runs/", {})


if __name__ == "__main__":
    run(main)
