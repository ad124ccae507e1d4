"""The figures, at a size of seconds, on a corpus of a few sentences."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import reproduction
import torch
import transformers
from comparison import Comparison
from families import bert
from reproduction import ReproduceArguments, reproduce
from vector_models import script

from hsvae_hf import embedding_cache
from hsvae_hf.models import modeling_hsvae

TINY = {"max_steps": 2, "batch_size": 8, "learning_rate": 1e-3, "vocab_size": 60, "embedding_size": 8}
TINY |= {"hidden_size": 12, "classifier_epochs": 1, "max_train_samples": None, "max_samples": None}


@pytest.fixture
def call(sentences, labels, tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "corpus.jsonl"
    rows = [{"text": text, "label": label} for text, label in zip(sentences, labels, strict=True)] * 8
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    transformers.BertModel(bert(len(tokenizer))["encoder_config"]).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    monkeypatch.setattr(embedding_cache.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setitem(reproduction.SIZES, "small", TINY)
    monkeypatch.setitem(reproduction.LONGER, "small", {})
    monkeypatch.setattr(reproduction, "TARGETS", [2, 4])

    def make(figure, **changes):
        fields = {"figure": figure, "dataset": [str(path)], "output_dir": str(tmp_path / "out"), "latent_sizes": [6]}
        options = ReproduceArguments(**(fields | {"encoder_name_or_path": str(tmp_path / "encoder")} | changes))
        text = reproduce(options)
        made = json.loads((tmp_path / "out" / f"{figure}.json").read_text())
        assert (tmp_path / "out" / f"{figure}.md").read_text().strip() == text
        assert (tmp_path / "out" / f"{figure}.png").stat().st_size > 5000
        return made["numbers"], text

    return make


def test_figure_2_has_every_model_and_goes_on_where_it_stopped(call, monkeypatch):
    numbers, text = call("figure2", seeds=2, latent_sizes=[4, 6], models=["HSVAE", "VAE", "Simple", "B-VAE"])
    assert [(row["latent_size"], row["model"]) for row in numbers][:4] == [
        (4, "HSVAE"),
        (4, "VAE"),
        (4, "Simple"),
        (4, "B-VAE"),
    ]
    assert all(0 <= row["accuracy"][0] <= 1 for row in numbers)
    assert numbers[0]["seeds"] == 2
    assert [(row["latent_size"], row["code_size"]) for row in numbers if row["model"] == "Simple"] == [(4, 12)]
    head, _, first, *_, last = text.splitlines()[2:]
    assert head == "| model | corpus.jsonl, 4 | corpus.jsonl, 6 |"
    assert first.startswith("| HSVAE | {:.3f} ± {:.3f} (".format(*numbers[0]["accuracy"]))
    assert last.startswith("| B-VAE | ")

    def no_training(*arguments, **options):
        raise AssertionError("a finished run was repeated")

    monkeypatch.setattr(Comparison, "new_model", no_training)
    assert call("figure2", seeds=2, latent_sizes=[4, 6], models=["HSVAE", "VAE", "Simple", "B-VAE"])[0] == numbers
    activity = np.array(call("figure4", encoder_name_or_path="none")[0][0]["activity"], dtype=float)  # the same HSVAE
    assert activity.shape == (3, 6)
    seen = ~np.isnan(activity[:, 0])  # of three test rows
    assert seen.sum() >= 2
    assert ((activity[seen] >= 0) & (activity[seen] <= 1)).all()
    numbers, text = call("figure2", seeds=2, latent_sizes=[4, 6], models=["Simple", "VAE"], encoder_name_or_path="none")
    assert [(row["latent_size"], row["model"]) for row in numbers] == [(4, "Simple"), (4, "VAE"), (6, "VAE")]
    assert text.splitlines()[2] == "| model | corpus.jsonl, 4 | corpus.jsonl, 6 |"
    with pytest.raises(ValueError, match="`encoder_name_or_path` must stay"):
        call("figure2", latent_sizes=[4], models=["B-VAE"], encoder_name_or_path="none")


def test_figure_3_follows_the_hoyer_of_priors_and_weights_through_training(call):
    numbers, text = call("figure3", seeds=1)
    assert [row["family"] for row in numbers] == ["HSVAE"] * 5 + ["MAT-VAE"] * 4
    for row in numbers:
        assert row["step"] == [1, 2]
        assert all(0 <= value <= 1 for value in row["average_hoyer_samples"]["mean"])
    assert f"| HSVAE prior_alpha=1 prior_beta=4 | {numbers[0]['average_hoyer_samples']['mean'][-1]:.2f} |" in text


def test_figure_5_is_a_divergence_of_classes(call):
    (found,) = call("figure5")[0]
    kl = np.array(found["kl"])
    assert kl.shape == (3, 3)
    assert np.allclose(np.diag(kl), 0)
    assert (kl[~np.eye(3, dtype=bool)] > 0).all()


def test_the_study_and_the_dial(call):
    systems = ["HSVAE", "HSVAE-balanced max_steps=6", "HSVAE learning_rate=0.01"]
    numbers, text = call("gates", seeds=1, models=systems)
    assert [row["model"] for row in numbers] == systems
    assert text.startswith("On corpus.jsonl, `HSVAE` gives ")
    assert [line.split(" | ")[1] for line in text.splitlines()[4:]] == systems
    numbers, text = call("dial", seeds=1)
    assert f"| corpus.jsonl | 2 | {numbers[0]['active_dims'][0]:.2f} |" in text
    with pytest.raises(ValueError, match="`latent_sizes` must begin with more than 2 for this, got 2"):
        call("dial", seeds=1, latent_sizes=[2])
    assert [row["wanted"] for row in numbers] == [2, 4]
    for row in numbers:
        assert row["active_dims"][0] == pytest.approx(row["wanted"], abs=1.0)


def test_everything_by_non_zeros(call, tmp_path):
    found = {"dataset": "corpus.jsonl", "latent_size": 256, "system": "CSR", "active_dims": 8.0, "accuracy": 0.9}
    found["wanted"] = 8
    (tmp_path / "vectors.json").write_text(
        json.dumps([found | {"accuracy_std": 0.01}, found | {"latent_size": 512, "accuracy_std": None}])
    )
    numbers, text = call("nonzeros", seeds=1, vectors_json=str(tmp_path / "vectors.json"))
    systems = {row["system"] for row in numbers}
    assert {
        "TF-IDF of words",
        "TF-IDF of words, SVD (dense)",
        "dense vectors",
        "HSVAE of words",
        "B-HSVAE of words",
    } <= systems
    assert numbers[-1] == {
        "dataset": "corpus.jsonl",
        "system": "CSR of vectors",
        "wanted": 8,
        "non_zeros": 8.0,
        "accuracy": [0.9, 0.01],
    }
    assert text.endswith("| CSR of vectors | 8 | 0.900 ± 0.010 (8.0) |")
    (tmp_path / "vectors.json").write_text(json.dumps([found | {"dataset": "other"}]))
    with pytest.raises(ValueError, match="`vectors_json` must have rows of every data set, got none of corpus.jsonl"):
        call("nonzeros", seeds=1, vectors_json=str(tmp_path / "vectors.json"))
    assert next(row for row in numbers if row["system"] == "dense vectors")["non_zeros"] == 16


def test_codes_of_vectors_stand_beside_those_of_words(call, tmp_path):
    data = tmp_path / "corpus"
    data.mkdir()
    for split in ("train", "validation", "test"):
        shutil.copy(tmp_path / "corpus.jsonl", data / f"{split}.jsonl")
    flags = {"encoder_name_or_path": tmp_path / "encoder", "output_dir": tmp_path / "vectors", "max_steps": 2}
    flags |= {"dataset": data, "latent_sizes": 8, "active_dims": 2, "seeds": 1}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    script("compare_vectors", *words, "--systems", "HSVAE", "CSR", "VSC", "SDLGM")
    rows = json.loads((tmp_path / "vectors/vectors.json").read_text())
    assert [row["system"] for row in rows] == ["HSVAE", "CSR", "VSC", "SDLGM", "dense"]
    assert all(0 <= row["accuracy"] <= 1 and row["accuracy_std"] is None for row in rows)
    assert all(0 < row["active_dims"] <= 3 and 0 <= row["neighbours_kept"] <= 1 for row in rows[:4])
    numbers, _ = call("nonzeros", seeds=1, vectors_json=str(tmp_path / "vectors/vectors.json"), dataset=[str(data)])
    shown = {row["system"]: row["accuracy"] for row in numbers}
    assert shown["CSR of vectors"] == [rows[1]["accuracy"], None]
    assert shown["dense vectors"][0] == pytest.approx(rows[4]["accuracy"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"figure": "figure1"}, "`figure` must be one of figure2"),
        ({"figure": "figure2", "size": "huge"}, "`size` must be one of small, hours, paper"),
        ({"figure": "figure2", "seeds": 0}, "`seeds` must be at least 1"),
        ({"figure": "figure3", "latent_sizes": [1]}, "`latent_sizes` must be up to 4 numbers from 2 on"),
        ({"figure": "figure2", "latent_sizes": [2, 3, 4, 5, 6]}, "`latent_sizes` must be up to 4 numbers from 2 on"),
        ({"figure": "nonzeros", "latent_sizes": [2]}, "`latent_sizes` must begin with more than 2 for this, got 2"),
        ({"figure": "nonzeros", "vectors_json": "none.json"}, "`vectors_json` must be a file, got 'none.json'"),
        ({"figure": "nonzeros", "models": ["HSVAE"]}, "`models` must be left out for nonzeros: it is for figure2"),
        ({"figure": "dial", "vectors_json": "x"}, "`vectors_json` must be left out for dial: it is for nonzeros"),
        ({"figure": "figure5", "dataset": ["a/x", "b/x"]}, "`dataset` must have different names"),
        ({"figure": "gates", "models": ["HSVAE", "VAE"]}, "`models` must be of HSVAE for the gates, got 'VAE'"),
    ],
)
def test_bad_options_are_named(call, changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_variants_of_the_gates_last_for_their_runs_alone(call, tmp_path, monkeypatch):
    call("figure5")  # makes the corpus
    before = modeling_hsvae.sample_binary_concrete, modeling_hsvae.GateLinear, modeling_hsvae.HSVAEHead.anneal
    flags = ["--dataset", tmp_path / "corpus.jsonl", "--output_dir", tmp_path / "out", "--latent_size", 6]
    monkeypatch.setattr(sys, "argv", ["gate_variants.py", *map(str, flags)])
    script = runpy.run_path(str(Path(__file__).parent.parent / "scripts/gate_variants.py"))
    script["main"]()
    assert before == (modeling_hsvae.sample_binary_concrete, modeling_hsvae.GateLinear, modeling_hsvae.HSVAEHead.anneal)
    rows = json.loads((tmp_path / "out/gate_variants.json").read_text())
    assert [row["model"] for row in rows] == ["HSVAE", "HSVAE-balanced"] * 3
    logits = torch.zeros(1000, requires_grad=True)
    for name, hard in (("relaxed", False), ("annealed", True), ("closed", True)):
        with script["variant"](name):
            drawn = modeling_hsvae.sample_binary_concrete(logits, 0.5)
            assert bool(((drawn == 0) | (drawn == 1)).all()) == hard
            start = modeling_hsvae.GateLinear(4, 3, 0.5, 0.5).start
            assert start == (0.2 if name == "closed" else 0.5)
