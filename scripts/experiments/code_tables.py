"""The tables of the page of codes, in Markdown: systems down, budgets or tasks across, a cell for both scorings."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from code_results import (
    SCORINGS,
    Number,
    Numbers,
    Place,
    Results,
    Run,
    by_bytes,
    collect,
    logistic,
    neighbours,
    of_codes,
    of_task,
    over_tasks,
    postings,
    seconds,
    share_of_dense,
    task_score,
)
from own_variants import OWN, STEPS, TARGET, TODAY, VARIANTS
from peers import NAMES
from tables import Spread, table

LABELS = {"PCA, largest": "PCA, k largest", "PCA": "PCA, first k", "sign projections": "signs of 16k projections"}
SPARSE = ("PCA, largest", "PCA-largest", *NAMES[: NAMES.index("PCA-largest")])  # of the same cost in an index as ours
UNTRAINED = ("PCA, largest", "PCA", "sign projections", "sign bits", "int8", "TF-IDF", "BM25", "dense")
AT = str(TARGET)
NOTE = """A cell has the score by cosine of two codes / with a dense query against decoded codes, mean ± deviation over
seeds. Columns are the non-zeros of a code."""


def short(value: Spread | None, digits: int = 3, signed: bool = False) -> str:
    """A number of a narrow table.

    >>> short(Spread(0.5, 0.01)), short(Spread(-0.25)), short(None)
    ('.500±.010', '-.250', '-')
    """
    if value is None:
        return "-"
    deviation = "" if value.std is None else f"±{_short(value.std, digits)}"
    return f"{'+' if signed and value.mean >= 0 else ''}{_short(value.mean, digits)}{deviation}"


def _short(number: float, digits: int) -> str:
    text = f"{number:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def label(system: str) -> str:
    """The name of a system in tables."""
    return VARIANTS[system].label if system in VARIANTS else LABELS.get(system, system)


def ordered(systems: Iterable[str]) -> list[str]:
    """Ours, the peers, what needs no training."""
    order = [*VARIANTS, *NAMES[: NAMES.index("PCA-largest")], *UNTRAINED]
    places = {name: (order.index(name) if name in order else len(order), name) for name in systems}
    return sorted(places, key=lambda name: places[name])


def cell(by_scoring: Sequence[Mapping[Place, Spread]], place: Place) -> str | None:
    """The symmetric value / that of a dense query; None if there is neither."""
    values = [short(found[place]) for found in by_scoring if place in found]
    return " / ".join(values) or None


def by_budget(by_scoring: Sequence[Mapping[Place, Spread]]) -> str:
    """A table of systems and budgets that are numbers, without the steps of our own."""
    places = {place for found in by_scoring for place in found if place.budget.isdecimal()}
    places = {place for place in places if not (place.system in VARIANTS and VARIANTS[place.system].step)}
    budgets = sorted({place.budget for place in places}, key=int)
    rows = []
    for system in ordered({place.system for place in places}):
        cells = {budget: cell(by_scoring, Place(system, budget)) for budget in budgets}
        rows.append({"system": label(system)} | {budget: text or "-" for budget, text in cells.items()})
    return table(rows)


def by_task(runs: Sequence[Run], number: Callable[[str], Number]) -> str:
    """A table of systems and tasks, at `TARGET` non-zeros and of what has no budget of non-zeros."""
    numbers = [collect(runs, number(scoring)) for scoring in SCORINGS]
    tasks = _tasks(numbers)
    rows: dict[Place, dict[str, str]] = {}
    for task in tasks:
        found = [of_task(part, task) for part in numbers]
        for place in {place for part in found for place in part}:
            if _stands_by_task(place):
                rows.setdefault(place, {})[task] = cell(found, place) or "-"
    order = ordered({place.system for place in rows})
    lines = []
    for place in sorted(rows, key=lambda place: (order.index(place.system), place.budget)):
        name = label(place.system) + (f", {place.budget}" if place.budget.endswith("bytes") else "")
        lines.append({"system": name} | {task: rows[place].get(task, "-") for task in tasks})
    return table(lines)


def _stands_by_task(place: Place) -> bool:
    if place.system in VARIANTS:
        return not VARIANTS[place.system].step and place.budget in (AT, "48 bytes")
    return place.budget in (AT, "own", "48 bytes") or place.system in ("dense", "int8")


def _tasks(numbers: Sequence[Numbers]) -> list[str]:
    return sorted({task for part in numbers for by_seed in part.values() for row in by_seed.values() for task in row})


def lengths(runs: Sequence[Run]) -> str:
    """What codes of `TARGET` non-zeros are like: dimensions, lengths, postings, and what their training takes."""
    columns: dict[str, tuple[Numbers, Callable[[list[float]], float], int]] = {
        "dead dimensions": (collect(runs, of_codes("dead_dims")), min, 0),
        "always on": (collect(runs, of_codes("always_on_dims")), max, 0),
        "non-zeros": (collect(runs, of_codes("active_dims")), np.mean, 1),
        "sd": (collect(runs, of_codes("active_dims_std")), np.mean, 1),
        "5th percentile": (collect(runs, of_codes("active_dims_p5")), min, 0),
        "95th": (collect(runs, of_codes("active_dims_p95")), max, 0),
        "most": (collect(runs, of_codes("max_active_dims")), max, 0),
        "empty": (collect(runs, of_codes("empty_rows")), max, 3),
        "postings": (postings(runs), np.mean, 2),
    }
    times, rows = seconds(runs, AT), []
    dense = {"PCA", "sign projections"}
    places = {place for place in columns["non-zeros"][0] if place.budget == AT and place.system not in dense}
    places = {place for place in places if not (place.system in VARIANTS and VARIANTS[place.system].step)}
    places |= {Place("HSVAE-lengths", "own")} & columns["non-zeros"][0].keys()
    budgets = dict(places)
    for system in ordered(budgets):
        row = {"system": label(system)}
        for name, (numbers, over, digits) in columns.items():
            by_seed = numbers.get(Place(system, budgets[system]), {})
            values = [float(over(list(values.values()))) for values in by_seed.values()]
            row[name] = f"{np.mean(values):.{digits}f}" if values else "-"
        rows.append(row | {"CPU seconds": short(times.get(system), 0)})
    return table(rows)


def steps(runs: Sequence[Run]) -> str:
    """Our steps, at `TARGET` non-zeros, and at the model's own lengths where they differ."""
    shares = [over_tasks(share_of_dense(runs, scoring)) for scoring in SCORINGS]
    kept = [over_tasks(collect(runs, neighbours(scoring))) for scoring in SCORINGS]
    active = over_tasks(collect(runs, of_codes("active_dims")))
    rows = []
    for name in STEPS:
        for budget in [AT, "own"] if VARIANTS[name].own_rule else [AT]:
            place = Place(name, budget)
            if place in active:
                row = {
                    "codes": (TODAY if name == OWN else label(name)) + (", its own lengths" if budget == "own" else "")
                }
                row |= {"share of dense": cell(shares, place) or "-", "neighbours kept": cell(kept, place) or "-"}
                rows.append(row | {"non-zeros": short(active[place], 1)})
    return table(rows) if len(rows) > 1 else ""


