"""Runs, tables and figures of the comparison of codes, and vectors of a suite."""

import json

import embed_suite
import numpy as np
import pytest
from code_results import (
    Place,
    by_bytes,
    collect,
    of_task,
    over_tasks,
    postings,
    read_results,
    share_of_dense,
    task_score,
)
from code_tables import home_and_away, lengths, markdown, short
from compare_codes import CodesArguments, home_vectors, write_page
from finished_runs import Runs
from own_variants import STEPS, VARIANTS
from peers import train_peer
from tables import Spread
from test_evaluation_tasks import embed, suite, write  # noqa: F401 - suite is a fixture
from vector_models import script

from hsvae_hf.evaluation_tasks import load_tasks

WIDTH = 32


def row(task, system, budget, score, query=None, **more):
    """A row as the evaluation gives it, of a task of pairs."""
    scores = {"cosine_spearman": score, "cosine_neighbours@10": score / 2, "pool_postings": 30.0}
    if query is not None:
        scores |= {"asymmetric_spearman": query, "asymmetric_neighbours@10": query / 2}
    codes = {"active_dims": 16.0, "active_dims_std": 1.0, "active_dims_p5": 12.0, "active_dims_p95": 18.0}
    codes |= {"max_active_dims": 20, "empty_rows": 0.0, "dead_dims": len(task), "always_on_dims": 2}
    head = {"task": task, "kind": "similarity", "split": "test", "system": system, "budget": budget}
    return head | {"scores": scores, "codes": codes} | more


def a_run(system, seed, *rows, seconds=10.0):
    return {"system": system, "seed": seed, "training_seconds": seconds, "rows": list(rows)}


@pytest.fixture
def runs():
    at = {"active_dims": 16}
    quantised = {"bytes": 48, "value_bits": 4, "active_dims": 27}
    return [
        a_run(
            "baselines", 0, *(row(task, "dense", {"bytes": 1536}, whole) for task, whole in (("a", 0.8), ("bcd", 0.5)))
        ),
        *(
            a_run(
                "HSVAE",
                seed,
                row("a", "HSVAE", at, 0.4 + 0.04 * seed, 0.6, pool_rows=10),
                row("bcd", "HSVAE", at, 0.3, 0.4, pool_rows=20),
                row("a", "HSVAE", quantised, 0.7),
                row("bcd", "HSVAE", quantised, 0.4),
            )
            for seed in (1, 2)
        ),
        a_run("TopK", 1, row("a", "TopK", at, 0.5, 0.5), row("bcd", "TopK", at, 0.25, 0.45), seconds=4.0),
        a_run("CSR", 1, row("a", "CSR", at, 0.6)),  # not on all tasks
    ]


def test_shares_are_means_over_tasks_and_spreads_over_seeds(runs):
    shares = over_tasks(share_of_dense(runs, "cosine"))
    by_seed = [np.mean([(0.4 + 0.04 * seed) / 0.8, 0.3 / 0.5]) for seed in (1, 2)]
    assert shares[Place("HSVAE", "16")] == pytest.approx((np.mean(by_seed), np.std(by_seed, ddof=1)))
    assert shares[Place("TopK", "16")] == (pytest.approx((0.5 / 0.8 + 0.25 / 0.5) / 2), None)
    assert shares[Place("dense", "1536 bytes")].mean == 1
    assert not any(place.system == "CSR" for place in shares)
    assert of_task(collect(runs, task_score("cosine")), "a")[Place("CSR", "16")].mean == 0.6
    in_bytes = over_tasks(share_of_dense(runs, "cosine", by_bytes))
    assert in_bytes[Place("HSVAE", "48")].mean == pytest.approx((0.7 / 0.8 + 0.4 / 0.5) / 2)
    assert over_tasks(postings(runs))[Place("TopK", "16")].mean == pytest.approx((30 / 10 + 30 / 20) / 2)
    assert not share_of_dense(runs[1:], "cosine")  # nothing to divide by


def test_tables_show_what_was_measured(runs):
    table = lengths(runs).splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| HSVAE, one for all budgets", "| CSR", "| TopK"]
    assert table[2].split(" | ")[1:4] == ["1", "2", "16.0"]  # the fewest dead over tasks
    assert table[2].endswith("| 2.25 | 10±0 |") and table[4].endswith("| 2.25 | 4 |")
    assert short(Spread(-0.05, 0.001), signed=True) == "-.050±.001"
    homes = {"a": runs, "bcd": runs}
    text = home_and_away(homes, task_score)
    assert "| a | -.140 / +.100 | +.050 / -.050 |" in text
    assert "away from home in 1 of 2 (symmetric), away from home in 1 of 2 (dense query)" in text


def test_the_page_is_made_of_finished_runs_alone(runs, tmp_path):
    settings = {"rows": 90, "max_steps": 5, "width": 512, "split": "test"}
    for folder, width in ((tmp_path, 512), (tmp_path / "homes/a", 512), (tmp_path / "width-2048", 2048)):
        for run in runs:
            Runs(folder).result(f"{run['system']}-16-{run['seed']}", lambda run=run: run, settings | {"width": width})
    text = write_page(str(tmp_path))
    assert text == (tmp_path / "codes.md").read_text().rstrip("\n") == markdown(read_results(tmp_path))
    assert text.index("## 512 dimensions") < text.index("Trained on one set") < text.index("## 2,048 dimensions")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("codes.png", "codes-cost.png"))
    summary = json.loads((tmp_path / "codes.json").read_text())
    assert {"task": "a", "system": "TopK"}.items() <= next(part for part in summary if part["system"] == "TopK").items()
    with pytest.raises(ValueError, match="`output_dir` must hold finished runs"):
        write_page(str(tmp_path / "homes"))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_trained_as_it_says(name):
    vectors = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    options = VARIANTS[name].options(WIDTH, 4)
    config = train_peer("HSVAE", vectors, WIDTH, 4, seed=1, steps=2, batch_size=32, **options).coder.model.config
    assert config.target_active_dims == 4 and config.latent_size == WIDTH
    for option, value in options.items():
        assert getattr(config, option) == value
    assert (config.min_active_dims, config.max_active_dims) == {
        "HSVAE-threshold": (0, WIDTH),
        "HSVAE-lengths": (2, 8),
    }.get(name, (4, 4))
    if name in ("HSVAE", "HSVAE-lengths"):
        assert config.code_budgets == [2, 4, 8, 16] and config.code_ridge == 0.1
    assert set(STEPS) <= set(VARIANTS)


