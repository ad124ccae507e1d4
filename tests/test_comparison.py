"""The comparison: matching, resuming, the table and the figure, on a corpus of a few sentences."""

import json
import re
import shutil
from pathlib import Path

import comparison
import numpy as np
import pytest
import torch
import transformers
from comparison import CompareArguments, Comparison, compare
from families import bert

from hsvae_hf import embedding_cache
from hsvae_hf.models.modeling_encoders import TransformerEncoder

SMALL = {"max_steps": 3, "batch_size": 8, "vocab_size": 60, "embedding_size": 8, "hidden_size": 12, "latent_size": 6}


@pytest.fixture
def corpus(sentences, labels, tmp_path):
    path = tmp_path / "corpus.jsonl"
    rows = [{"text": text, "label": label} for text, label in zip(sentences, labels, strict=True)] * 4
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def options(corpus, tmp_path):
    def make(**changes):
        fields = {"dataset": corpus, "output_dir": str(tmp_path / "out"), "seeds": 2, "classifier_epochs": 1}
        return CompareArguments(**(fields | SMALL | {"search_runs": 1} | changes))

    return make


def test_every_system_that_needs_no_download_has_a_row(options, tmp_path, monkeypatch):
    names = [name for name in comparison.SYSTEMS if not comparison.is_pretrained(name)]
    result = compare(options(models=names))
    assert [row["model"] for row in result["models"]] == names
    folder = tmp_path / "out"
    assert json.loads((folder / "comparison.json").read_text())["models"] == result["models"]
    table = (folder / "comparison.md").read_text().splitlines()
    assert len({line.count("|") for line in table[: 2 + len(names)]}) == 1
    assert table[3 + len(names)].startswith("Mean and standard deviation")
    assert (folder / "comparison.png").stat().st_size > 10_000
    for row in result["models"]:
        runs = [path for path in (folder / "runs").glob(f"{row['model']}-[0-9]*.json")]
        assert len(runs) >= 2
        assert ("reconstruction_loss" in row) == (row["model"] != "Simple")
        found = [json.loads(path.read_text()) for path in runs]
        chosen = [one["accuracy"] for one in found if one["weight"] == row["weight"]]
        assert row["accuracy"]["mean"] == pytest.approx(np.mean(chosen))
        assert row["accuracy"]["std"] == pytest.approx(np.std(chosen, ddof=1))

    def no_training(*arguments, **options):
        raise AssertionError("a finished run was repeated")

    monkeypatch.setattr(Comparison, "new_model", no_training)
    assert compare(options(models=names))["models"] == result["models"]


@pytest.fixture
def encoder(tokenizer, tmp_path):
    transformers.BertModel(bert(len(tokenizer))["encoder_config"]).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


@pytest.mark.parametrize("frozen", [True, False])
def test_models_on_a_pretrained_encoder_decode_the_words_of_the_others(options, encoder, frozen):
    settings = {"encoder_name_or_path": encoder, "freeze_text_encoder": frozen, "vocab_size": 20}
    made = Comparison(options(models=["B-HSVAE"], **settings))
    model, tokenizer = made.new_model("B-HSVAE", None)
    assert model.decoder.lm_head.out_features == len(made.words) != len(tokenizer)
    (numbers, batch), *_ = made.batches("B-HSVAE", made.test, model.eval(), tokenizer)
    assert ("vectors" in batch) == frozen
    assert ("input_ids" in batch) == (not frozen)
    for number, row in zip(numbers, batch["labels"], strict=True):
        assert row[row >= 0].tolist() == made.words(made.test[int(number)]["text"])["input_ids"]
    assert made.result("B-HSVAE", None, 1)["reconstruction_loss"] > 0


