"""Push a trained model to the Hub: weights, code, tokenizer, card and report, in one commit."""

import before_imports  # noqa: F401 - first: see there

import shlex
from dataclasses import dataclass, field

from hsvae_hf.argument_names import known_as
from hsvae_hf.cli import run
from hsvae_hf.command_line import parse
from hsvae_hf.console import finish, say
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
    options = parse(PushArguments, __doc__)
    say(f"push_to_hub.py: {options.model_name_or_path} to {options.repo_id}, one commit")
    settings = (options.private, options.token, options.dataset_id, options.overwrite, options.card)
    with known_as(folder="model_name_or_path"):
        url = push_to_hub(options.model_name_or_path, options.repo_id, *settings)
    code = f"from transformers import AutoModel; AutoModel.from_pretrained({options.repo_id!r}, trust_remote_code=True)"
    finish(url, {}, shlex.join(["python", "-c", code]))


if __name__ == "__main__":
    run(main)