@pytest.fixture
def pairs(tmp_path):
    """A suite of pairs and of documents, their vectors, and vectors to train on."""
    draw = np.random.default_rng(0)
    (tmp_path / "vectors").mkdir()
    for split in ("test", "validation"):
        texts = [[f"{split} {row} {side}" for row in range(40)] for side in "ab"]
        write(tmp_path / f"suite/pairs/{split}.parquet", sentence1=texts[0], sentence2=texts[1], score=draw.random(40))
        for side in (1, 2):
            np.save(tmp_path / f"vectors/pairs-{split}-{side}.npy", draw.normal(size=(40, 12)).astype(np.float32))
    np.save(tmp_path / "train.npy", draw.normal(size=(100, 12)).astype(np.float32))
    return tmp_path


def test_runs_are_kept_and_widths_and_homes_stand_apart(pairs, capsys):
    pytest.importorskip("bm25s", reason="bm25s, of the extra `eval`, is missing")
    words = ["--suite", pairs / "suite", "--vectors_dir", pairs / "vectors", "--output_dir", pairs / "out"]
    words += ["--max_steps", 2, "--seeds", 1, "--active_dims", 4, "--bytes_per_code", 8]
    trained = ["--training_vectors", pairs / "train.npy"]
    script("experiments/compare_codes", *words, *trained, "--width", 32, "--systems", "HSVAE", "topk", "baselines")
    kept = {path.stem for path in (pairs / "out/runs").glob("*.json")}
    assert kept == {"HSVAE-0-1", "TopK-4-1", "baselines", "settings"}
    settings = json.loads((pairs / "out/runs/settings.json").read_text())
    assert set(settings) == {"rows", "vectors", "split", "tasks", "width", "max_steps", "measures"}
    run = json.loads((pairs / "out/runs/HSVAE-0-1.json").read_text())
    assert [part["budget"].get("bytes") for part in run["rows"]] == [None, 8]
    assert set(run) == {"system", "seed", "training_seconds", "rows"}
    few = ["--systems", "TopK", "--width", 64]
    script("experiments/compare_codes", *words, *trained, *few)
    assert (pairs / "out/width-64/runs/TopK-4-1.json").is_file()
    script("experiments/compare_codes", *words, "--width", 32, "--systems", "HSVAE", "TopK", "--homes", "pairs")
    assert {path.stem for path in (pairs / "out/homes/pairs/runs").glob("*-1.json")} == {"HSVAE-0-1", "TopK-16-1"}
    capsys.readouterr()
    text = (pairs / "out/codes.md").read_text()
    script("experiments/compare_codes", "--only_tables", "--output_dir", pairs / "out")
    assert capsys.readouterr().out == text
    assert "## 64 dimensions" in text and "Trained on one set" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "`suite` must be given"),
        (["--suite", "x", "--vectors_dir", "y"], "`training_vectors` must be given without `homes`"),
        (["--suite", "x"], "exactly one of `encoder_name_or_path` and `vectors_dir`"),
        (["--systems", "HSVAE-eech"], "did you mean HSVAE-each"),
        (["--active_dims", 600], "`active_dims` must be from 1 to 512"),
    ],
)
def test_what_cannot_be_is_refused(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        script("experiments/compare_codes", "--output_dir", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_a_home_has_no_test_rows(pairs):
    options = CodesArguments(output_dir="x", suite=str(pairs / "suite"), vectors_dir=str(pairs / "vectors"))
    rows = home_vectors("pairs", options, None)
    expected = np.concatenate([np.load(pairs / f"vectors/pairs-validation-{side}.npy") for side in (1, 2)])
    np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(expected, axis=0))
    np.save(pairs / "vectors/pairs-train.npy", expected[:9])
    assert len(home_vectors("pairs", options, None)) == 9


def test_vectors_of_a_suite_are_those_that_tasks_read(suite, tmp_path, monkeypatch, sentences):  # noqa: F811
    monkeypatch.setattr(embed_suite, "vectors_of", lambda name: embed)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences * 2))
    words = ["--encoder", "any", "--suite", suite, "--output_dir", tmp_path / "vectors"]
    words += ["--training_text", tmp_path / "text.jsonl", "--max_train_samples", 5]
    monkeypatch.setattr("sys.argv", ["embed_suite.py", *map(str, words)])
    embed_suite.main()
    names = {path.stem for path in (tmp_path / "vectors").glob("*.npy")}
    assert names == {"docs-corpus", "docs-queries", "topics-train", "topics-test", "training"} | {
        f"pairs-{split}-{side}" for split in ("test", "validation") for side in (1, 2)
    }
    assert np.load(tmp_path / "vectors/training.npy").shape == (5, 3)
    for found, expected in zip(load_tasks(suite, None, tmp_path / "vectors"), load_tasks(suite, embed), strict=True):
        for part, vectors in expected.vectors.items():
            np.testing.assert_array_equal(found.vectors[part], vectors)
