"""The paper's figures, and this package's own two: runs that are kept, pictures, numbers, and what they show."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from comparison import CompareArguments, Comparison, base_of, is_classifier, read_json, system_name
from word_divergence import class_kl

import hsvae_hf
from hsvae_hf.arguments import choose
from hsvae_hf.data import MAX_LENGTHS, load_text_dataset, tokenize_dataset
from hsvae_hf.embedding_cache import embed_dataset, load_encoder_tokenizer
from hsvae_hf.extras import require
from hsvae_hf.files import staged_folder
from hsvae_hf.models.modeling_hsvae import HSVAEForPreTraining
from hsvae_hf.plots import dimension_order, new_figure
from hsvae_hf.probes import probe_accuracy

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "max_steps": 400,
        "batch_size": 64,
        "learning_rate": 5e-3,
        "vocab_size": 3000,
        "embedding_size": 64,
        "hidden_size": 128,
        "word_dropout": 0.5,
        "max_length": 20,
        "max_train_samples": 4000,
        "max_samples": 2000,
        "classifier_epochs": 3,
    },
    "hours": {
        "max_steps": 3000,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "vocab_size": 10_000,
        "embedding_size": 128,
        "hidden_size": 256,
        "word_dropout": 0.5,
        "max_train_samples": None,
        "max_samples": 3000,
        "classifier_epochs": 3,
        "curve_points": 20,
        "checkpoints": True,
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
# Gates follow the sentence late: studies of them take longer runs.
LONGER: dict[str, dict[str, Any]] = {
    "small": {
        "max_steps": 1000,
        "vocab_size": 5000,
        "max_length": 30,
        "max_train_samples": 8000,
        "classifier_epochs": 2,
    },
    "hours": {},
    "paper": {},
}
GRU_SYSTEMS = ["HSVAE", "HSVAE-balanced", "VAE", "VAE_L1", "VAE_L2", "MAT-VAE", "VSC", "SDLGM", "Sparsemax", "Simple"]
BERT_SYSTEMS = ["B-HSVAE", "B-HSVAE-balanced", "B-VAE", "B-MAT-VAE", "BERT"]
PRIORS = [(1, 4), (30, 30), (30, 10), (4, 1), (10, 1)]  # alpha, beta
MAT_WEIGHTS = [(0.01, 0.01), (0.01, 1.0), (1.0, 0.01), (1.0, 1.0)]  # psi, lambda
TARGETS = [8, 16, 32, 64]
STUDY = {  # what may drive the gates: one change of the paper's settings at a time, then of this package's
    "HSVAE": [
        "kl_estimator=mc",
        "kl_estimator=closed_form",
        "kl_estimator=collapsed",
        "z_kl_weight=0.1",
        "gamma_kl_weight=0.1",
        "gamma_kl_weight=0.001",
        "prior_alpha=1 prior_beta=1",
        "concrete_temperature=0.2",
        "concrete_temperature=1.0",
        "condition_slab_on_gate=true",
        "learning_rate=0.002",
        "learning_rate=0.01",
        "max_steps=3000",
        "kl_annealing=linear kl_warmup_steps=500",
        "free_bits=0.1",
        "word_dropout=0.0",
        "latent_size=256",
        "kl_estimator=collapsed prior_alpha=10 prior_beta=0.2",
        "kl_estimator=collapsed target_active_dims=8",
        "gate_balance_weight=1.0",
        "gate_balance_weight=1.0 gamma_kl_weight=0.001",
    ],
    "HSVAE-balanced": [
        "gate_balance_weight=0.3",
        "gate_balance_weight=10.0",
        "gamma_kl_weight=0.01",
        "z_kl_weight=0.001",
        "learning_rate=0.01",
        "max_steps=3000",
        "target_active_dims=8",
        "target_active_dims=16",
        "latent_size=256",
    ],
}
STUDIED = {  # number of a run: its name in a table and its digits
    "accuracy_code": ("code", 3),
    "accuracy_gate": ("gate", 3),
    "accuracy_samples": ("draw", 3),
    "accuracy": ("K = 5", 3),
    "threshold": ("threshold", 2),
    "active_dims": ("active", 1),
    "gate_std": ("std", 3),
    "switching_fraction": ("switch", 2),
    "dead_dims": ("dead", 0),
    "always_on_dims": ("always on", 0),
    "mutual_information": ("MI", 2),
    "reconstruction_loss": ("nats", 1),
}
FIGURE_2: tuple[str, ...] = ("accuracy", "accuracy_code", "average_hoyer_samples", "average_hoyer_posterior_means")
FIGURE_2 += ("accuracy_gate", "active_dims", "reconstruction_loss")
# Rows and tokens of compare_vectors.py, whose codes are in the same figure.
AS_VECTORS: dict[str, Any] = {"max_train_samples": 8000, "max_samples": 2500, "encoder_max_length": 128}
GREYS = ("0.15", "0.6", "0.85", "0.4")
MARKS = ("o-", "s--", "^:", "v-.", "D-", "x--", "*:", "P-.")


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
    vectors_json: str | None = field(
        default=None, metadata={"help": "nonzeros: vectors.json of compare_vectors.py on the same rows and encoder."}
    )


def scale(options: ReproduceArguments) -> dict[str, Any]:
    """How large the runs of a figure are."""
    found = dict(SIZES[options.size])
    if options.figure == "figure3":
        found["curve_points"] = 8
    if options.figure in ("gates", "dial", "nonzeros"):
        found |= LONGER[options.size]
    if options.figure in ("dial", "nonzeros"):  # they share their runs
        found |= AS_VECTORS
    return found


def comparison(
    options: ReproduceArguments, dataset: str, latent_size: int, group: str = "figures", models: Sequence[str] = ()
) -> Comparison:
    """The runs of one data set at one latent size; figures of one group share them."""
    folder = Path(options.output_dir) / "runs" / f"{group}-{options.size}-{Path(dataset).name}-{latent_size}"
    fields: dict[str, Any] = {
        "dataset": dataset,
        "dataset_config_name": options.dataset_config_name,
        "output_dir": str(folder),
        "encoder_name_or_path": options.encoder_name_or_path,
        "models": list(models),
        "max_length": MAX_LENGTHS.get(Path(dataset).name, 60),
        "latent_size": latent_size,
        "search_runs": 0,
        "seeds": options.seeds,
    }
    fields |= scale(options)
    made = Comparison(CompareArguments(**fields))
    made.check_encoder()
    return made


def results(made: Comparison, system: str, seeds: int) -> list[dict[str, Any]]:
    """Of every seed of a system, trained where that is not done."""
    return [made.result(system, None, seed) for seed in range(1, seeds + 1)]


def spread(runs: Sequence[dict[str, Any]], name: str) -> Any:
    """Mean and sample deviation over runs, which of one run is None; nothing where a model has no such number."""
    values = [run[name] for run in runs if name in run]
    return (float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None) if values else None


def with_bars(values: Sequence[tuple[float, float | None]]) -> tuple[list[float], list[float]]:
    """Means and the lengths of their error bars."""
    return [mean for mean, _ in values], [deviation or 0.0 for _, deviation in values]


def shown(value: Any, digits: int = 3) -> str:
    """Mean and deviation as text."""
    if value is None:
        return "-"
    return f"{value[0]:.{digits}f}" + ("" if value[1] is None else f" ± {value[1]:.{digits}f}")


def table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown, with the rows' keys as its head."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([row.get(name, "-") for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def side_by_side(
    rows: Sequence[dict[str, Any]], heads: Sequence[str], cells: Callable[[dict[str, Any]], dict[str, str]]
) -> str:
    """Markdown, the cells of all rows with the same heads in one line."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        head = {name: "-" if row[name] is None else str(row[name]) for name in heads}
        lines.setdefault(tuple(head.values()), head).update(cells(row))
    return table(list(lines.values()))


