"""Figures that the paper does not have, for `reproduce.py`: what drives the gates, and how many non-zeros it takes."""

from pathlib import Path
from typing import Any

import numpy as np
from comparison import Comparison, encoder_vectors
from finished_runs import read_json
from pictures import level, lines, one_legend, panels, points, powers_of_two
from reproduction import AS_VECTORS, Figure, ReproduceArguments, comparisons
from systems import find_system
from tables import NOTES, Spread, cells, shown, side_by_side, spreads, table

from hsvae_hf.embedding_cache import load_encoder_tokenizer
from hsvae_hf.probes import probe_accuracy

TARGETS = [8, 16, 32, 64]  # wanted numbers of non-zeros
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
        "feature_std=0.3",
    ],
    "HSVAE-balanced": [
        "feature_std=0.0",
        "gate_balance_weight=0.0",
        "gate_balance_weight=0.3",
        "gate_balance_weight=1.0",
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
LINES = ("HSVAE of words", "B-HSVAE of words", "HSVAE of vectors", "CSR of vectors", "TF-IDF of words, SVD (dense)")
DIALLED = ("active_dims", "accuracy_code", "accuracy_gate", "mutual_information")


def gates(options: ReproduceArguments) -> Figure:
    """What drives the gates: one change at a time."""
    names = options.models or [f"{base} {change}".strip() for base in STUDY for change in ("", *STUDY[base])]
    for name in names:
        if find_system(name).model_type != "hsvae":
            raise ValueError(f"`models` must be of HSVAE for the gates, got {name!r}; leave it out.")
    numbers = [
        {"dataset": dataset, "model": system.name} | spreads(comparison.results(system))
        for dataset, comparison in comparisons(options, names, "study").items()
        for system in comparison.systems
    ]
    return Figure(draw_gates(numbers), numbers, _gates_text(numbers))


def draw_gates(numbers: list[dict[str, Any]]) -> Any:
    """The accuracy of the code, of its gate alone and of draws, a row for each change."""
    names, datasets = (list(dict.fromkeys(row[key] for row in numbers)) for key in ("model", "dataset"))
    width = 4.2 + 0.08 * max(map(len, names)) / len(datasets)  # the names are long
    picture, axes = panels(1, len(datasets), width, 0.6 + 0.2 * len(names), sharey=True)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        rows = {row["model"]: row for row in numbers if row["dataset"] == dataset}
        measures = {"the code": "accuracy_code", "its gate alone": "accuracy_gate", "K = 5 draws": "accuracy"}
        points(axis, names, {label: [rows[name][key] for name in names] for label, key in measures.items()})
        axis.set(xlabel="accuracy", title=dataset)
    one_legend(picture, axes)
    return picture


def _gates_text(numbers: list[dict[str, Any]]) -> str:
    rows = [{"data": row["dataset"], "model": row["model"]} | cells(row) for row in numbers]
    return f"{table(rows)}\n\n{NOTES}"


def targets(size: int) -> list[int]:
    """The wanted numbers of non-zeros that a code of this size can have.

    Raises:
        ValueError: if there is none.
    """
    if size <= min(TARGETS):
        raise ValueError(f"`latent_sizes` must begin with more than {min(TARGETS)} for this, got {size}; raise it.")
    return [wanted for wanted in TARGETS if wanted < size]


def dial(options: ReproduceArguments) -> Figure:
    """Wanted and found numbers of non-zeros."""
    systems = [f"HSVAE-balanced target_active_dims={wanted}" for wanted in targets(options.latent_size)]
    numbers: list[dict[str, Any]] = []
    most = 0.0
    for dataset, comparison in comparisons(options, systems, "nonzeros").items():
        for system in comparison.systems:
            runs, wanted = comparison.results(system), system.fields["target_active_dims"]
            most = max([most, *(abs(run["active_dims"] / wanted - 1) for run in runs)])
            row = {"dataset": dataset, "latent_size": options.latent_size, "wanted": wanted}
            numbers.append(row | spreads(runs, DIALLED))
    text = f"Held-out codes of a run are at most {most:.1%} off the wanted number of active dimensions."
    rows = [{"data": row["dataset"], "wanted": str(row["wanted"])} | cells(row, DIALLED) for row in numbers]
    return Figure(draw_dial(numbers), numbers, f"{text}\n\n{table(rows)}")


def draw_dial(numbers: list[dict[str, Any]]) -> Any:
    """Counted by wanted numbers; on the grey line they are equal."""
    picture, axes = panels(1, 1)
    axis, ends = axes[0, 0], [numbers[0]["wanted"], numbers[-1]["wanted"]]
    lines(axis, numbers, "dataset", "wanted", "active_dims")
    axis.plot(ends, ends, color="0.7", zorder=0)
    axis.set(xlabel="wanted non-zeros per sentence", ylabel="non-zeros of a held-out code, mean")
    powers_of_two(axis, "x", "y")
    one_legend(picture, axes)
    return picture


def nonzeros(options: ReproduceArguments) -> Figure:
    """Accuracy of everything that an engineer would use, by the number of non-zeros."""
    systems = [
        f"{base}-balanced target_active_dims={wanted}"
        for base in ("HSVAE", "B-HSVAE")
        for wanted in targets(options.latent_size)
    ]
    codes_of_vectors = _codes_of_vectors(options)
    numbers: list[dict[str, Any]] = []
    for dataset, comparison in comparisons(options, systems, "nonzeros").items():
        rows = [*_tfidf(comparison), _dense_vectors(comparison)]
        for system in comparison.systems:
            runs = spreads(comparison.results(system), ("active_dims", "accuracy_code"))
            name, wanted = system.name.partition("-balanced")[0], system.fields["target_active_dims"]
            rows.append(_row(f"{name} of words", wanted, runs["active_dims"].mean, runs["accuracy_code"]))
        numbers += [{"dataset": dataset} | row for row in rows]
        numbers += [row for row in codes_of_vectors if row["dataset"] == dataset]

    def others(row: dict[str, Any]) -> dict[str, str]:
        return {row["dataset"]: f"{shown(row['accuracy'])} ({row['non_zeros']:.1f})"}

    head = "Accuracy of a linear probe, in brackets the non-zeros of a test row."
    table_of_all = side_by_side(numbers, ["system", "wanted"], others)
    return Figure(draw_nonzeros(numbers), numbers, f"{head}\n\n{table_of_all}")


def draw_nonzeros(numbers: list[dict[str, Any]]) -> Any:
    """A line for each system whose number of non-zeros can be chosen; a level for each other."""
    datasets = list(dict.fromkeys(row["dataset"] for row in numbers))
    picture, axes = panels(1, len(datasets), height=3.4)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        rows = [row for row in numbers if row["dataset"] == dataset]
        chosen = sorted((row for row in rows if row["wanted"] is not None), key=lambda row: row["wanted"])
        chosen.sort(key=lambda row: LINES.index(row["system"]))  # the same style in all panels
        lines(axis, chosen, "system", "non_zeros", "accuracy")
        for side, row in zip(("left", "right"), (row for row in rows if row["wanted"] is None), strict=True):
            level(axis, row["accuracy"].mean, f"{row['system']}, {row['non_zeros']:.0f} non-zeros", side)
        axis.set(xlabel="non-zeros per sentence", title=dataset)
        powers_of_two(axis, "x")
    axes[0, 0].set_ylabel("accuracy of a linear probe")
    one_legend(picture, axes)
    return picture


def _row(system: str, wanted: int | None, non_zeros: float, accuracy: Spread | None) -> dict[str, Any]:
    return {"system": system, "wanted": wanted, "non_zeros": non_zeros, "accuracy": accuracy}


def _codes_of_vectors(options: ReproduceArguments) -> list[dict[str, Any]]:
    """Rows of HSVAE and CSR of `compare_codes.py`, by the number of non-zeros, and their data set."""
    if options.codes_json is None:
        return []
    path = Path(options.codes_json)
    if not path.is_file():
        raise ValueError(f"`codes_json` must be a file, got {str(path)!r}; check the path.")
    rows = []
    for row in read_json(path, "codes_json"):
        of_these = row["system"] in ("HSVAE", "CSR") and row["budget"].keys() == {"active_dims"}
        if of_these and "logistic_accuracy" in row["scores"]:
            scores = {name: Spread(*row["scores"][name]) for name in ("logistic_accuracy", "active_dims")}
            system, wanted = f"{row['system']} of vectors", row["budget"]["active_dims"]
            found = _row(system, wanted, scores["active_dims"].mean, scores["logistic_accuracy"])
            rows.append({"dataset": row["task"]} | found)
    rows.sort(key=lambda row: (row["wanted"], row["system"] != "HSVAE of vectors"))
    if missing := set(options.names) - {row["dataset"] for row in rows}:
        raise ValueError(
            f"`codes_json` must have rows of every data set, got none of {', '.join(sorted(missing))}; add them."
        )
    return rows


def _dense_vectors(comparison: Comparison) -> dict[str, Any]:
    """The vectors of the encoder."""
    data, source = comparison.data, comparison.options.encoder_name_or_path
    vectors = encoder_vectors(data, source, load_encoder_tokenizer(source, AS_VECTORS["encoder_max_length"]))
    train, test = (np.array(data[name]["label"][:]) for name in ("train", "test"))
    accuracy = probe_accuracy(vectors["train"], train, vectors["test"], test)
    return _row("dense vectors", None, vectors["train"].shape[1], Spread(accuracy))


def _tfidf(comparison: Comparison) -> list[dict[str, Any]]:
    """TF-IDF, as it is and reduced."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    splits = [comparison.data[name] for name in ("train", "test")]
    labels = [np.array(split["label"][:]) for split in splits]
    words = TfidfVectorizer(sublinear_tf=True)
    train, test = words.fit_transform(splits[0]["text"][:]), words.transform(splits[1]["text"][:])
    probe = LogisticRegression(C=10, max_iter=2000).fit(train, labels[0])  # scaled, rare words would count too much
    accuracy = Spread(float(probe.score(test, labels[1])))
    rows = [_row("TF-IDF of words", None, test.nnz / test.shape[0], accuracy)]
    for size in (wanted for wanted in (*TARGETS, 128) if wanted < train.shape[1]):
        reduction = TruncatedSVD(size, random_state=0).fit(train)
        dense = [reduction.transform(part) for part in (train, test)]
        accuracy = Spread(probe_accuracy(dense[0], labels[0], dense[1], labels[1]))
        rows.append(_row("TF-IDF of words, SVD (dense)", size, size, accuracy))
    return rows
