"""What the paper's figures and the studies beside them share: sizes of runs, and the runs of each data set."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from comparison import CompareArguments, Comparison

from hsvae_hf.data import MAX_LENGTHS

# Options of `compare.py`, where they differ from its defaults.
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "max_steps": 400,
        "learning_rate": 5e-3,
        "vocab_size": 3000,
        "max_length": 20,
        "max_train_samples": 4000,
        "max_samples": 2000,
        "classifier_epochs": 3,
    },
    "hours": {
        "max_steps": 3000,
        "learning_rate": 3e-3,
        "vocab_size": 10_000,
        "embedding_size": 128,
        "hidden_size": 256,
        "max_train_samples": None,
        "classifier_epochs": 3,
        "curve_points": 20,
    },
    "paper": {
        "max_steps": 6000,
        "batch_size": 256,
        "learning_rate": 8e-4,
        "vocab_size": 20_000,
        "embedding_size": 256,
        "hidden_size": 512,
        "word_dropout": 0.0,
        "max_train_samples": None,
        "max_samples": None,
        "classifier_epochs": 15,
    },
}
# Gates follow the sentence late, so the small runs of their studies take more steps, and more rows.
SMALL_STUDY = {"learning_rate": 5e-3, "max_length": 30, "max_samples": 2000, "classifier_epochs": 2}
# Rows and tokens of the figure `nonzeros`; `dial` shares its runs.
AS_VECTORS = {"max_train_samples": 8000, "max_samples": 2500, "encoder_max_length": 128}


@dataclass
class ReproduceArguments:
    """Which figure, of which data, at which size."""

    figure: str = field(metadata={"help": "figure2, figure3, figure4, figure5, gates, dial or nonzeros."})
    dataset: list[str] = field(metadata={"help": "Short names, Hub ids or local paths, with labels."})
    output_dir: str = field(metadata={"help": "Folder of figures and finished runs; a call goes on where one ended."})
    size: str = field(
        default="small", metadata={"help": "small (minutes a run on two cores), hours (there too) or paper (a GPU)."}
    )
    dataset_config_name: str | None = field(
        default=None,
        metadata={"aliases": ["--dataset_config"], "help": "Configuration of a data set that has several."},
    )
    seeds: int = field(default=3, metadata={"help": "Runs of each; figure4 shows the first."})
    latent_sizes: list[int] = field(
        default_factory=lambda: [32, 768], metadata={"help": "Latent dimensions; the first, but for figure2."}
    )
    encoder_name_or_path: str = field(
        default="bert-base-uncased", metadata={"help": "Text encoder of the B- models, frozen; of `nonzeros` too."}
    )
    models: list[str] | None = field(default=None, metadata={"help": "figure2 and gates: which; all by default."})
    codes_json: str | None = field(
        default=None, metadata={"help": "nonzeros: codes.json of compare_codes.py, measured with logistic."}
    )

    @property
    def names(self) -> list[str]:
        """Of the data sets, in figures."""
        return [Path(dataset).name for dataset in self.dataset]

    @property
    def latent_size(self) -> int:
        """Of all figures but figure2."""
        return self.latent_sizes[0]


class Figure(NamedTuple):
    """A matplotlib figure, the numbers in it, and a paragraph on what they show."""

    picture: Any
    numbers: list[dict[str, Any]]
    text: str


def scale(options: ReproduceArguments) -> dict[str, Any]:
    """How large the runs of a figure are."""
    study = options.figure in ("gates", "dial", "nonzeros")
    result: dict[str, Any] = SMALL_STUDY if study and options.size == "small" else SIZES[options.size]
    if options.figure == "figure3":
        return result | {"curve_points": 8}
    return result | AS_VECTORS if options.figure in ("dial", "nonzeros") else result


def comparisons(
    options: ReproduceArguments, systems: Sequence[str], group: str = "figures", size: int | None = None
) -> dict[str, Comparison]:
    """The runs of some systems on each data set, by its name; what is wrong with any is told before the first run.

    Args:
        options: of the figure.
        systems: their names.
        group: of figures that share runs.
        size: of the codes; the first of the options by default.
    """
    size = size or options.latent_size
    result = {}
    for dataset, name in zip(options.dataset, options.names, strict=True):
        fields: dict[str, Any] = {
            "dataset": dataset,
            "dataset_config_name": options.dataset_config_name,
            "output_dir": str(Path(options.output_dir) / "runs" / f"{group}-{options.size}-{name}-{size}"),
            "encoder_name_or_path": options.encoder_name_or_path,
            "models": list(systems),
            "max_length": MAX_LENGTHS.get(name, 60),
            "latent_size": size,
            "seeds": options.seeds,
        }
        result[name] = Comparison(CompareArguments(**(fields | scale(options))))
    return result