def name_of(dataset: str) -> str:
    """Of a data set in a figure."""
    return Path(dataset).name


Made = tuple[Any, Any, str]  # figure, numbers, text


def figure2(options: ReproduceArguments) -> Made:
    """Accuracy and Average Hoyer of all models."""
    numbers: list[dict[str, Any]] = []
    systems = options.models or GRU_SYSTEMS + BERT_SYSTEMS
    for dataset in options.dataset:
        for size in options.latent_sizes:
            first = size == options.latent_sizes[0]
            own = [name for name in systems if first or (base_of(name) and not is_classifier(name))]  # others have none
            made = comparison(options, dataset, size, models=own)
            for system in own:
                runs = results(made, system, options.seeds)
                row: dict[str, Any] = {"dataset": name_of(dataset), "latent_size": size, "model": system}
                row["code_size"] = runs[0]["latent_size"]
                for name in FIGURE_2:
                    row[name] = spread(runs, name)
                numbers.append(row | {"seeds": len(runs)})
    figure = new_figure(figsize=(1 + 4.2 * len(options.dataset), 5.6), layout="constrained")
    axes = figure.subplots(2, len(options.dataset), squeeze=False, sharex=True)
    panels = (("accuracy", "accuracy, K = 5 classifier"), ("average_hoyer_samples", "Average Hoyer of samples"))
    for column, dataset in enumerate(options.dataset):
        for line, (name, label) in enumerate(panels):
            axis = axes[line, column]
            for place, size in enumerate(options.latent_sizes):
                rows = [row for row in numbers if (row["dataset"], row["latent_size"]) == (name_of(dataset), size)]
                found = [(systems.index(row["model"]), row[name]) for row in rows if row[name] is not None]
                width = 0.8 / len(options.latent_sizes)
                positions = [index + width * (place - (len(options.latent_sizes) - 1) / 2) for index, _ in found]
                means, deviations = with_bars([value for _, value in found])
                axis.bar(positions, means, width, yerr=deviations, color=GREYS[place], label=f"{size} dimensions")
            axis.set_ylabel(label)
        axes[0, column].set_title(name_of(dataset))
        axes[1, column].set_xticks(range(len(systems)), systems, rotation=60, ha="right")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper right", ncols=len(GREYS), frameon=False, fontsize=8)

    def cells(row: dict[str, Any]) -> dict[str, str]:
        hoyer = "" if row["average_hoyer_samples"] is None else f" ({row['average_hoyer_samples'][0]:.2f})"
        return {f"{row['dataset']}, {row['latent_size']}": shown(row["accuracy"]) + hoyer}

    head = "Accuracy of the K = 5 classifier, in brackets Average Hoyer of samples, by data and latent dimensions."
    return figure, numbers, f"{head}\n\n{side_by_side(numbers, ['model'], cells)}"


