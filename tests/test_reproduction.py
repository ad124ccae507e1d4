"""The figures, at a size of seconds, on a corpus of a few sentences."""

import json
import shutil

import numpy as np
import pytest
import reproduction
import studies
import transformers
from comparison import Comparison
from families import bert
from redraw import DRAW, redraw
from reproduce import ReproduceArguments, reproduce

from hsvae_hf import embedding_cache

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
    monkeypatch.setattr(reproduction, "SMALL_STUDY", TINY)
    monkeypatch.setattr(studies, "TARGETS", [2, 4])

    def make(figure, **changes):
        fields = {"figure": figure, "dataset": [str(path)], "output_dir": str(tmp_path / "out"), "latent_sizes": [6]}
        fields |= {"encoder_name_or_path": str(tmp_path / "encoder"), "seeds": 1}
        text = reproduce(ReproduceArguments(**(fields | changes)))
        written = json.loads((tmp_path / "out" / f"{figure}.json").read_text())
        assert (tmp_path / "out" / f"{figure}.md").read_text().strip() == text
        picture = tmp_path / "out" / f"{figure}.png"
        drawn = picture.read_bytes()
        assert len(drawn) > 5000
        if figure in DRAW:
            picture.unlink()
            assert redraw(tmp_path / "out" / f"{figure}.json") == picture
            assert picture.read_bytes() == drawn
        return written["numbers"], text

    return make


def test_figure_2_has_every_model_and_goes_on_where_it_stopped(call, monkeypatch):
    settings = {"seeds": 2, "latent_sizes": [4, 6], "models": ["HSVAE", "VAE", "Simple", "B-VAE"]}
    numbers, text = call("figure2", **settings)
    systems = [(row["latent_size"], row["model"], row["code_size"]) for row in numbers]
    assert systems[:4] == [(4, "HSVAE", 4), (4, "VAE", 4), (4, "Simple", 12), (4, "B-VAE", 4)]
    assert systems[4:] == [(6, "HSVAE", 6), (6, "VAE", 6), (6, "B-VAE", 6)]
    assert all(0 <= row["accuracy"][0] <= 1 and row["seeds"] == 2 for row in numbers)
    head, _, first, *_, last = text.splitlines()[2:]
    assert head == "| model | corpus.jsonl, 4 | corpus.jsonl, 6 |"
    assert first.startswith("| HSVAE | {:.3f} ± {:.3f} (".format(*numbers[0]["accuracy"]))
    assert last.startswith("| B-VAE | ")
    code, use = numbers[0]["accuracy_code"], (numbers[0]["active_dims"][0], numbers[0]["switching_fraction"][0])
    assert "| HSVAE | {:.3f} ± {:.3f} ({:.1f}, {:.2f}) |".format(*code, *use) in text
    assert text.count("| Simple | ") == 1  # it has no code to speak of

    def no_training(*arguments, **options):
        raise AssertionError("a finished run was repeated")

    monkeypatch.setattr(Comparison, "new_model", no_training)
    assert call("figure2", **settings)[0] == numbers
    activity = np.array(call("figure4", encoder_name_or_path="none")[0][0]["activity"], dtype=float)  # the same HSVAE
    assert activity.shape == (3, 6)
    seen = ~np.isnan(activity[:, 0])  # of three test rows
    assert seen.sum() >= 2
    assert ((activity[seen] >= 0) & (activity[seen] <= 1)).all()
    with pytest.raises(ValueError, match="`encoder_name_or_path` must stay"):
        call("figure2", latent_sizes=[4], models=["B-VAE"], encoder_name_or_path="none")


def test_figure_3_follows_the_hoyer_of_priors_and_weights_through_training(call):
    numbers, text = call("figure3")
    assert [row["family"] for row in numbers] == ["HSVAE"] * 5 + ["MAT-VAE"] * 4
    for row in numbers:
        assert row["step"] == [1, 2]
        assert all(0 <= value <= 1 for value in row["average_hoyer_samples"]["mean"])
    assert f"| HSVAE prior_alpha=1 prior_beta=4 | {numbers[0]['average_hoyer_samples']['mean'][-1]:.2f} |" in text


def test_what_is_no_figure_is_not_drawn_again(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"settings": {"figure": "figure5"}, "numbers": []}')
    with pytest.raises(ValueError, match="`path` must be the JSON of figure2, .* got .*other.json"):
        redraw(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="`path` must hold whole results"):
        redraw(path)


