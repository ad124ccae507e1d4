"""Training from Python: `train` and `fit`, what they take, what they refuse, and that the model is finished."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModel, AutoModelForPreTraining

import hsvae_hf

SIZES = {"vocab_size": 50, "embedding_size": 8, "hidden_size": 12, "latent_size": 16}
STEPS = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "report_to": "none", "use_cpu": True}


@pytest.mark.parametrize("kind", ["list", "Dataset", "splits", "file", "stream"])
def test_sentences_of_every_kind_become_a_finished_model(kind, sentences, tmp_path):
    table = Dataset.from_dict({"sentence": sentences * 8, "label": [0] * 8 * len(sentences)})
    table.to_csv(tmp_path / "rows.csv")
    splits = DatasetDict({"train": table, "validation": table.select(range(5))})
    rows = {"list": sentences * 8, "Dataset": table, "splits": splits}.get(kind, tmp_path / "rows.csv")
    options = SIZES | STEPS | {"target_active_dims": 3, "streaming": kind == "stream"}
    run = hsvae_hf.train(rows, tmp_path / "run", **options)
    if kind != "stream":  # of which nothing is held out
        assert run.metrics["eval_active_dims"] == pytest.approx(3, abs=0.5)
    assert run.model.config.active_threshold != 0.5
    assert run.model.generation_config.max_length == run.tokenizer.model_max_length + 1
    assert not run.model.training
    saved = AutoModel.from_pretrained(tmp_path / "run")
    codes = hsvae_hf.encode(run.model, run.tokenizer, sentences)
    assert (hsvae_hf.encode(saved, run.tokenizer, sentences) != codes).nnz == 0
    settings = json.loads((tmp_path / "run/train_settings.json").read_text())
    assert settings["model_type"] == "hsvae"
    if kind == "splits":
        assert set(rows["train"].column_names) == {"sentence", "label"}  # the caller's data stay as they are
        assert settings["train_rows"] == len(rows["train"])


def test_a_resumed_run_ends_finished_and_alike(sentences, tmp_path):
    options = {"target_active_dims": 3, "lr_scheduler_type": "constant", **SIZES, **STEPS}
    whole = hsvae_hf.train(sentences * 8, tmp_path / "whole", **options)
    hsvae_hf.train(sentences * 8, tmp_path / "run", **options | {"max_steps": 2})
    resumed = hsvae_hf.train(sentences * 8, tmp_path / "run", **options, resume_from_checkpoint=True)
    assert resumed.model.config.active_threshold == whole.model.config.active_threshold != 0.5
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_vectors_become_a_finished_coder(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(400, 8))
    options = {"latent_size": 32, "target_active_dims": 4, "max_steps": 30}
    coder = hsvae_hf.fit(vectors, **options)
    codes = hsvae_hf.encode_vectors(coder, vectors)
    assert codes.shape == (400, 32)
    assert codes.nnz / 400 == pytest.approx(4, rel=0.3)
    assert coder.model.code_scale.min() != 1
    np.testing.assert_allclose(coder.model.standardizer.mean.numpy(), vectors.mean(0), atol=0.1)
    coder.save_pretrained(tmp_path / "coder")
    saved = AutoModelForPreTraining.from_pretrained(tmp_path / "coder")
    assert (hsvae_hf.encode_vectors(saved, vectors) != codes).nnz == 0
    held_out = torch.randn(50, 8)
    other = hsvae_hf.fit(torch.from_numpy(vectors), tmp_path / "run", validation=held_out, report_to="none", **options)
    assert hsvae_hf.encode_vectors(other, held_out).nnz / 50 == pytest.approx(4, abs=0.1)
    assert (tmp_path / "run/all_results.json").is_file()
    one = hsvae_hf.fit(vectors, latent_size=1, gate_balance_weight=0, max_steps=2)
    assert hsvae_hf.encode_vectors(one, vectors).shape == (400, 1)
    plain = hsvae_hf.fit(vectors, model_type="text-encoder", max_steps=2)
    assert hsvae_hf.encode_vectors(plain, vectors).shape == (400, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latent_sise": 8}, "must be an option of hsvae, got an unknown name; did you mean `latent_size`"),
        ({"learning_rate": "fast"}, "`learning_rate` must be of type float, got 'fast'"),
        ({"latent_size": 0}, "latent_size"),
        ({"text_column": "none"}, "`text_column` must be one of the columns"),
        ({"preset": "huge"}, "`preset` must be one of small, paper, released, got 'huge'"),
        ({"model_type": "bert"}, "`model_type` must be a text VAE"),
        ({"prior_activity": 0.1}, "`prior_activity` must be an option of hsvae"),
        ({"vectors": "rows.npy"}, "`vectors` must be the first argument"),
        ({"max_steps": True}, "`max_steps` must be of type int, got True"),
        ({"text_column": ["text"]}, "`text_column` must be of type"),
        ({"target_active_dims": 9, "latent_size": 8}, "`target_active_dims` must be between 0 and 8, got 9"),
        ({"model_type": None}, "`model_type` must be a text VAE"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(options, words, sentences, tmp_path):
    rows = Dataset.from_dict({"text": sentences})
    with pytest.raises(ValueError, match=words):
        hsvae_hf.train(rows, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rows", [{"text": ["a"]}, 5, [], [1, 2]])
def test_what_holds_no_sentences_is_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="`dataset` must"):
        hsvae_hf.train(rows, tmp_path / "run")


@pytest.mark.parametrize("vectors", [np.zeros(5), np.zeros((0, 5)), [["a"]], np.full((9, 2), np.nan)])
def test_what_are_no_vectors_is_refused(vectors):
    with pytest.raises(ValueError, match="`vectors` must be"):
        hsvae_hf.fit(vectors)