def figure3(options: ReproduceArguments) -> Made:
    """Average Hoyer during training, by the prior of HSVAE and by the weights of MAT-VAE."""
    families = {
        "HSVAE": [f"HSVAE prior_alpha={a} prior_beta={b}" for a, b in PRIORS],
        "MAT-VAE": [f"MAT-VAE z_kl_weight={psi} penalty_weight={weight}" for psi, weight in MAT_WEIGHTS],
    }
    kinds = {"average_hoyer_samples": "samples", "average_hoyer_posterior_means": "means"}
    numbers: list[dict[str, Any]] = []
    size = options.latent_sizes[0]
    for dataset in options.dataset:
        names = [name for systems in families.values() for name in systems]
        made = comparison(options, dataset, size, "curves", names)
        for family, systems in families.items():
            for system in systems:
                curves = [run["curve"] for run in results(made, system, options.seeds)]
                row: dict[str, Any] = {"dataset": name_of(dataset), "family": family, "model": system}
                row["step"] = [look["step"] for look in curves[0]]
                for kind in kinds:
                    values = np.array([[look[f"eval_{kind}"] for look in curve] for curve in curves])
                    deviation = values.std(0, ddof=1) if len(values) > 1 else 0 * values[0]
                    row[kind] = {"mean": values.mean(0).tolist(), "std": deviation.tolist()}
                numbers.append(row | {"seeds": len(curves), "latent_size": size})
    figure = new_figure(figsize=(13, 0.6 + 2.9 * len(options.dataset)), layout="constrained")
    axes = figure.subplots(len(options.dataset), 4, squeeze=False, sharex=True, sharey=True)
    for line, dataset in enumerate(map(name_of, options.dataset)):
        for column, (family, kind) in enumerate((family, kind) for family in families for kind in kinds):
            axis = axes[line, column]
            _curves(axis, [row for row in numbers if (row["dataset"], row["family"]) == (dataset, family)], kind)
            axis.set_title(f"{dataset}: {family}, {kinds[kind]}", fontsize=9)
        axes[line, 0].set_ylabel("Average Hoyer")
    for axis in axes[-1]:
        axis.set_xlabel("training step")
    for axis in axes[0, 1::2]:  # where there is room
        axis.legend(fontsize=7, frameon=False, loc="upper right")

    def cells(row: dict[str, Any]) -> dict[str, str]:
        last = {name: [row[kind][part][-1] for part in ("mean", "std")] for kind, name in kinds.items()}
        several = row["seeds"] > 1
        return {
            f"{row['dataset']}, {name}": shown((mean, std if several else None), 2)
            for name, (mean, std) in last.items()
        }

    return figure, numbers, f"Average Hoyer at the end of training.\n\n{side_by_side(numbers, ['model'], cells)}"