def lead(runs: Sequence[Run], number: Callable[[str], Number], task: str) -> list[float]:
    """By how much our mean over seeds is ahead of the best sparse peer's, for each scoring where both are there."""
    differences = []
    for scoring in SCORINGS:
        found = of_task(collect(runs, number(scoring)), task)
        peers = [value.mean for place, value in found.items() if place.budget == AT and place.system in SPARSE]
        own = found.get(Place(OWN, AT))
        if own is not None and peers:
            differences.append(own.mean - max(peers))
    return differences


def home_and_away(homes: Mapping[str, Sequence[Run]], number: Callable[[str], Number]) -> str:
    """A table of what was trained on and what was measured on: how far HSVAE is ahead; and how often it is."""
    tasks = _tasks([collect(runs, number("cosine")) for runs in homes.values()])
    rows, led = [], {False: np.zeros((2, 2), int), True: np.zeros((2, 2), int)}  # by home: scoring, (led, pairs)
    for home, runs in homes.items():
        row = {"trained on": home}
        for task in tasks:
            differences = lead(runs, number, task)
            row[task] = " / ".join(short(Spread(value), signed=True) for value in differences) or "-"
            for scoring, value in enumerate(differences):
                led[task == home][scoring] += (int(value > 0), 1)
        rows.append(row)
    counts = []
    for at_home, where in ((False, "away from home"), (True, "at home")):
        for (ahead, pairs), title in zip(led[at_home], SCORINGS.values(), strict=True):
            if pairs:
                counts.append(f"{where} in {ahead} of {pairs} ({title})")
    return f"{table(rows)}\n\nHSVAE leads {', '.join(counts)}." if counts else table(rows)


