"""Systems, their runs, the table and the figure of a comparison, on a corpus of a few sentences."""

import json
import re

import comparison
import numpy as np
import pytest
import torch
import transformers
from compare import compare
from comparison import CompareArguments, Comparison
from families import bert
from systems import SYSTEMS, find_system

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
        return CompareArguments(**(fields | SMALL | changes))

    return make


@pytest.fixture
def encoder(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    transformers.BertModel(bert(len(tokenizer))["encoder_config"]).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


def test_every_system_that_needs_no_download_has_a_row(options, tmp_path, monkeypatch):
    names = [system.name for system in SYSTEMS.values() if not system.pretrained]
    result = compare(options(models=names))
    assert [row["model"] for row in result["models"]] == names
    folder = tmp_path / "out"
    assert json.loads((folder / "comparison.json").read_text())["models"] == result["models"]
    table = (folder / "comparison.md").read_text().splitlines()
    assert len({line.count("|") for line in table[: 2 + len(names)]}) == 1
    assert table[3 + len(names)].startswith("Mean and deviation over the seeds.")
    assert (folder / "comparison.png").stat().st_size > 10_000
    for row in result["models"]:
        runs = [json.loads((folder / f"runs/{row['model']}-{seed}.json").read_text()) for seed in (1, 2)]
        assert ("reconstruction_loss" in row) == (row["model"] != "Simple")
        accuracies = [run["accuracy"] for run in runs]
        assert row["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
        assert row["accuracy"]["std"] == pytest.approx(np.std(accuracies, ddof=1))

    def no_training(*arguments, **options):
        raise AssertionError("a finished run was repeated")

    monkeypatch.setattr(Comparison, "new_model", no_training)
    assert compare(options(models=names))["models"] == result["models"]


def test_a_frozen_encoder_reads_every_sentence_once(options, encoder, monkeypatch):
    trained, read = [], []

    def watched(self, ids, *rest, encode=TransformerEncoder.encode):
        trained.append(torch.is_grad_enabled())
        read.append(len(ids))
        return encode(self, ids, *rest)

    monkeypatch.setattr(TransformerEncoder, "encode", watched)
    result = compare(options(models=["B-HSVAE", "BERT"], encoder_name_or_path=encoder))
    assert all(row["accuracy"]["mean"] > 0 for row in result["models"])
    assert result["models"][0]["reconstruction_loss"]["mean"] > 0
    assert not any(trained)
    assert sum(read) == sum(map(len, Comparison(options(models=[])).data.values()))


def test_models_on_an_encoder_decode_the_words_of_the_others(options, encoder, tokenizer):
    made = Comparison(options(models=["B-HSVAE"], encoder_name_or_path=encoder, vocab_size=20))
    (system,) = made.systems
    model = made.new_model(system)
    assert model.decoder.lm_head.out_features == len(made.words) != len(tokenizer)
    (numbers, batch), *_ = made.batches(system, "test", model)
    assert set(batch) == {"vectors", "labels"}
    for number, row in zip(numbers, batch["labels"], strict=True):
        assert row[row >= 0].tolist() == made.words(made.data["test"][int(number)]["text"])["input_ids"]


def test_a_system_may_come_with_changes(options):
    system = find_system("hsvae prior_alpha=1 prior_beta=4.5 kl_estimator=mc learning_rate=1e-3 max_steps=2")
    assert system.name == "HSVAE prior_alpha=1 prior_beta=4.5 kl_estimator=mc learning_rate=1e-3 max_steps=2"
    assert system.fields == SYSTEMS["HSVAE"].fields | {"prior_alpha": 1, "prior_beta": 4.5, "kl_estimator": "mc"}
    assert system.training == {"learning_rate": 0.001, "max_steps": 2}
    assert find_system("HSVAE condition_slab_on_gate=true").fields["condition_slab_on_gate"] is True
    assert compare(options(models=[system.name], seeds=1))["models"][0]["model"] == system.name
    made = Comparison(options(models=["SDLGM z_kl_weight=0.1", "SDLGM latent_size=8", "Simple learning_rate=0.01"]))
    assert [made.new_model(system).config.sparsity_cap for system in made.systems[:2]] == [3, 4]
    assert "reconstruction_loss" not in made.results(made.systems[2])[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LSTM", "`models` must be of"),
        ("HSVAE max_steps=2.5", "`models` must give max_steps as int"),
        ("HSVAE learning_rate=abc", "`models` must give learning_rate as float"),
        ("HSVAE learning_rate=nan", "`learning_rate` must be positive and finite"),
        ("HSVAE target_active_dims=9", "`target_active_dims` must be between 0 and 6, got 9"),
        *(
            (f"{name} {change}", "`models` must give fields of [a-z-]* as name=value")
            for name, change in (
                ("HSVAE", "nonsense=1"),
                ("HSVAE", "prior_alpha"),
                ("HSVAE", "vocab_size=50"),
                ("HSVAE", "validate_gate=1"),
                ("HSVAE", "pad_token_id=7"),
                ("HSVAE", "dtype=float16"),
                ("Simple", "kl_annealing=linear"),
            )
        ),
    ],
)
def test_what_cannot_be_trained_is_told_before_the_first_run(options, tmp_path, name, message):
    with pytest.raises(Exception, match=message):
        Comparison(options(models=["Simple", name]))
    assert not (tmp_path / "out/runs").exists()


def test_runs_of_other_settings_do_not_mix_in(options, tmp_path):
    with pytest.raises(Exception, match="word_dropout"):
        compare(options(models=["VAE"], word_dropout=1.0))
    compare(options(models=["Simple"], seeds=1))  # what was refused has left no trace
    Comparison(options(seeds=5, models=["VAE"]))
    with pytest.raises(ValueError, match=re.escape("`latent_size` must stay 6")):
        Comparison(options(models=["VAE"], latent_size=7))
    Comparison(options(encoder_name_or_path="another", models=["VAE"]))  # which reads no encoder
    path = tmp_path / "out/runs/Simple-1.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(ValueError, match=r"must hold whole results, got '.*Simple-1.json'"):
        compare(options(models=["Simple"], seeds=1))


def test_thresholds_and_accuracies_are_of_different_rows(options, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "LOOK_ROWS", 2)
    path = tmp_path / "rows.jsonl"

    def write(rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return options(dataset=str(path), models=["Simple"], seeds=1)

    rows = [{"text": f"word{row} and {row % 7}", "label": row % 2} for row in range(100)]
    made = Comparison(write(rows))
    parts = [set(made.data[split]["text"]) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [95, 2, 3]
    assert len(set.union(*parts)) == 100
    made.results(made.systems[0])
    with pytest.raises(ValueError, match="`dataset_checksum` must stay"):
        Comparison(write([row | {"text": row["text"] + "!"} for row in rows]))
    for wrong, message in (
        ([row | {"label": 0} for row in rows], "rows of two classes"),
        (rows[:20], "more rows"),
        ([{"text": row["text"]} for row in rows], "labels in train"),
    ):
        with pytest.raises(ValueError, match=f"`dataset` must have {message}"):
            Comparison(write(wrong))