def _curves(axis: Any, rows: list[dict[str, Any]], kind: str) -> None:
    """A line with its deviation for each model."""
    signs = {"prior_alpha=": r"$\alpha$ ", "prior_beta=": r"$\beta$ "}
    signs |= {"z_kl_weight=": r"$\psi$ ", "penalty_weight=": r"$\lambda$ "}
    for index, row in enumerate(rows):
        label = row["model"].partition(" ")[2].replace(" ", ", ")
        for name, sign in signs.items():
            label = label.replace(name, sign)
        mean, deviation = (np.array(row[kind][name]) for name in ("mean", "std"))
        shade = str(0.1 + 0.13 * index)
        axis.plot(row["step"], mean, MARKS[index], color=shade, markersize=3, linewidth=1, label=label)
        axis.fill_between(row["step"], mean - deviation, mean + deviation, color=shade, alpha=0.15)


def figure4(options: ReproduceArguments) -> Made:
    """Which dimensions the sentences of each class switch on, in HSVAE."""
    size = options.latent_sizes[0]
    numbers: list[dict[str, Any]] = []
    for dataset in options.dataset:
        made = comparison(options, dataset, size, models=["HSVAE"])
        run = made.result("HSVAE", None, 1)
        numbers.append({"dataset": name_of(dataset), "classes": made.names, "activity": run["class_activity"]})
    figure = new_figure(figsize=(1 + 4.5 * len(options.dataset), 4), layout="constrained")
    axes = figure.subplots(1, len(options.dataset), squeeze=False)[0]
    found = []
    for axis, row in zip(axes, numbers, strict=True):
        activity = np.array(row["activity"], dtype=float)  # NaN where a class has no rows
        order = dimension_order(activity)
        image = axis.imshow(activity[:, order], aspect="auto", cmap="magma_r", vmin=0, vmax=1, interpolation="nearest")
        axis.set_yticks(range(len(row["classes"])), row["classes"], fontsize=6)
        axis.set_xlabel(f"{size} latent dimensions, sorted")
        axis.set_title(row["dataset"])
        between = np.nanmax(activity, 0) - np.nanmin(activity, 0)
        contrast, own = float(between.mean()), int((between > 0.5).sum())
        found.append(
            f"{row['dataset']}: mean spread between classes {contrast:.2f}, {own} of {size} dimensions above .5"
        )
    figure.colorbar(image, ax=list(axes), label="share of sentences with the dimension on")
    return figure, numbers, f"The share of a class's sentences that switch a dimension on. {'; '.join(found)}."


def figure5(options: ReproduceArguments) -> Made:
    """KL divergence between the word distributions of classes."""
    numbers: list[dict[str, Any]] = []
    for dataset in options.dataset:
        made = comparison(options, dataset, options.latent_sizes[0])
        train = made.data["train"]
        ids = [row[:-1] for row in tokenize_dataset(train.select_columns(["text"]), made.words)["input_ids"]]
        kl = class_kl(ids, np.array(train["label"][:]), len(made.names), len(made.words))
        numbers.append({"dataset": name_of(dataset), "classes": made.names, "kl": kl.tolist()})
    figure = new_figure(figsize=(1 + 4.2 * len(options.dataset), 4), layout="constrained")
    axes = figure.subplots(1, len(options.dataset), squeeze=False)[0]
    highest, found = max(np.max(row["kl"]) for row in numbers), []
    for axis, row in zip(axes, numbers, strict=True):
        kl, classes = np.array(row["kl"]), row["classes"]
        image = axis.imshow(kl, cmap="Greys", vmin=0, vmax=highest)
        axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=6)
        axis.set_yticks(range(len(classes)), classes, fontsize=6)
        axis.set_title(row["dataset"])
        off = kl[~np.eye(len(classes), dtype=bool)]
        found.append(f"{row['dataset']} {off.mean():.2f} on average, from {off.min():.2f} to {off.max():.2f}")
    figure.colorbar(image, ax=list(axes), label="KL(row || column), nats")
    return figure, numbers, f"How far the classes' words are apart, in nats: {'; '.join(found)}."