def markdown(results: Results, level: int = 2) -> str:
    """All tables of which there are runs."""
    head, settings, runs = "#" * level, results.settings, results.runs
    trained = f"{settings.get('rows', 0):,} rows, {settings.get('max_steps', 0):,} steps"
    parts = [f"{head} {settings.get('width', 0):,} dimensions, {settings.get('split', 'test')} rows"]
    if runs:
        parts += [f"Trained on {trained}. {NOTE}", *_main_tables(runs, f"{head}#")]
    if results.homes:
        note = f"How far HSVAE is ahead of the best sparse peer (PCA's k largest among them) at {AT} non-zeros."
        parts.append(f"{head}# Trained on one set, used on another\n\n{note} Symmetric / dense query.")
        for title, number in (("main score", task_score), ("neighbours kept", neighbours)):
            parts.append(f"{title.capitalize()}:\n\n{home_and_away(results.homes, number)}")
    return "\n\n".join([*parts, *(markdown(other, level) for other in results.widths)])


def _main_tables(runs: Sequence[Run], head: str) -> list[str]:
    shares = [over_tasks(share_of_dense(runs, scoring)) for scoring in SCORINGS]
    kept = [over_tasks(collect(runs, neighbours(scoring))) for scoring in SCORINGS]
    parts = []
    if any(shares):
        parts.append(f"{head} Share of the dense vectors' main score, mean over tasks\n\n{by_budget(shares)}")
        in_bytes = [over_tasks(share_of_dense(runs, scoring, by_bytes)) for scoring in SCORINGS]
        parts.append(f"{head} The same by bytes of a code\n\n{by_budget(in_bytes)}")
    if any(kept):
        parts.append(f"{head} Neighbours kept, mean over tasks\n\n{by_budget(kept)}")
    parts.append(f"{head} Main score by task, {AT} non-zeros\n\n{by_task(runs, task_score)}")
    parts.append(f"{head} Neighbours kept by task, {AT} non-zeros\n\n{by_task(runs, neighbours)}")
    if collect(runs, logistic("cosine")):
        parts.append(f"{head} Accuracy of logistic regression by task, {AT} non-zeros\n\n{by_task(runs, logistic)}")
    note = (
        "Over tasks the least of dead dimensions and of the 5th percentile, the most of what is always on, of the 95th "
        "percentile, of the longest code and of the share of empty codes, the mean of the rest. `postings`: entries of "
        "an inverted index that a code touches as a query, per document. One HSVAE is trained for all budgets."
    )
    parts.append(f"{head} Codes of {AT} non-zeros\n\n{note}\n\n{lengths(runs)}")
    if ablation := steps(runs):
        parts.append(f"{head} Step by step, {AT} non-zeros, mean over tasks\n\n{ablation}")
    return parts
