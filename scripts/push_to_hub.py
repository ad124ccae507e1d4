"""Push a trained model to the Hub: weights, code, tokenizer, card and report, in one commit."""

import signal
import sys
from dataclasses import dataclass, field

if __name__ == "__main__":  # the imports take seconds: a signal ends them without a traceback
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

from transformers import HfArgumentParser

from hsvae_hf.cli import run
from hsvae_hf.hub import push_to_hub


@dataclass
class PushArguments:
    """What to push, and where to."""

    model_name_or_path: str = field(metadata={"help": "Folder of a run."})
    repo_id: str = field(metadata={"help": "user/name on the Hub."})
    private: bool | None = field(default=None, metadata={"help": "Whether a new repository is private."})
    token: str | None = field(default=None, metadata={"help": "A write token; else that of `hf auth login`."})
    dataset_id: str | None = field(default=None, metadata={"help": "The training data on the Hub, for the card."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a model of another type."})
    card: str | None = field(default=None, metadata={"help": "A README.md of your own instead of the generated card."})


def main() -> None:
    """Push, print where to."""
    (options,) = HfArgumentParser(PushArguments).parse_args_into_dataclasses()
    settings = (options.private, options.token, options.dataset_id, options.overwrite, options.card)
    print(push_to_hub(options.model_name_or_path, options.repo_id, *settings))


if __name__ == "__main__":
    run(main)