def gates(options: ReproduceArguments) -> Made:
    """What drives the gates: one change at a time."""
    size = options.latent_sizes[0]
    systems = options.models or [f"{base} {change}".strip() for base in STUDY for change in ("", *STUDY[base])]
    numbers: list[dict[str, Any]] = []
    for dataset in options.dataset:
        made = comparison(options, dataset, size, "study", systems)
        for system in systems:
            if not base_of(system) or made.systems[system][0] != "hsvae":
                raise ValueError(f"`models` must be of HSVAE for the gates, got {system!r}; leave it out.")
        for system in systems:
            runs = results(made, system, options.seeds)
            numbers.append(
                {"dataset": name_of(dataset), "model": system, "seeds": len(runs)}
                | {name: spread(runs, name) for name in STUDIED}
            )
    figure = new_figure(figsize=(7, 1 + 0.28 * len(systems)), layout="constrained")
    axis = figure.subplots()
    rows = [row for row in numbers if row["dataset"] == name_of(options.dataset[0])]
    places = np.arange(len(rows))[::-1]
    for mark, name, label in (("o", "accuracy_code", "the code"), ("x", "accuracy_gate", "its gate alone")):
        means, deviations = with_bars([row[name] for row in rows])
        axis.errorbar(means, places, xerr=deviations, fmt=mark, color="0.2", label=label, capsize=2)
    axis.set_yticks(places, [row["model"] for row in rows], fontsize=8)
    axis.set_xlabel(f"accuracy of a linear probe, {name_of(options.dataset[0])}")
    axis.legend(frameon=False, loc="lower left")
    best = max(rows, key=lambda row: row["accuracy_gate"][0])
    first, most = ([row[name][0] for name in ("accuracy_code", "accuracy_gate")] for row in (rows[0], best))
    text = (
        f"On {rows[0]['dataset']}, `{rows[0]['model']}` gives {first[0]:.3f} from the code and {first[1]:.3f} from its "
        f"gate alone; the most from the gate, {most[1]:.3f}, with `{best['model']}` ({most[0]:.3f} from the code)."
    )
    lines = [
        {"data": row["dataset"], "model": row["model"]}
        | {label: shown(row[name], digits) for name, (label, digits) in STUDIED.items()}
        for row in numbers
    ]
    return figure, numbers, f"{text}\n\n{table(lines)}"


def targets(size: int) -> list[int]:
    """Wanted numbers of active dimensions that a code of this size can have.

    Raises:
        ValueError: if there is none.
    """
    if size <= min(TARGETS):
        raise ValueError(f"`latent_sizes` must begin with more than {min(TARGETS)} for this, got {size}; raise it.")
    return [wanted for wanted in TARGETS if wanted < size]


def dial(options: ReproduceArguments) -> Made:
    """Wanted and found numbers of active dimensions."""
    size = options.latent_sizes[0]
    numbers: list[dict[str, Any]] = []
    systems = {f"HSVAE-balanced target_active_dims={wanted}": wanted for wanted in targets(size)}
    off = 0.0
    for dataset in options.dataset:
        made = comparison(options, dataset, size, "nonzeros", list(systems))
        for system, wanted in systems.items():
            runs = results(made, system, options.seeds)
            row: dict[str, Any] = {
                "dataset": name_of(dataset),
                "latent_size": size,
                "wanted": wanted,
                "seeds": len(runs),
            }
            off = max([off, *(abs(run["active_dims"] / wanted - 1) for run in runs)])
            names = ("active_dims", "accuracy_code", "accuracy_gate", "mutual_information")
            numbers.append(row | {name: spread(runs, name) for name in names})
    figure = new_figure(figsize=(4.5, 3.6), layout="constrained")
    axis = figure.subplots()
    for mark, dataset in zip(MARKS, map(name_of, options.dataset), strict=False):
        rows = [row for row in numbers if row["dataset"] == dataset]
        found = [row["active_dims"][0] for row in rows]
        axis.plot([row["wanted"] for row in rows], found, mark, label=dataset, color="0.2", fillstyle="none")
    axis.plot([TARGETS[0], TARGETS[-1]], [TARGETS[0], TARGETS[-1]], color="0.7", zorder=0)
    axis.set(xlabel="wanted", ylabel="active dimensions of held-out codes")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter("{x:g}")
    axis.legend(frameon=False)
    lines = [
        {
            "data": row["dataset"],
            "wanted": str(row["wanted"]),
            "found": shown(row["active_dims"], 2),
            "code": shown(row["accuracy_code"]),
            "gate": shown(row["accuracy_gate"]),
            "MI": shown(row["mutual_information"], 2),
        }
        for row in numbers
    ]
    text = f"Held-out codes of a run are at most {off:.1%} off the wanted number of active dimensions."
    return figure, numbers, f"{text}\n\n{table(lines)}"


