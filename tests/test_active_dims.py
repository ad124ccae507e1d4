"""What is set after or during training: the threshold, the wanted number of active dimensions, the scale."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import FAMILIES, bert
from scipy.optimize import nnls
from vector_models import VECTOR_FAMILIES, small

import hsvae_hf
from hsvae_hf.active_dims import NEAR_PAIRS, RIDGE, _pairs, calibrate_threshold, fit_code_scale, hold_target
from hsvae_hf.callbacks import ActiveDimsController
from hsvae_hf.encoding import encode_vectors


def test_the_scale_of_codes_is_the_least_squares_solution():
    torch.manual_seed(3)
    family = VECTOR_FAMILIES[0]
    model = family.pretraining(family.config()).eval()
    vectors = torch.randn(60, 16)
    with torch.no_grad():
        model.model.latent_head.gate.bias[6:] += 1.0  # more dimensions on
    unscaled = model.model(vectors=vectors).sparse_embedding.detach().double().numpy()
    fit_code_scale(model, vectors.numpy())
    scale = model.model.code_scale.double().numpy()
    codes = model.model(vectors=vectors).sparse_embedding.detach().double().numpy()
    np.testing.assert_allclose(codes, unscaled * scale, rtol=1e-5)
    first, second, wanted = _pairs(vectors)
    assert (first.reshape(60, -1) == np.arange(60)[:, None]).all() and (first != second).all()
    similarity = (vectors @ vectors.T).double().numpy()
    np.testing.assert_allclose(wanted, similarity[first, second], rtol=1e-5)
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.sort(np.argsort(-similarity)[:, :NEAR_PAIRS])
    assert (np.sort(second.reshape(60, -1)[:, :NEAR_PAIRS]) == nearest).all()
    products = unscaled[first] * unscaled[second]
    ridge = RIDGE * np.mean((products**2).sum(0)[(unscaled != 0).any(0)])
    even = (products.T @ wanted).sum() / (products.T @ products).sum()
    stacked = np.vstack([products, np.sqrt(ridge) * np.eye(6)])
    expected = np.sqrt(nnls(stacked, np.concatenate([wanted, np.full(6, np.sqrt(ridge) * even)]))[0])
    used = (unscaled != 0).any(0)
    np.testing.assert_allclose(scale[used], expected[used], rtol=1e-2, atol=1e-3)
    model = small().train()
    fit_code_scale(model, np.zeros((1, 5), dtype=np.float32))  # a scale that cannot be told stays
    assert torch.equal(model.model.code_scale, torch.ones(6))
    assert model.training and model.model.training


@pytest.mark.parametrize("name", ["hsvae-vector", "vsc-vector", "hsvae"])
def test_the_threshold_gives_the_wanted_number(name, sentences, tokenizer):
    family = next(family for family in FAMILIES if family.name == name)
    options = {} if family.words else bert(len(tokenizer))
    model = family.pretraining(family.config(vocab_size=len(tokenizer), **options)).train()
    if name == "vsc-vector":
        model.model.latent_head.posterior.bias.data[:6] -= 3.0  # gates that are fully on cannot be told apart
    model.model.encoder.eval()
    for wanted, dataset in ((1.0, sentences), (2.5, Dataset.from_dict({"text": sentences}))):
        calibrate_threshold(model, tokenizer, dataset, wanted)
        assert model.training and not model.model.encoder.training  # as they were
        codes = hsvae_hf.encode(model, tokenizer, sentences)
        assert codes.nnz / len(sentences) == pytest.approx(wanted, abs=0.1)
    body = model.model
    threshold = calibrate_threshold(body, tokenizer, iter(sentences), 4)
    assert calibrate_threshold(body, tokenizer, np.array(sentences), 4) == threshold
    assert hsvae_hf.encode(body, tokenizer, sentences).nnz / len(sentences) == pytest.approx(4, abs=0.1)


def test_training_ends_with_the_wanted_number_of_active_dimensions():
    wanted = 5
    torch.manual_seed(0)
    vectors = torch.randn(512, 8) @ torch.randn(8, 16) + 0.1 * torch.randn(512, 16)
    options = {"gate_balance_weight": 0.0, "prior_alpha": 10.0, "prior_beta": 0.2, "gamma_kl_weight": 0.02}
    model = small(vector_size=16, latent_size=32, target_active_dims=wanted, **options).train()
    model.model.standardizer.fit(vectors)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    controller = ActiveDimsController()
    controller.on_train_begin(None, None, None, model)
    for _ in range(800):
        loss = model(vectors=vectors[torch.randint(512, (128,))]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    active = (model.eval().model(vectors=vectors).sparse_embedding != 0).float().sum(1).mean().item()
    assert active == pytest.approx(wanted, rel=0.15)
    before = model.gamma_kl_scale.clone()
    model(vectors=vectors)  # evaluation leaves the controller alone
    assert torch.equal(model.gamma_kl_scale, before)
    controller.on_train_end(None, None, None, model)
    model.train()(vectors=vectors)
    assert torch.equal(model.gamma_kl_scale, before)


def test_the_target_is_held_where_the_gates_allow_it(caplog):
    vectors = torch.randn(200, 5)
    model = small(target_active_dims=2.0, gamma_kl_weight=0.1)
    hold_target(model, [{"vectors": vectors}])
    codes = encode_vectors(model, vectors.numpy())
    assert codes.nnz / 200 == pytest.approx(2.0, abs=0.01)
    threshold = model.config.active_threshold
    fixed = small(min_active_dims=2, max_active_dims=2)
    hold_target(fixed, [{"vectors": vectors}])
    assert fixed.config.active_threshold == 0.5  # nothing to set
    with torch.no_grad():
        model.model.latent_head.gate.weight.zero_()
        model.model.latent_head.gate.bias.zero_()
    hold_target(model, [{"vectors": vectors}])
    hold_target(model, [])
    assert model.config.active_threshold == threshold
    assert "gates of equal value cannot be told apart" in caplog.text
    assert "`batches` must hold at least one batch" in caplog.text


def test_a_prior_s_number_that_gates_do_not_allow_gives_way_to_that_of_draws(caplog):
    torch.manual_seed(0)
    config = hsvae_hf.VSCConfig(latent_size=10, vocab_size=40, embedding_size=8, hidden_size=12, prior_activity=0.3)
    model, ids = hsvae_hf.VSCForPreTraining(config).eval(), torch.randint(3, 40, (50, 7))
    gate = model.model.latent_head.posterior
    with torch.no_grad():
        gate.bias[:10] = -1.0
        gate.weight[:10] *= 40
    hold_target(model, [{"input_ids": ids}])
    assert (model.model(ids)[0] != 0).sum(1).float().mean() == pytest.approx(3, abs=0.1)
    with torch.no_grad():
        gate.bias[:10] = torch.tensor([5.0] * 6 + [-2.0] * 4)  # six at their bound for all
        gate.weight[:10] = 0
    hold_target(model, [{"input_ids": ids}])
    assert (model.model(ids)[0] != 0).sum(1).float().mean() == 6
    assert not caplog.records
    unheld = hsvae_hf.VSCForPreTraining(hsvae_hf.VSCConfig(**config.to_dict() | {"penalty_weight": 0}))
    assert unheld.model.latent_head.wanted_active_dims is None


def test_without_a_wanted_number_codes_have_as_many_dimensions_on_as_draws():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(400, 5)).astype(np.float32)
    model = small(latent_size=12, gate_balance_weight=0.0, gate_concentration_min=0.5).eval()
    with torch.no_grad():
        model.model.latent_head.gate.bias[:12] += 2.0  # nearly all gates are more closed than open
        posterior = model.model(vectors=torch.from_numpy(vectors))
    gamma = generator.beta(posterior.gate_alpha.numpy(), posterior.gate_beta.numpy(), size=(200, 400, 12))
    drawn = (generator.random(gamma.shape) > gamma).sum(-1).mean()  # of the spike and slab prior, gamma the spike's
    assert encode_vectors(model, vectors).nnz / 400 < 0.5 * drawn
    hold_target(model, [{"vectors": torch.from_numpy(vectors)}])
    codes = encode_vectors(model, vectors)
    assert codes.nnz / 400 == pytest.approx(drawn, rel=0.02)
    off = posterior.gate_mean.numpy()[codes.toarray() == 0]
    assert off.min() > posterior.gate_mean.numpy()[codes.toarray() != 0].max()  # the most open gates
    threshold = model.config.active_threshold
    assert calibrate_threshold(model, None, vectors) == threshold
    model.config.max_active_dims = 3  # below what draws use
    calibrate_threshold(model, None, vectors)
    assert encode_vectors(model, vectors).nnz / 400 == pytest.approx(3, abs=0.01)


def test_a_threshold_is_set_by_an_array_and_counts_what_max_active_dims_leaves():
    vectors = np.random.default_rng(0).normal(size=(200, 5))
    model = small(max_active_dims=3)
    calibrate_threshold(model, None, vectors, 2.5)
    counts = encode_vectors(model, vectors).getnnz(axis=1)
    assert counts.mean() == pytest.approx(2.5, abs=0.01)
    assert counts.max() == 3
    with pytest.raises(ValueError, match="`target_active_dims` must be between 0 and 3, got 3"):
        calibrate_threshold(model, None, vectors, 3)
    vectors[7, 2] = np.nan
    for dataset, message in (
        (vectors, "`vectors` must be finite, got NaN or infinity in row 7"),
        (np.ones((3, 4)), r"`vectors` must be numbers, \(rows, 5\)"),
        ("a sentence", "`dataset` must be several strings"),
        (vectors[:0], "`dataset` must hold at least one row"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate_threshold(model, None, dataset, 2)


def test_gates_that_cannot_be_told_apart_are_named_and_rare_ones_are_no_crash(sentences, tokenizer):
    model = small()
    with torch.no_grad():
        model.model.latent_head.gate.weight.zero_()
    with pytest.raises(ValueError, match="`target_active_dims` must be a number that the gates allow, got 3"):
        calibrate_threshold(model, None, np.random.rand(9, 5), 3)
    few = hsvae_hf.HSVAEConfig(vocab_size=len(tokenizer), latent_size=768, target_active_dims=0.1)
    model = hsvae_hf.HSVAEForPreTraining(few).eval()
    assert torch.isfinite(model(**tokenizer(sentences, padding=True, return_tensors="pt")).loss)


def test_rows_that_tell_too_little_are_warned_of(caplog):
    generator = np.random.default_rng(0)
    rows = (generator.normal(size=(2000, 12)) @ generator.normal(size=(12, 24)) + 1.0).astype(np.float32)
    model = small(vector_size=24, latent_size=32)
    calibrate_threshold(model, None, rows - rows.mean(0), 8)  # without training nothing was trained on
    model.model.standardizer.fit(torch.from_numpy(rows[:1900]))
    calibrate_threshold(model, None, rows[1900:], 8)
    assert "was trained on" not in caplog.text
    for given in (rows[:1900], generator.permutation(rows)):  # the split, and the file that it was split from
        caplog.clear()
        calibrate_threshold(model, None, given, 8)
        assert "`dataset` holds the vectors that the model was trained on" in caplog.text
    caplog.clear()
    calibrate_threshold(model, None, generator.normal(size=(2000, 24)).astype(np.float32), 8)
    assert caplog.text == ""
    calibrate_threshold(model, None, generator.permutation(rows)[:20], 8)  # and too few of them to be recognised
    assert "`dataset` has 20 rows, too few to tell: codes of others will have 8 non-zeros on average" in caplog.text
    assert "was trained on" not in caplog.text


@pytest.mark.parametrize("target", [0, 6, float("nan"), "3", True])
def test_a_number_that_no_code_can_have_is_refused_before_work(small_config, sentences, tokenizer, target, monkeypatch):
    model = hsvae_hf.HSVAEModel(small_config)
    monkeypatch.setattr(type(model), "forward", lambda *a, **k: pytest.fail("work was done"))
    with pytest.raises(ValueError, match="`target_active_dims` must be between 0 and 6, got"):
        calibrate_threshold(model, tokenizer, sentences, target)


def test_what_holds_no_rows_is_refused(small_config, sentences, tokenizer):
    model = hsvae_hf.HSVAEModel(small_config)
    for dataset, message in (
        ((text for text in ["a", 3]), "`dataset` must be strings, got int '3' at index 1"),
        (iter([]), "`dataset` must hold at least one row, got none"),
        (np.array("a"), r"got a ndarray of shape \(\)"),
        (Dataset.from_dict({"text": []}), "`dataset` must hold at least one row, got none"),
        (Dataset.from_dict({"sentence": ["a"]}), "`dataset` must have a column `text` .* got sentence"),
        (Dataset.from_dict({"text": ["a", None]}), "`dataset` must be strings, got NoneType 'None' at index 1"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate_threshold(model, tokenizer, dataset, 3)
    with pytest.raises(ValueError, match="`tokenizer` must be the model"):
        calibrate_threshold(model, None, sentences, 3)
    ones = np.ones((2, 5), dtype=np.float32)
    for arguments, message in (
        ((model, np.ones((2, 12), dtype=np.float32)), "`model` must be one of `decoder_type='vector'`"),
        ((small(), ones[:0]), "`vectors` must hold at least one row"),
        ((small(), ones, 0), "`rows` must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_code_scale(*arguments)


def test_two_models_with_one_tokenizer_are_calibrated_in_threads(small_config, sentences, tokenizer):
    models = [hsvae_hf.HSVAEModel(small_config) for _ in range(4)]
    expected = [calibrate_threshold(model, tokenizer, sentences, 3) for model in models]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda model: calibrate_threshold(model, tokenizer, sentences, 3), models * 4))
    assert found == expected * 4
