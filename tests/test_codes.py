"""The rule of a code: which dimensions are on, between a floor and a ceiling, by rank; their values; dense queries."""

import itertools

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import nnls
from vector_models import small

import hsvae_hf
import hsvae_hf.evaluation_scores
from hsvae_hf.active_dims import hold_target
from hsvae_hf.models.distributions import neighbour_kl
from hsvae_hf.models.modeling_decoder import nonnegative_minimum

NONNEGATIVE = {"nonnegative_codes": True, "max_active_dims": 4, "code_ridge": 0.3}
RULE = {"min_active_dims": 2, "max_active_dims": 4, "code_ridge": 0.3}


def trained(**fields):
    """A model whose gates and values differ between sentences, as after training."""
    torch.manual_seed(0)
    model = small(latent_size=12, **fields)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.eval()


@pytest.mark.parametrize("rows", [7, 70])  # the products of columns are computed for each row, or for all together
def test_the_posterior_mean_is_ridge_regression_on_the_columns_that_are_on(rows):
    model, vectors = trained(), torch.randn(rows, 5)
    chosen = torch.stack([torch.randperm(12)[:4] for _ in vectors])
    used = torch.rand(rows, 4) < 0.7
    found = model.decoder.posterior_mean(vectors, chosen, used, 0.3).detach()
    weight, bias = (
        value.detach().double().numpy() for value in (model.decoder.output.weight, model.decoder.output.bias)
    )
    for row in range(rows):
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


@pytest.mark.parametrize(("size", "columns", "shift"), [(5, 4, 0.0), (5, 9, 0.0), (60, 40, 0.0), (60, 24, 1.0)])
def test_values_without_a_sign_are_nonnegative_ridge_regression(size, columns, shift):
    torch.manual_seed(0)
    matrices = torch.randn(50, columns, size, dtype=torch.float64) + shift  # rows are columns of a decoder
    aims = 3 * torch.randn(50, size, dtype=torch.float64) + shift
    system = matrices @ matrices.transpose(1, 2) + 0.3 * torch.eye(columns)
    products = (matrices @ aims.unsqueeze(-1)).squeeze(-1)
    exact = nonnegative_minimum(system, products, steps=12)
    for row in range(50):
        stacked = np.vstack([matrices[row].T.numpy(), np.sqrt(0.3) * np.eye(columns)])
        expected, _ = nnls(stacked, np.concatenate([aims[row].numpy(), np.zeros(columns)]))
        np.testing.assert_allclose(exact[row], expected, rtol=1e-4, atol=1e-4)
    gradient = (system @ exact.unsqueeze(-1)).squeeze(-1) - products
    assert not exact.signbit().any() and (exact == 0).any()
    assert (gradient[exact > 0].abs() < 1e-8).all() and (gradient[exact == 0] > -0.01).all()
    usual = nonnegative_minimum(system.float(), products.float())  # in fp32, with the steps that codes take
    near = (usual - exact).abs().amax(1) < 1e-3 * exact.abs().amax(1)
    assert near.float().mean() > 0.9 and (usual >= 0).all()


def test_steps_that_go_in_a_circle_end_no_worse_than_they_were():
    torch.manual_seed(0)
    matrices = torch.randn(500, 12, 5)  # more columns than numbers, and hardly a ridge
    system = matrices @ matrices.transpose(1, 2) + 1e-3 * torch.eye(12)
    products = (matrices @ (3 * torch.randn(500, 5, 1))).squeeze(-1)
    heights = []
    for steps in (1, 6, 12):
        values = nonnegative_minimum(system, products, steps)
        heights.append((values * ((system @ values.unsqueeze(-1)).squeeze(-1) / 2 - products)).sum(1))
    for before, after in itertools.pairwise([torch.zeros(500), *heights]):
        assert (after <= before + 1e-4 * before.abs()).all()
    system[0] = torch.nan
    assert nonnegative_minimum(system, products)[0].isnan().all()


@pytest.mark.parametrize("ridge", [None, 0.3])
def test_head_and_decoder_read_one_configuration(ridge):
    model, vectors = trained(max_active_dims=4, code_ridge=ridge), torch.randn(30, 5)
    assert (model.model(vectors=vectors).sparse_embedding < 0).any()
    model.config.nonnegative_codes = True
    assert (model.model(vectors=vectors).sparse_embedding >= 0).all()


@pytest.mark.parametrize("ridge", [None, 0.3])
def test_nonnegative_codes_have_no_sign(ridge):
    model = trained(**NONNEGATIVE | {"code_ridge": ridge})
    vectors = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    for wanted in (1, 3, 12):
        codes = hsvae_hf.encode_vectors(model, vectors, active_dims=wanted)
        on = codes.getnnz(axis=1)
        assert (codes.data > 0).all()
        assert (on == wanted).all() if ridge is None else (on <= wanted).all()
    assert (hsvae_hf.encode_vectors(model, vectors).data > 0).all()


