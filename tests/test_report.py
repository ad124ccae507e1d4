"""The report against independent computations on a small corpus."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, concatenate_datasets
from sklearn.linear_model import LogisticRegression
from vector_models import small

import hsvae_hf
from hsvae_hf.advice import advice
from hsvae_hf.corpus import input_batches
from hsvae_hf.probes import probe_accuracy, representations
from hsvae_hf.report import evaluate_model


@pytest.fixture
def model(small_config):
    model = hsvae_hf.HSVAEForPreTraining(small_config).eval()
    torch.nn.init.normal_(model.model.latent_head.gate.weight, std=3.0)  # gates that move with the sentence
    return model


@pytest.fixture
def dataset(sentences, labels):
    names = sorted(set(labels))
    rows = Dataset.from_dict({"text": sentences, "label": [names.index(label) for label in labels]})
    return rows.cast_column("label", ClassLabel(names=names))


def test_report_is_what_a_naive_computation_gives(model, tokenizer, dataset):
    report = evaluate_model(model, tokenizer, dataset, dataset, num_samples=3, batch_size=5)
    with torch.no_grad():
        output = model.model(**tokenizer(dataset["text"][:], padding=True, return_tensors="pt"))
    gates, slabs, codes = (output[name].double().numpy() for name in ("gate_mean", "slab_mean", "sparse_embedding"))
    means = (1 - gates) * slabs
    share = (gates < 0.5).mean(0)
    active = (codes != 0).sum(1)
    assert report["rows"] == len(dataset)
    assert report["tokens"] == sum(len(tokenizer(text)["input_ids"]) for text in dataset["text"])
    assert report["gate_std"] == pytest.approx(gates.std(0).mean(), rel=1e-5)
    assert report["switching_fraction"] == pytest.approx(((share > 0.05) & (share < 0.95)).mean())
    assert report["active_units"] == (means.var(0) > 0.01).sum()
    assert report["active_dims"] == pytest.approx(active.mean())
    assert report["empty_rows"] == pytest.approx((active == 0).mean())
    assert report["dead_dims"] == (codes == 0).all(0).sum()
    assert report["always_on_dims"] == ((codes != 0).mean(0) > 0.99).sum()
    model.config.kl_estimator = "closed_form"  # without noise
    exact = evaluate_model(model, tokenizer, None, dataset)
    assert len(exact["kl_per_dimension"]) == 6
    assert sum(exact["kl_per_dimension"]) == pytest.approx(exact["z_kl"] + exact["gamma_kl"], rel=1e-4)
    assert report["mutual_information"] <= np.log(len(dataset)) + 1e-9

    def average_hoyer(z):
        return np.mean((np.sqrt(6) - np.abs(z).sum(1) / np.linalg.norm(z, axis=1)) / (np.sqrt(6) - 1))

    assert report["average_hoyer_slab_means"] == pytest.approx(average_hoyer(slabs / slabs.std(0)), rel=1e-4)
    assert report["average_hoyer_slab_means_raw"] == pytest.approx(average_hoyer(slabs), rel=1e-4)
    assert report["average_hoyer_posterior_means"] == pytest.approx(average_hoyer(means / means.std(0)), rel=1e-4)
    total = report["reconstruction_loss"] + 0.01 * (report["z_kl"] + report["gamma_kl"])
    assert report["loss"] == pytest.approx(total, rel=1e-4)
    assert {"code", "gate", "slab_mean", "samples", "majority", "tfidf"} <= set(report["accuracy"])
    assert report["accuracy"]["majority"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"active_units": 0}, "posterior collapse"),
        ({"mutual_information": 0.01}, "posterior collapse"),
        ({"active_dims": 0.1}, "Codes are empty"),
        ({"switching_fraction": 0.0}, "hardly follow"),
        ({"dead_dims": 5}, "5 of 8 dimensions are never on"),
        ({"always_on_dims": 5}, "5 of 8 dimensions are always on"),
    ],
)
def test_advice_names_what_is_wrong(change, words):
    sound = {"active_units": 8, "mutual_information": 4.0, "gate_std": 0.2, "active_dims": 3.0, "dead_dims": 0}
    sound |= {"switching_fraction": 0.9, "always_on_dims": 0}
    sentence = advice(sound | change, hsvae_hf.HSVAEConfig(latent_size=8))
    assert (sentence is None) if words is None else (words in sentence and sentence.endswith("."))
    if words is not None:  # no remedy that a model does not have
        sentence = advice(sound | change, small("vsc").config)
        assert not {"gate_balance_weight", "target_active_dims", "prior_alpha", "word_dropout"} & set(sentence.split())


RARE = {"active_dims": 32.0, "switching_fraction": 0.0}
DENSE = {"active_dims": 600.0, "switching_fraction": 0.01}


@pytest.mark.parametrize(
    ("change", "fields", "remedy"),
    [
        (RARE | {"dead_dims": 726, "rows": 200}, {}, None),
        (RARE | {"always_on_dims": 30}, {}, "on for all: train longer."),
        (DENSE, {}, "on for all: train longer."),
        (DENSE, {"gate_balance_weight": 0.0}, "all: set gate_balance_weight to 0.1, or"),
        (DENSE, {"feature_std": 0}, "all: set feature_std to 0.3, or"),
        (DENSE, {"gamma_kl_weight": 0.01}, "all: lower gamma_kl_weight to"),
        ({"dead_dims": 1100, "rows": 5000, "active_dims": 32.0}, {"gamma_kl_weight": 0.0}, "on: lower latent_size."),
        ({"always_on_dims": 1100, "active_dims": 1500.0}, {}, "always on: set target_active_dims."),
        ({"active_dims": 0.3}, {"target_active_dims": 0.375}, None),
        ({"active_dims": 0.3}, {"target_active_dims": 8.0}, "empty: lower gamma_kl_weight."),
        ({"active_units": 0}, {"z_kl_weight": 0.0, "gamma_kl_weight": 0.0}, "begun; else raise word_dropout."),
    ],
)
def test_advice_is_relative_to_what_is_wanted_and_names_no_setting_that_is_set(change, fields, remedy):
    sound = {"active_units": 2048, "mutual_information": 6.0, "gate_std": 0.06, "dead_dims": 0, "always_on_dims": 0}
    sound |= {"active_dims": 300.0, "switching_fraction": 0.9, "rows": 1000}
    sentence = advice(sound | change, hsvae_hf.HSVAEConfig(latent_size=2048, **fields))
    assert (sentence is None) if remedy is None else (remedy in sentence), sentence


def test_representations_keep_the_order_of_the_rows(model, tokenizer, dataset):
    found = representations(model, input_batches(model, tokenizer, dataset, 4, "Test"), num_samples=2)
    expected = hsvae_hf.encode(model, tokenizer, dataset["text"][:])
    np.testing.assert_allclose(found["code"].toarray(), expected.toarray(), atol=1e-6)
    assert found["samples"].shape == (len(dataset), 2, 6)
    assert ((found["gate"].toarray() == 1) == (found["code"].toarray() != 0)).all()


def test_probe_on_samples_averages_the_probabilities():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 60)
    samples = labels[:, None, None] + generator.normal(0, 1.5, (60, 4, 3))
    scale = samples.reshape(-1, 3).std(0)
    probe = LogisticRegression(C=0.1, max_iter=2000).fit(samples.reshape(-1, 3) / scale, np.repeat(labels, 4))
    expected = (
        probe.predict_proba(samples.reshape(-1, 3) / scale).reshape(60, 4, 2).mean(1).argmax(1) == labels
    ).mean()
    assert probe_accuracy(samples, labels, samples, labels) == pytest.approx(expected)


def test_what_assumes_independent_gates_is_not_said_of_others(tokenizer, dataset):
    config = hsvae_hf.SDLGMConfig(vocab_size=len(tokenizer), latent_size=6, sparsity_cap=5)
    model = hsvae_hf.SDLGMForPreTraining(config)
    torch.nn.init.normal_(model.model.latent_head.selection.weight, std=20.0)
    report = evaluate_model(model, tokenizer, None, dataset)
    assert "mutual_information" not in report
    assert sum(report["kl_per_dimension"]) == pytest.approx(report["z_kl"], rel=0.5)  # other draws
    assert report["gamma_kl"] > report["z_kl"]


def test_gates_are_those_that_max_active_dims_leaves(small_config, tokenizer, dataset):
    small_config.update({"max_active_dims": 1, "gate_balance_weight": 0.0})
    model = hsvae_hf.HSVAEForPreTraining(small_config).eval()
    report = evaluate_model(model, tokenizer, None, dataset)
    found = representations(model, input_batches(model, tokenizer, dataset, 5, "Test"), num_samples=1)
    on = found["gate"].toarray()
    assert (on == (found["code"].toarray() != 0)).all()
    assert on.sum(1).max() == 1
    share = on.mean(0)
    assert report["active_dims"] == pytest.approx(on.sum(1).mean())
    assert report["switching_fraction"] == pytest.approx(((share >= 0.05) & (share <= 0.95)).mean())


def without_labels(split, rows):
    return split.map(lambda row, index: {"label": -1} if index in rows else {}, with_indices=True)


def test_probes_learn_from_rows_with_a_class_alone(model, tokenizer, dataset, caplog):
    hidden = without_labels(dataset, range(0, 12, 3))
    report = evaluate_model(model, tokenizer, hidden, hidden)
    assert (report["rows"], report["probe_rows"]) == (12, 8)
    assert report == evaluate_model(model, tokenizer, hidden, hidden)
    unlabelled = evaluate_model(model, tokenizer, None, dataset.remove_columns("label"))
    assert report["dimensions"] == unlabelled["dimensions"]
    assert "accuracy" not in unlabelled
    for train, test, words in (
        (without_labels(dataset, range(12)), dataset, "no row of train has a class"),
        (dataset, without_labels(dataset, range(12)), "no row of test has a class"),
        (dataset.select(range(4)), dataset, "the rows to learn from have one class alone"),
    ):
        caplog.clear()
        assert "accuracy" not in evaluate_model(model, tokenizer, train, test)
        assert f"accuracies are left out: {words}" in caplog.text


def test_blank_texts_are_named(model, tokenizer, dataset):
    blank = dataset.map(lambda row: {"text": " "})
    for train, test, name in ((dataset, blank, "test"), (blank, dataset, "train"), (None, blank, "test")):
        with pytest.raises(ValueError, match=f"`{name}` must hold at least one word, got 12 blank texts"):
            evaluate_model(model, tokenizer, train, test)
    mixed = concatenate_datasets([blank.select(range(6)), without_labels(dataset.select(range(6)), range(6))])
    with pytest.raises(ValueError, match="`train` must hold at least one word, got 6 blank texts"):
        evaluate_model(model, tokenizer, mixed, dataset)
