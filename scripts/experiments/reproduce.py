"""The paper's figures, and studies beside them, from runs that are kept.

    python scripts/experiments/reproduce.py figure2 --dataset yahoo dbpedia --output_dir runs/reproduction

| name | what it shows | runs at the default size, per data set |
| --- | --- | --- |
| figure2 | accuracy and Average Hoyer of all models | 3 of each of 15 models |
| figure3 | Average Hoyer during training, by prior and weights | 3 of each of 9 |
| figure4 | dimensions that each class switches on | those of HSVAE in figure2 |
| figure5 | divergence between the words of classes | none |
| gates | what drives the gates | 3 of each of 36 |
| dial | wanted and found numbers of non-zeros | 3 of each of 4 |
| nonzeros | accuracy by the number of non-zeros | those of dial, and as many on the encoder |

A run takes some minutes on two cores with `--size small`, about an hour with `--size hours`. Finished runs are kept.
"""

import json
import sys
from collections.abc import Callable

import torch
import transformers
from figures import figure2, figure3, figure4, figure5
from pictures import STYLES
from reproduction import SIZES, Figure, ReproduceArguments, scale
from studies import dial, gates, nonzeros

import hsvae_hf
from hsvae_hf.cli import run
from hsvae_hf.command_line import choose, parse
from hsvae_hf.console import finish, say
from hsvae_hf.extras import require
from hsvae_hf.files import staged_folder

FIGURES: dict[str, Callable[[ReproduceArguments], Figure]] = {
    figure.__name__: figure for figure in (figure2, figure3, figure4, figure5, gates, dial, nonzeros)
}


def check(options: ReproduceArguments) -> None:
    """Refuse options that do not fit the figure or each other.

    Raises:
        ValueError: for the first that does not.
    """
    options.figure = choose("figure", options.figure, FIGURES)
    options.size = choose("size", options.size, SIZES)
    if options.seeds < 1:
        raise ValueError(f"`seeds` must be at least 1, got {options.seeds}; raise it.")
    sizes = options.latent_sizes
    most = len(STYLES) - 1  # one is for systems without a latent
    if not 1 <= len(sizes) <= most or min(sizes) < 2:
        raise ValueError(f"`latent_sizes` must be up to {most} numbers from 2 on, got {sizes}; choose such.")
    if len(set(options.names)) < len(options.names):
        raise ValueError(f"`dataset` must have different names, got {options.dataset}; rename one.")
    for name, readers in (("models", ("figure2", "gates")), ("codes_json", ("nonzeros",))):
        if getattr(options, name) is not None and options.figure not in readers:
            raise ValueError(
                f"`{name}` must be left out for {options.figure}, got a value; it is for {' and '.join(readers)}."
            )


def reproduce(options: ReproduceArguments) -> str:
    """Train what is missing; write the figure's PNG, JSON and Markdown to the output folder.

    Returns:
        The paragraph on what it shows.

    Raises:
        ImportError: without the extra `train`.
        ValueError: if there is no such figure, size or model, or the data has no labels.
    """
    require("matplotlib", "sklearn")
    check(options)
    if options.figure != "figure2":
        options.latent_sizes = options.latent_sizes[:1]
    figure = FIGURES[options.figure](options)
    versions = {module.__name__: module.__version__ for module in (hsvae_hf, torch, transformers)}
    content = {"settings": vars(options) | {"scale": scale(options)} | versions, "numbers": figure.numbers}
    with staged_folder(options.output_dir) as folder:
        figure.picture.savefig(folder / f"{options.figure}.png", dpi=150)
        (folder / f"{options.figure}.json").write_text(json.dumps(content, indent=1) + "\n")
        (folder / f"{options.figure}.md").write_text(figure.text + "\n")
    return figure.text


def main() -> None:
    """Run what is missing, write the figure, print what it shows."""
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words.insert(0, "--figure")  # `reproduce.py figure2` reads better
    options = parse(ReproduceArguments, __doc__.partition("\n")[0], words)
    say(f"reproduce.py: {options.figure} on {', '.join(options.dataset)}, size {options.size}, to {options.output_dir}")
    print(reproduce(options))
    finish(f"{options.output_dir}: the figure, its table, and finished runs in runs/", {})


if __name__ == "__main__":
    run(main)