def test_a_code_without_a_sign_is_short_only_for_want_of_positive_values():
    model, vectors = trained(**NONNEGATIVE), torch.randn(300, 5)
    codes = model.model(vectors=vectors, active_dims=4).sparse_embedding
    posterior = model.model(vectors=vectors)
    competing = ((1 - posterior.gate_mean) * posterior.slab_mean).topk(6).indices
    used = torch.ones_like(competing, dtype=torch.bool)
    values = model.decoder.posterior_mean(vectors, competing, used, 0.3)
    short, few = (codes != 0).sum(1) < 4, (values > 0).sum(1) < 4
    assert short.any() and few[short].float().mean() > 0.9  # nearly always: values of fewer dimensions are others
    with torch.no_grad():
        model.decoder.output.weight.abs_()
    far = model.decoder.output.bias - 1  # every dimension leads away from it
    assert model.model(vectors=far.detach().unsqueeze(0)).sparse_embedding.count_nonzero() == 0


@pytest.mark.parametrize("fields", [{}, {"condition_slab_on_gate": True, "kl_estimator": "closed_form"}])
def test_slabs_without_a_sign_have_positive_means_and_learn(fields):
    model, vectors = trained(nonnegative_codes=True, code_reconstruction_weight=1.0, **fields), torch.randn(30, 5)
    posterior = model.model(vectors=vectors)
    sample = model.model.sample(posterior)
    assert (posterior.slab_mean > 0).all() and (sample["slab_mean"] > 0).all() and (sample["z"] < 0).any()
    model.train()(vectors=vectors).loss.backward()
    gradient = model.model.latent_head.slab.weight.grad
    assert gradient.isfinite().all() and (gradient.abs().sum(1) > 0).all()


def test_a_coder_without_a_sign_is_trained_and_saved(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    options = {"latent_size": 32, "target_active_dims": 4, "max_steps": 40, "nonnegative_codes": True}
    coder = hsvae_hf.fit(vectors, **options, learning_rate=1e-2, disable_tqdm=True)
    codes = hsvae_hf.encode_vectors(coder, vectors)
    assert (codes.data > 0).all() and (codes.getnnz(axis=1) == 4).mean() > 0.9
    assert hsvae_hf.evaluation_scores.explained_variance(vectors, hsvae_hf.decode_codes(coder, codes)) > 0.2
    coder.save_pretrained(tmp_path)
    loaded = hsvae_hf.HSVAEModel.from_pretrained(tmp_path)
    assert loaded.config.nonnegative_codes
    assert (hsvae_hf.encode_vectors(loaded, vectors) != codes).nnz == 0


def test_a_configuration_of_before_has_signed_codes():
    config = trained(**RULE).config.to_dict()
    del config["nonnegative_codes"]
    assert not hsvae_hf.HSVAEConfig.from_dict(config).nonnegative_codes
    codes = hsvae_hf.encode_vectors(trained(**RULE), np.random.default_rng(0).normal(size=(50, 5)))
    assert (codes.data < 0).any()


def test_families_without_a_rule_for_signs_refuse_it():
    with pytest.raises(Exception, match="`nonnegative_codes` must be False for vsc, got True; use hsvae"):
        small("vsc", nonnegative_codes=True)
    with pytest.raises(Exception, match="`nonnegative_codes` must be False where words are reconstructed"):
        hsvae_hf.HSVAEConfig(nonnegative_codes=True)


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


@pytest.mark.filterwarnings("error")
def test_vectors_may_be_read_only():
    vectors = np.ones((3, 5), dtype=np.float32)
    vectors.flags.writeable = False
    assert hsvae_hf.encode_vectors(trained(), vectors).shape == (3, 12)


def test_idle_dimensions_learn_from_what_codes_leave():
    model, vectors = trained(**RULE | {"revival_weight": 1.0}), torch.randn(30, 5)
    with torch.no_grad():  # the last four never come on
        model.model.latent_head.gate.bias[8:12] = 8.0
        model.model.latent_head.gate.bias[20:24] = -8.0
    posterior = model.train().model(vectors=vectors)
    codes = model.model.encoder_code(posterior)
    idle = (codes == 0).all(0)
    assert idle[8:].all() and not idle.all()
    decoded = model.decoder.mean(codes)
    loss = model.model.revival(posterior, decoded)
    weight = model.decoder.output.weight
    left = vectors - decoded - posterior.slab_mean[:, idle] @ weight[:, idle].T
    torch.testing.assert_close(loss, left.square().sum(1).mean() / (2 * model.config.decoder_std**2))
    loss.backward()
    assert torch.equal(weight.grad.abs().sum(0) > 0, idle)
    slab = model.model.latent_head.slab.weight.grad[:12].abs().sum(1) > 0
    assert torch.equal(slab, idle)


def test_without_idle_dimensions_nothing_is_revived():
    model, vectors = trained(max_active_dims=12, min_active_dims=12, revival_weight=1.0), torch.randn(30, 5)
    assert model(vectors=vectors).revival == 0
