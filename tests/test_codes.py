"""The rule of a code: which dimensions are on, between a floor and a ceiling, by rank; their values; dense queries."""

import numpy as np
import pytest
import torch
from scipy import sparse
from vector_models import small

import hsvae_hf
from hsvae_hf.active_dims import hold_target
from hsvae_hf.models.distributions import neighbour_kl

RULE = {"min_active_dims": 2, "max_active_dims": 4, "code_ridge": 0.3}


def trained(**fields):
    """A model whose gates and values differ between sentences, as after training."""
    torch.manual_seed(0)
    model = small(latent_size=12, **fields)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.eval()


def test_the_posterior_mean_is_ridge_regression_on_the_columns_that_are_on():
    model, vectors = trained(), torch.randn(7, 5)
    chosen = torch.stack([torch.randperm(12)[:4] for _ in vectors])
    used = torch.rand(7, 4) < 0.7
    found = model.decoder.posterior_mean(vectors, chosen, used, 0.3).detach()
    weight, bias = (
        value.detach().double().numpy() for value in (model.decoder.output.weight, model.decoder.output.bias)
    )
    for row in range(7):
        columns = weight[:, chosen[row][used[row]].numpy()]
        stacked = np.vstack([columns, np.sqrt(0.3) * np.eye(columns.shape[1])])
        aim = np.concatenate([vectors[row].double().numpy() - bias, np.zeros(columns.shape[1])])
        expected = np.linalg.lstsq(stacked, aim, rcond=None)[0]
        np.testing.assert_allclose(found[row][used[row]], expected, rtol=1e-4, atol=1e-5)
    assert (found[~used] == 0).all()


@pytest.mark.parametrize("ridge", [None, 0.3])
def test_gates_decide_between_a_floor_and_a_ceiling(ridge):
    vectors = torch.randn(200, 5)
    model = trained(min_active_dims=4, max_active_dims=6, code_ridge=ridge)
    posterior = model.model(vectors=vectors)
    gates = posterior.gate_mean < 0.5
    codes, on = posterior.sparse_embedding != 0, gates.sum(1)
    assert on.min() < 4 and on.max() > 6  # both limits have something to do
    assert (codes.sum(1) == on.clamp(4, 6)).all()
    strength = (1 - posterior.gate_mean) * posterior.slab_mean.abs()
    for row in range(200):
        if ridge is None and on[row] < 4:  # filled up by the strongest of those that are off
            best = strength[row].masked_fill(gates[row], -1).topk(int(4 - on[row])).indices
            assert codes[row][best].all() and (codes[row] >= gates[row]).all()
        if ridge is None and on[row] > 6:  # cut to the strongest of those that are on
            kept = strength[row].masked_fill(~gates[row], -1).topk(6).indices
            assert codes[row].nonzero().flatten().tolist() == kept.sort().values.tolist()


@pytest.mark.parametrize("wanted", [1, 3, 7, 12])
@pytest.mark.parametrize("ridge", [None, 0.3])
def test_any_number_of_non_zeros_can_be_asked_for(wanted, ridge):
    model, vectors = trained(**RULE | {"code_ridge": ridge}), np.random.default_rng(0).normal(size=(50, 5))
    codes = hsvae_hf.encode_vectors(model, vectors, active_dims=wanted)
    assert (codes.getnnz(axis=1) == wanted).all()
    with pytest.raises(ValueError, match="`active_dims` must be at least 1"):
        hsvae_hf.encode_vectors(model, vectors, active_dims=0)


def test_a_floor_at_the_ceiling_is_a_number_for_all():
    vectors = np.random.default_rng(0).normal(size=(50, 5))
    fixed = trained(min_active_dims=3, max_active_dims=3, code_ridge=0.3, target_active_dims=3.0)
    expected = hsvae_hf.encode_vectors(trained(**RULE), vectors, active_dims=3)
    assert (hsvae_hf.encode_vectors(fixed, vectors) != expected).nnz == 0
    before = fixed.config.active_threshold
    hold_target(fixed, [{"vectors": torch.randn(40, 5)}])
    assert fixed.config.active_threshold == before  # nothing to decide
    with pytest.raises(ValueError, match="`model` must have codes whose length the gates decide"):
        hsvae_hf.calibrate_threshold(fixed, None, vectors, 2)


def test_short_codes_at_the_encoder_s_values_are_nested():
    model, vectors = trained(), np.random.default_rng(0).normal(size=(50, 5))
    short, long = (hsvae_hf.encode_vectors(model, vectors, active_dims=wanted).toarray() for wanted in (3, 6))
    assert (long[short != 0] == short[short != 0]).all()