def test_figure_5_is_a_divergence_of_classes(call):
    (row,) = call("figure5")[0]
    kl = np.array(row["kl"])
    assert kl.shape == (3, 3)
    assert np.allclose(np.diag(kl), 0)
    assert (kl[~np.eye(3, dtype=bool)] > 0).all()


def test_the_study_and_the_dial(call):
    systems = ["HSVAE", "HSVAE-balanced max_steps=6", "HSVAE learning_rate=0.01"]
    numbers, text = call("gates", models=systems)
    assert [row["model"] for row in numbers] == systems
    assert [line.split(" | ")[1] for line in text.splitlines()[2:5]] == systems
    numbers, text = call("dial")
    assert f"| corpus.jsonl | 2 | {numbers[0]['active_dims'][0]:.2f} |" in text
    assert [row["wanted"] for row in numbers] == [2, 4]
    counted = [row["active_dims"][0] for row in numbers]
    assert 0 < counted[0] < counted[1] < 6
    assert counted == pytest.approx([2, 4], abs=1.75)  # two test rows, of gates that were trained for two steps


def test_codes_of_vectors_stand_beside_those_of_words(call, tmp_path):
    data = tmp_path / "corpus"
    data.mkdir()
    for split in ("train", "validation", "test"):
        shutil.copy(tmp_path / "corpus.jsonl", data / f"{split}.jsonl")
    row = {"task": "corpus", "kind": "classification", "seeds": 3}
    scores = {"logistic_accuracy": [0.75, 0.125], "active_dims": [4.5, 0.25]}
    rows = [
        row | {"system": "HSVAE", "budget": {"active_dims": 4}, "scores": scores},
        row | {"system": "HSVAE", "budget": {"bytes": 48, "value_bits": 4, "active_dims": 27}, "scores": {}},
        row | {"system": "dense", "budget": {"bytes": 64}, "scores": {}},
        row | {"task": "search", "system": "CSR", "budget": {"active_dims": 2}, "scores": {"ndcg@10": [0.5, None]}},
        row | {"system": "CSR", "budget": {"active_dims": 2}, "scores": scores | {"logistic_accuracy": [0.5, None]}},
    ]
    path = tmp_path / "codes.json"
    path.write_text(json.dumps(rows))
    numbers, text = call("nonzeros", codes_json=str(path), dataset=[str(data)])
    ours = {"system": "HSVAE of vectors", "wanted": 4, "non_zeros": 4.5, "accuracy": [0.75, 0.125]}
    csr = {"system": "CSR of vectors", "wanted": 2, "non_zeros": 4.5, "accuracy": [0.5, None]}
    assert numbers[-2:] == [{"dataset": "corpus"} | found for found in (csr, ours)]
    assert text.endswith("| CSR of vectors | 2 | 0.500 (4.5) |\n| HSVAE of vectors | 4 | 0.750 ± 0.125 (4.5) |")
    systems = {row["system"]: row for row in numbers}
    names = ["TF-IDF of words", "TF-IDF of words, SVD (dense)", "dense vectors", "HSVAE of words", "B-HSVAE of words"]
    assert list(systems)[:5] == names
    assert systems["dense vectors"]["non_zeros"] == 16
    path.write_text(json.dumps([row | {"task": "other"} for row in rows]))
    with pytest.raises(ValueError, match="`codes_json` must have rows of every data set, got none of corpus"):
        call("nonzeros", codes_json=str(path), dataset=[str(data)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"figure": "figure1"}, "`figure` must be one of figure2"),
        ({"figure": "figure2", "size": "huge"}, "`size` must be one of small, hours, paper"),
        ({"figure": "figure2", "seeds": 0}, "`seeds` must be at least 1"),
        ({"figure": "figure3", "latent_sizes": [1]}, "`latent_sizes` must be up to 7 numbers from 2 on"),
        ({"figure": "nonzeros", "latent_sizes": [2]}, "`latent_sizes` must begin with more than 2 for this, got 2"),
        ({"figure": "nonzeros", "codes_json": "none.json"}, "`codes_json` must be a file, got 'none.json'"),
        ({"figure": "nonzeros", "models": ["HSVAE"]}, "`models` must be left out for nonzeros, got a value; it is for"),
        ({"figure": "figure5", "dataset": ["a/x", "b/x"]}, "`dataset` must have different names"),
        ({"figure": "gates", "models": ["HSVAE", "VAE"]}, "`models` must be of HSVAE for the gates, got 'VAE'"),
    ],
)
def test_bad_options_are_named(call, changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)
