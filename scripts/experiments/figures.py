"""The paper's figures 2 to 5, for `reproduce.py`."""

from dataclasses import replace
from typing import Any

import numpy as np
from pictures import error_bars, heat_maps, lines, one_legend, panels, points
from reproduction import Figure, ReproduceArguments, comparisons
from systems import SYSTEMS, find_system
from tables import Spread, shown, side_by_side, spreads
from word_divergence import class_kl

from hsvae_hf.data import tokenize_dataset
from hsvae_hf.plots import dimension_order

PRIORS = [f"HSVAE prior_alpha={a} prior_beta={b}" for a, b in [(1, 4), (30, 30), (30, 10), (4, 1), (10, 1)]]
WEIGHTS = [f"MAT-VAE z_kl_weight={psi} penalty_weight={weight}" for psi in (0.01, 1.0) for weight in (0.01, 1.0)]
SYMBOLS = {
    "prior_alpha": r"$\alpha$",
    "prior_beta": r"$\beta$",
    "z_kl_weight": r"$\psi$",
    "penalty_weight": r"$\lambda$",
}
HOYER = {"eval_average_hoyer_samples": "samples", "eval_average_hoyer_posterior_means": "means"}


def accuracy_and_hoyer(rows: list[dict[str, Any]]) -> Any:
    """The paper's Figure 2: accuracy and Average Hoyer side by side, a row of panels for each data set.

    The dotted lines are the dense VAE's.
    """
    names, datasets = (list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "dataset"))
    sizes = list(dict.fromkeys(str(row["latent_size"]) for row in rows if row.get("average_hoyer_samples") is not None))
    width = 4.2 + 0.04 * max(map(len, names))
    picture, axes = panels(len(datasets), 2, width, 0.6 + 0.2 * len(names), sharex="col", sharey=True)
    measures = {"accuracy": "accuracy of the K = 5 classifier", "average_hoyer_samples": "Average Hoyer of samples"}
    for (line, column), axis in np.ndenumerate(axes):
        dataset, (measure, label) = datasets[line], list(measures.items())[column]
        series: dict[str, list[Spread | None]] = {}
        for size in sizes:
            series[f"{size} dimensions"] = [
                _value(rows, dataset, name, measure, size) if _has_latent(rows, name) else None for name in names
            ]
        series["no latent"] = [
            None if _has_latent(rows, name) else _value(rows, dataset, name, measure) for name in names
        ]
        points(axis, names, series, reference="VAE")
        axis.set(xlabel=label, title=dataset)
        axis.label_outer()
    one_legend(picture, axes)
    return picture


def _has_latent(rows: list[dict[str, Any]], name: str) -> bool:
    """Whether a system is one with samples; a classifier of words has none."""
    return any(row.get("average_hoyer_samples") is not None for row in rows if row["model"] == name)


def _value(rows: list[dict[str, Any]], dataset: str, name: str, measure: str, size: str | None = None) -> Spread | None:
    """A number of one system, of one latent size or the only one."""
    for row in rows:
        if (row["dataset"], row["model"]) == (dataset, name) and size in (None, str(row["latent_size"])):
            value: Spread | None = row.get(measure)
            return value
    return None


def figure2(options: ReproduceArguments) -> Figure:
    """Accuracy and Average Hoyer of all models."""
    systems = [find_system(name) for name in options.models or SYSTEMS]
    latent = [system.name for system in systems if not system.classifier]  # the others have no latent size
    by_size = {options.latent_size: comparisons(options, [system.name for system in systems])}
    by_size |= {size: comparisons(options, latent, size=size) for size in options.latent_sizes[1:]}
    numbers: list[dict[str, Any]] = []
    for dataset in options.names:
        for size, by_dataset in by_size.items():
            for system in by_dataset[dataset].systems:
                runs = by_dataset[dataset].results(system)
                row = {"dataset": dataset, "latent_size": size, "model": system.name}
                numbers.append(row | {"code_size": runs[0]["latent_size"]} | spreads(runs))

    return Figure(accuracy_and_hoyer(numbers), numbers, _tables_of_figure2(numbers))


def _tables_of_figure2(numbers: list[dict[str, Any]]) -> str:
    def drawn(row: dict[str, Any]) -> dict[str, str]:
        hoyer = row["average_hoyer_samples"]
        sparsity = "" if hoyer is None else f" ({hoyer.mean:.2f})"
        return {f"{row['dataset']}, {row['latent_size']}": shown(row["accuracy"]) + sparsity}

    def coded(row: dict[str, Any]) -> dict[str, str]:
        switching = row.get("switching_fraction")
        use = f"{row['active_dims'].mean:.1f}" + ("" if switching is None else f", {switching.mean:.2f}")
        return {f"{row['dataset']}, {row['latent_size']}": f"{shown(row['accuracy_code'])} ({use})"}

    latent = [row for row in numbers if row["average_hoyer_samples"] is not None]
    heads = (
        "Accuracy of the K = 5 classifier, in brackets Average Hoyer of samples, by data and latent dimensions.",
        "Accuracy of a linear probe on the code, in brackets its non-zeros and the share of dimensions that switch.",
    )
    tables = (side_by_side(numbers, ["model"], drawn), side_by_side(latent, ["model"], coded))
    return "\n\n".join(part for pair in zip(heads, tables, strict=True) for part in pair)