def test_exact_values_reconstruct_better_than_the_encoder_s():
    vectors, errors = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32), []
    for ridge in (None, 1e-3):
        model = trained(**RULE | {"code_ridge": ridge})
        decoded = hsvae_hf.decode_codes(model, hsvae_hf.encode_vectors(model, vectors, active_dims=4))
        errors.append(np.square(decoded - vectors).mean())
    assert errors[1] < 0.5 * errors[0]


def test_in_training_mode_values_are_the_encoder_s():
    model, vectors = trained(**RULE), torch.randn(9, 5)
    plain = trained(**RULE | {"code_ridge": None})
    plain.load_state_dict(model.state_dict())
    expected = plain.model(vectors=vectors).sparse_embedding
    assert torch.equal(model.train().model(vectors=vectors).sparse_embedding, expected)
    assert not torch.equal(model.eval().model(vectors=vectors).sparse_embedding, expected)


def test_codes_of_every_budget_are_trained():
    model, vectors = (
        trained(similarity_weight=2.0, code_reconstruction_weight=3.0, code_budgets=[2, 5]),
        torch.randn(30, 5),
    )
    output = model(vectors=vectors)
    parts = []
    for budget in (2, 5):
        codes = model.model(vectors=vectors, active_dims=budget).sparse_embedding
        nats, _ = model.decoder(codes, vectors)
        parts.append((neighbour_kl(vectors, codes, model.config.similarity_temperature), nats / 30))
    similarity, reconstruction = (sum(values) / 2 for values in zip(*parts, strict=True))
    torch.testing.assert_close(output.similarity, similarity)
    torch.testing.assert_close(output.code_reconstruction, reconstruction)
    seen = {model.train()(vectors=vectors).code_reconstruction.item() for _ in range(20)}
    assert len(seen) == 2  # in training a step has one budget
    model(vectors=vectors).loss.backward()
    assert model.model.latent_head.gate.weight.grad.abs().sum() > 0


def test_gates_near_a_code_learn_from_it_and_others_do_not():
    model, vectors = trained(code_reconstruction_weight=1.0), torch.randn(30, 5)
    posterior = model.model(vectors=vectors)
    posterior.gate_mean.retain_grad()
    model.model.code_costs(posterior, active_dims=2)["code_reconstruction"].backward()
    strength = (1 - posterior.gate_mean) * posterior.slab_mean.abs()
    near = torch.zeros(30, 12, dtype=torch.bool).scatter(1, strength.topk(8).indices, True)
    assert torch.equal(posterior.gate_mean.grad != 0, near)


def test_a_dense_query_times_a_code_is_the_query_times_the_decoded_vector():
    model = trained(**RULE)
    model.model.standardizer.fit(torch.randn(100, 5) * 3 + 1)
    model.model.code_scale.uniform_(0.5, 2)
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(4, 5)).astype(np.float32), rng.normal(size=(9, 5)).astype(np.float32)
    codes = hsvae_hf.encode_vectors(model, documents)
    zero = hsvae_hf.decode_codes(model, sparse.csr_matrix((1, 12), dtype=np.float32))
    made = hsvae_hf.decode_codes(model, codes)
    moved = made - zero
    scores = codes @ hsvae_hf.encode_queries(model, queries).T
    np.testing.assert_allclose(scores.T, queries @ moved.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(hsvae_hf.code_lengths(model, codes), np.linalg.norm(made, axis=1), rtol=1e-4)
    cut = hsvae_hf.encode_queries(model, queries, max_active_dims=3)
    assert (np.count_nonzero(cut, axis=1) == 3).all()


def test_the_threshold_counts_what_floor_and_ceiling_do():
    model = trained(**RULE, target_active_dims=3.0)
    batches = [{"vectors": torch.randn(400, 5)}]
    hold_target(model, batches)
    codes = model.model(**batches[0]).sparse_embedding
    assert codes.count_nonzero() == pytest.approx(3.0 * 400, abs=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_active_dims": 5, "max_active_dims": 4}, "`min_active_dims` must be at most 4"),
        ({"code_ridge": 0.1}, "`max_active_dims` must be given with `code_ridge`"),
        ({"code_budgets": [0, 4]}, "`code_budgets` must be numbers from 1 to `latent_size`"),
        ({"code_budgets": []}, "`code_budgets` must be numbers from 1"),
    ],
)
def test_rules_of_codes_are_named(fields, message):
    with pytest.raises(Exception, match=message):
        small(latent_size=12, **fields)


def test_words_have_no_rule_for_the_values_of_vectors():
    with pytest.raises(Exception, match="`code_ridge` must be None where words are reconstructed"):
        hsvae_hf.HSVAEConfig(code_ridge=0.1, max_active_dims=4)