def nonzeros(options: ReproduceArguments) -> Made:
    """Accuracy of everything that an engineer would use, by the number of non-zeros."""
    size = options.latent_sizes[0]
    numbers: list[dict[str, Any]] = []
    models = {
        f"{system} target_active_dims={wanted}": (system.removesuffix("-balanced"), wanted)
        for system in ("HSVAE-balanced", "B-HSVAE-balanced")
        for wanted in targets(size)
    }
    given = [] if options.vectors_json is None else _vector_codes(options.vectors_json, options.dataset)
    for dataset in options.dataset:
        made = comparison(options, dataset, size, "nonzeros", list(models))
        rows: list[dict[str, Any]] = _word_vectors(made)
        source = options.encoder_name_or_path
        encoder = HSVAEForPreTraining.from_encoder_pretrained(source, decoder_type="vector", latent_size=1).eval()
        tokenizer = load_encoder_tokenizer(source, AS_VECTORS["encoder_max_length"])
        dense = [embed_dataset(split, encoder, tokenizer) for split in (made.data["train"], made.test)]
        labels = [np.array(split["label"][:]) for split in (made.data["train"], made.test)]
        accuracy = probe_accuracy(dense[0], labels[0], dense[1], labels[1])
        found = {"non_zeros": dense[0].shape[1], "accuracy": (accuracy, None)}
        rows.append({"system": "dense vectors", "wanted": None} | found)
        for system, (family, wanted) in models.items():
            runs = results(made, system, options.seeds)
            found = {"non_zeros": spread(runs, "active_dims")[0], "accuracy": spread(runs, "accuracy_code")}
            rows.append({"system": f"{family} of words", "wanted": wanted} | found)
        for row in given:
            if row["dataset"] == name_of(dataset):
                found = {"non_zeros": row["active_dims"], "accuracy": (row["accuracy"], row["accuracy_std"])}
                rows.append({"system": f"{row['system']} of vectors", "wanted": row["wanted"]} | found)
        numbers += [{"dataset": name_of(dataset)} | row for row in rows]
    figure = new_figure(figsize=(1 + 4.2 * len(options.dataset), 4), layout="constrained")
    axes = figure.subplots(1, len(options.dataset), squeeze=False)[0]
    for axis, dataset in zip(axes, map(name_of, options.dataset), strict=True):
        own = [row for row in numbers if row["dataset"] == dataset]
        for place, system in enumerate(dict.fromkeys(row["system"] for row in own)):
            one = [row for row in own if row["system"] == system]
            values = [[row["non_zeros"] for row in one], *with_bars([row["accuracy"] for row in one])]
            shade = str(0.09 * (place % 8))
            axis.errorbar(*values, fmt=MARKS[place % len(MARKS)], color=shade, label=system, markersize=4, capsize=2)
        axis.set(xlabel="non-zeros per sentence", title=dataset)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel("accuracy of a linear probe")
    axes[0].legend(fontsize=7, frameon=False)

    def cells(row: dict[str, Any]) -> dict[str, str]:
        return {row["dataset"]: f"{shown(row['accuracy'])} ({row['non_zeros']:.1f})"}

    head = "Accuracy of a linear probe, in brackets the non-zeros of a test row."
    return figure, numbers, f"{head}\n\n{side_by_side(numbers, ['system', 'wanted'], cells)}"