def figure3(options: ReproduceArguments) -> Figure:
    """Average Hoyer during training, by the prior of HSVAE and by the weights of MAT-VAE."""
    numbers: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    for dataset, comparison in comparisons(options, PRIORS + WEIGHTS, "curves").items():
        for system in comparison.systems:
            curves = [run["curve"] for run in comparison.results(system)]
            row: dict[str, Any] = {"dataset": dataset, "family": system.name.partition(" ")[0], "model": system.name}
            at_steps = [spreads(runs, HOYER) for runs in zip(*curves, strict=True)]
            ends.append(row | at_steps[-1])
            steps = [look["step"] for look in curves[0]]
            row |= {"seeds": len(curves), "latent_size": options.latent_size, "step": steps}
            for name in HOYER:
                means, deviations = error_bars(look[name] for look in at_steps)
                row[name.removeprefix("eval_")] = {"mean": means, "std": deviations}
            numbers.append(row)

    def others(look: dict[str, Any]) -> dict[str, str]:
        return {f"{look['dataset']}, {kind}": shown(look[name], 2) for name, kind in HOYER.items()}

    text = f"Average Hoyer at the end of training.\n\n{side_by_side(ends, ['model'], others)}"
    return Figure(draw_figure3(numbers), numbers, text)


def draw_figure3(numbers: list[dict[str, Any]]) -> Any:
    """Curves of Average Hoyer: a row for each data set, samples and means of both families beside each other."""
    datasets = list(dict.fromkeys(row["dataset"] for row in numbers))
    picture, axes = panels(len(datasets), 4, width=3, sharex=True, sharey=True)
    columns = [(family, name) for family in ("HSVAE", "MAT-VAE") for name in HOYER]
    for (line, column), axis in np.ndenumerate(axes):
        dataset, (family, name) = datasets[line], columns[column]
        looks = [
            {"change": f"{family}: {_symbols(row['model'])}", "step": step, "value": Spread(mean, std)}
            for row in numbers
            if (row["dataset"], row["family"]) == (dataset, family)
            for step, mean, std in zip(row["step"], *row[name.removeprefix("eval_")].values(), strict=True)
        ]
        lines(axis, looks, "change", "step", "value")
        axis.set_title(f"{dataset}: {family}, {HOYER[name]}", fontsize=9)
        axis.set(xlabel="training step", ylabel="Average Hoyer")
        axis.label_outer()
    one_legend(picture, axes)
    return picture


def _symbols(model: str) -> str:
    """The changes of a system, with the paper's letters."""
    for name, symbol in SYMBOLS.items():
        model = model.replace(f"{name}=", f"{symbol} ")
    return model.partition(" ")[2]


def figure4(options: ReproduceArguments) -> Figure:
    """Which dimensions the sentences of each class switch on, in HSVAE; of the first seed."""
    numbers: list[dict[str, Any]] = []
    images, texts = {}, []
    for dataset, comparison in comparisons(replace(options, seeds=1), ["HSVAE"]).items():
        (run,) = comparison.results(comparison.systems[0])
        numbers.append({"dataset": dataset, "classes": comparison.names, "activity": run["class_activity"]})
        activity = np.array(run["class_activity"], dtype=float)  # NaN where a class has no rows
        images[dataset] = activity[:, dimension_order(activity)]
        between = np.nanmax(activity, 0) - np.nanmin(activity, 0)
        texts.append(
            f"{dataset}: mean spread between classes {between.mean():.2f}, {(between > 0.5).sum()} of {len(between)} "
            "dimensions above .5"
        )
    label = "share of sentences with the dimension on"
    classes = [row["classes"] for row in numbers]
    picture, axes = heat_maps(images, classes, label, aspect="auto", cmap="magma_r", vmin=0, vmax=1)
    for axis in axes:
        axis.set_xlabel(f"{options.latent_size} latent dimensions, sorted")
    text = f"The share of a class's sentences that switch a dimension on. {'; '.join(texts)}."
    return Figure(picture, numbers, text)


def figure5(options: ReproduceArguments) -> Figure:
    """KL divergence between the word distributions of classes."""
    numbers: list[dict[str, Any]] = []
    images, texts = {}, []
    for dataset, comparison in comparisons(options, []).items():
        train = comparison.data["train"]
        tokens = tokenize_dataset(train.select_columns(["text"]), comparison.words)["input_ids"]
        words = [ids[:-1] for ids in tokens]  # without the end of the sentence
        kl = class_kl(words, np.array(train["label"][:]), len(comparison.names), len(comparison.words))
        numbers.append({"dataset": dataset, "classes": comparison.names, "kl": kl.tolist()})
        images[dataset] = kl
        between = kl[~np.eye(len(kl), dtype=bool)]
        texts.append(f"{dataset} {between.mean():.2f} on average, from {between.min():.2f} to {between.max():.2f}")
    highest = max(kl.max() for kl in images.values())
    classes = [row["classes"] for row in numbers]
    picture, axes = heat_maps(images, classes, "KL(row || column), nats", cmap="Greys", vmin=0, vmax=highest)
    for axis, names in zip(axes, classes, strict=True):
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    return Figure(picture, numbers, f"How far the classes' words are apart, in nats: {'; '.join(texts)}.")