def test_a_frozen_encoder_reads_every_sentence_once(options, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    trained, read = [], []
    monkeypatch.setattr(
        TransformerEncoder,
        "encode",
        lambda self, ids, *rest, encode=TransformerEncoder.encode: (
            trained.append(torch.is_grad_enabled()),
            read.append(len(ids)),
            encode(self, ids, *rest),
        )[2],
    )
    result = compare(options(models=["B-HSVAE", "BERT"], encoder_name_or_path=encoder, search_runs=0))
    assert [row["accuracy"]["mean"] > 0 for row in result["models"]] == [True, True]
    assert result["models"][0]["reconstruction_loss"]["mean"] > 0
    assert not any(trained)
    assert sum(read) == sum(map(len, Comparison(options(models=[])).data.values()))


@pytest.mark.parametrize("lost", ["", "checkpoint-4"])
def test_a_run_that_was_cut_short_goes_on_from_its_last_look(options, tmp_path, monkeypatch, lost):
    settings = {"models": ["HSVAE"], "seeds": 1, "max_steps": 4, "curve_points": 4, "checkpoints": True}
    whole = compare(options(**settings, output_dir=str(tmp_path / "whole")))

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Comparison, "measure", killed)
        compare(options(**settings))
    folder = tmp_path / "out/runs/HSVAE-1"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-3", "checkpoint-4"]
    if lost:
        shutil.rmtree(folder / lost)
    with pytest.raises(ValueError, match="`learning_rate` must stay 0.002"):
        compare(options(**settings, learning_rate=1.0))
    found = compare(options(**settings))
    assert not folder.exists()
    assert found["models"] == whole["models"]
    runs = [json.loads((tmp_path / name / "runs/HSVAE-1.json").read_text()) for name in ("whole", "out")]
    assert [look["step"] for look in runs[1]["curve"]] == [1, 2, 3, 4]
    assert runs[0]["curve"][-1]["eval_active_dims"] == runs[1]["curve"][-1]["eval_active_dims"]
    with pytest.raises(ValueError, match="`curve_points` must be at least 1"):
        compare(options(models=["HSVAE"], checkpoints=True))


def test_a_system_may_come_with_fields(options, tmp_path):
    result = compare(options(models=["HSVAE prior_alpha=1 prior_beta=4.5 kl_estimator=mc"], seeds=1))
    assert result["models"][0]["model"] == "HSVAE prior_alpha=1 prior_beta=4.5 kl_estimator=mc"
    model, _ = Comparison(options(models=["HSVAE prior_beta=4.5"])).new_model("HSVAE prior_beta=4.5", None)
    assert model.config.prior_beta == 4.5
    assert comparison.find_system("MAT-VAE z_kl_weight=0.1")[2] == ("penalty_weight",)
    assert comparison.find_system("HSVAE learning_rate=1e-3")[1]["learning_rate"] == 0.001
    named = Comparison(options(models=["SDLGM z_kl_weight=0.1", "Simple learning_rate=0.01"]))
    assert named.fields("SDLGM z_kl_weight=0.1", None)["sparsity_cap"] == named.fields("SDLGM", None)["sparsity_cap"]
    narrow = Comparison(options(models=["SDLGM latent_size=8"]))
    assert narrow.fields("SDLGM latent_size=8", None)["sparsity_cap"] == 4
    assert "reconstruction_loss" not in named.result("Simple learning_rate=0.01", None, 1)
    for wrong, message in (
        ("HSVAE max_steps=2.5", "`models` must give max_steps as int"),
        ("HSVAE learning_rate=abc", "`models` must give learning_rate as float"),
        ("HSVAE learning_rate=.nan", "`learning_rate` must be positive and finite"),
        ("HSVAE-balanced active_threshold=0.3", "`models` must leave out active_threshold"),
    ):
        with pytest.raises(ValueError, match=message):
            Comparison(options(models=["Simple", wrong]))
    Comparison(options(models=["HSVAE active_threshold=0.3", "HSVAE target_active_dims=2"]))
    for wrong in (
        "HSVAE nonsense=1",
        "HSVAE prior_alpha",
        "HSVAE vocab_size=50",
        "HSVAE num_samples=0",
        "HSVAE feature_size=3",
        "HSVAE validate_gate=1",
        "HSVAE pad_token_id=7",
        "HSVAE dtype=float16",
    ):
        with pytest.raises(ValueError, match="`models` must give fields of hsvae as name=value"):
            compare(options(models=[wrong]))