def _vector_codes(path: str, datasets: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of HSVAE and CSR at the smallest width of `compare_vectors.py`."""
    if not Path(path).is_file():
        raise ValueError(f"`vectors_json` must be a file, got {path!r}; check the path.")
    rows = [row for row in read_json(Path(path), "vectors_json") if row["system"] in ("HSVAE", "CSR")]
    rows = [row for row in rows if row["latent_size"] == min(row["latent_size"] for row in rows)]
    if missing := set(map(name_of, datasets)) - {row["dataset"] for row in rows}:
        raise ValueError(f"`vectors_json` must have rows of every data set, got none of {', '.join(sorted(missing))}.")
    return rows


def _word_vectors(made: Comparison) -> list[dict[str, Any]]:
    """TF-IDF, as it is and reduced."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = [split["text"][:] for split in (made.data["train"], made.test)]
    labels = [np.array(split["label"][:]) for split in (made.data["train"], made.test)]
    words = TfidfVectorizer(sublinear_tf=True)
    train, test = words.fit_transform(texts[0]), words.transform(texts[1])
    rows: list[dict[str, Any]] = []
    probe = LogisticRegression(C=10, max_iter=2000).fit(train, labels[0])  # scaled, rare words would count too much
    accuracy = float(probe.score(test, labels[1]))
    found: dict[str, Any] = {"non_zeros": test.nnz / test.shape[0], "accuracy": (accuracy, None)}
    rows.append({"system": "TF-IDF of words", "wanted": None} | found)
    for size in (wanted for wanted in (*TARGETS, 128) if wanted < train.shape[1]):
        reduce = TruncatedSVD(size, random_state=0).fit(train)
        accuracy = probe_accuracy(reduce.transform(train), labels[0], reduce.transform(test), labels[1])
        found = {"non_zeros": size, "accuracy": (accuracy, None)}
        rows.append({"system": "TF-IDF of words, SVD (dense)", "wanted": size} | found)
    return rows


FIGURES: dict[str, Callable[[ReproduceArguments], Made]] = {
    make.__name__: make for make in (figure2, figure3, figure4, figure5, gates, dial, nonzeros)
}


def reproduce(options: ReproduceArguments) -> str:
    """Train what is missing; write the figure's PNG, JSON and Markdown to the output folder.

    Returns:
        The paragraph on what it shows.

    Raises:
        ImportError: without the extra `train`.
        ValueError: if there is no such figure, size or model, or the data has no labels.
    """
    check(options)
    if options.figure != "figure2":
        options = replace(options, latent_sizes=options.latent_sizes[:1])
    figure, numbers, text = FIGURES[options.figure](options)
    with staged_folder(options.output_dir) as folder:
        figure.savefig(folder / f"{options.figure}.png", dpi=150)
        versions = {module.__name__: module.__version__ for module in (hsvae_hf, torch, transformers)}
        content = {"settings": vars(options) | {"scale": scale(options)} | versions, "numbers": numbers}
        (folder / f"{options.figure}.json").write_text(json.dumps(content, indent=1) + "\n")
        (folder / f"{options.figure}.md").write_text(text + "\n")
    return text


def check(options: ReproduceArguments) -> None:
    """Tell what cannot be run or read, before the first run."""
    require("accelerate", "matplotlib", "sklearn")
    options.figure = choose("figure", options.figure, FIGURES)
    options.size = choose("size", options.size, SIZES)
    options.models = None if options.models is None else [system_name(name) for name in options.models]
    if options.seeds < 1 or not options.latent_sizes:
        raise ValueError(f"`seeds` must be at least 1, got {options.seeds}, and `latent_sizes` must not be empty.")
    if min(options.latent_sizes) < 2 or len(options.latent_sizes) > len(GREYS):
        raise ValueError(
            f"`latent_sizes` must be up to {len(GREYS)} numbers from 2 on, got {options.latent_sizes}; choose such."
        )
    if len(set(map(name_of, options.dataset))) < len(options.dataset):
        raise ValueError(f"`dataset` must have different names, got {options.dataset}; rename one.")
    for dataset in options.dataset:
        splits = load_text_dataset(dataset, dataset_config_name=options.dataset_config_name)
        if "label" not in splits["train"].column_names:
            raise ValueError(f"`dataset` must have labels, got {dataset!r} without; choose another.")
    for name, readers in (("models", ("figure2", "gates")), ("vectors_json", ("nonzeros",))):
        if getattr(options, name) is not None and options.figure not in readers:
            raise ValueError(f"`{name}` must be left out for {options.figure}: it is for {' and '.join(readers)}.")