def test_weights_are_searched_towards_the_reference(options, monkeypatch):
    made = Comparison(options(search_runs=6))
    monkeypatch.setattr(
        Comparison, "result", lambda self, system, weight, seed: {"reconstruction_loss": 50 + 10 * np.log10(weight)}
    )
    assert made.matched_weight("VAE", 40.0) == pytest.approx(0.1, rel=0.2)
    assert made.matched_weight("VAE", 25.0) == pytest.approx(10**-2.5, rel=0.2)
    assert made.matched_weight("HSVAE", 40.0) is None


def test_runs_of_other_settings_do_not_mix_in(options):
    with pytest.raises(Exception, match="`word_dropout` must be"):
        compare(options(models=["VAE"], word_dropout=1.0))
    compare(options(models=["Simple"], seeds=1))  # what was refused has left no trace
    Comparison(options(seeds=5, models=["VAE"]))
    with pytest.raises(ValueError, match=re.escape("`latent_size` must stay 6")):
        Comparison(options(latent_size=7))
    Comparison(options(encoder_name_or_path="another", models=["VAE"]))  # which reads no encoder
    made = options(models=["Simple"], seeds=1)
    made.dataset += "/"
    compare(made)  # the same folder
    path = Path(made.output_dir) / "runs/Simple-1.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(ValueError, match=r"must hold whole results, got '.*Simple-1.json'"):
        compare(made)


def test_trained_models_are_compared_as_they_are(options, saved_model, tmp_path):
    result = compare(options(models=[str(saved_model), "Simple"], seeds=1, search_runs=0))
    assert result["models"][0]["model"] == str(saved_model)
    assert result["models"][0]["active_dims"]["mean"] >= 0
    assert result["models"][0]["accuracy"]["std"] is None
    assert saved_model.name in Path(tmp_path / "out/comparison.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["LSTM"]}, "`models` must be of"),
        ({"seeds": 0}, "`seeds` must be at least 1"),
    ],
)
def test_bad_options_are_named(options, changes, message):
    with pytest.raises(ValueError, match=message):
        compare(options(**changes))


def test_what_cannot_be_built_is_told_before_the_first_run(options, tmp_path):
    with pytest.raises(Exception, match="`target_active_dims` must be between 0 and 6, got 9"):
        Comparison(options(models=["Simple", "HSVAE target_active_dims=9"]))
    assert not (tmp_path / "out/runs").exists()


def test_thresholds_and_accuracies_are_of_different_rows(options, tmp_path):
    rows = [{"text": f"word{row} and {row % 7}", "label": row % 2} for row in range(100)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = Comparison(options(dataset=str(path)))
    parts = [set(made.data[split]["text"]) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 100
    made.result("Simple", None, 1)
    path.write_text("".join(json.dumps(row | {"text": row["text"] + "!"}) + "\n" for row in rows))
    with pytest.raises(ValueError, match="`dataset_checksum` must stay"):
        Comparison(options(dataset=str(path)))
    for count, message in ((100, "rows of two classes"), (20, "more rows")):
        path.write_text(
            "".join(json.dumps(row | {"label": row["label"] % (1 + count % 100)}) + "\n" for row in rows[:count])
        )
        with pytest.raises(ValueError, match=f"`dataset` must have {message}"):
            Comparison(options(dataset=str(path)))


def test_a_system_is_no_folder_of_its_name(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SDLGM").mkdir()
    assert Comparison(options(models=["SDLGM"])).fields("SDLGM", None)["sparsity_cap"] == 3
    with pytest.raises(ValueError, match="`models` must be systems or folders of trained models, got './SDLGM'"):
        Comparison(options(models=["./SDLGM"]))


def test_data_without_labels_is_named(options, tmp_path):
    (tmp_path / "plain.txt").write_text("one sentence\nanother one\nthird\n")
    with pytest.raises(ValueError, match="`dataset` must have labels"):
        compare(options(dataset=str(tmp_path / "plain.txt")))
