"""What is HSVAE's own: the code's rule, gamma conditioning, the estimators, the corners where others give NaN."""

import pytest
import torch
from families import SIZES
from torch.distributions import Bernoulli, kl_divergence
from torch.nn import functional as F

from hsvae_hf import RELEASED, HSVAEConfig, HSVAEForPreTraining, HSVAEModel
from hsvae_hf.models.modeling_hsvae import HSVAEHead

ESTIMATORS = [(name, conditioned) for name in ("mc", "rao_blackwell", "closed_form") for conditioned in (False, True)]
ESTIMATORS += [("collapsed", False)]


def model(**options):
    model = HSVAEModel(HSVAEConfig(**SIZES, **options))
    for name, parameter in model.latent_head.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def head(**options):
    return model(**options).latent_head


def test_code_is_the_gated_slab_mean_with_exact_zeros():
    body, features = model(), torch.randn(50, 12)
    latent_head, output = body.latent_head, body(vectors=features)
    a, b = (F.softplus(latent_head.gate(output.features)).clamp(0.5, 100)).chunk(2, -1)
    torch.testing.assert_close(output.gate_mean, a / (a + b))
    active = output.gate_mean < 0.5
    assert 0 < active.float().mean() < 1
    assert (output.sparse_embedding[~active] == 0).all()
    expected = ((1 - output.gate_mean) * output.slab_mean)[active]
    torch.testing.assert_close(output.sparse_embedding[active], expected)
    counts = []
    for threshold in (0.2, 0.5, 0.8):
        body.config.active_threshold = threshold
        counts.append(int(body(vectors=features).sparse_embedding.count_nonzero()))
    assert counts[0] < counts[1] < counts[2]


def test_slab_reads_gamma_only_where_asked():
    features = torch.randn(20, 12)
    for conditioned in (False, True):
        latent_head = head(condition_slab_on_gate=conditioned, kl_estimator="closed_form")
        posterior = latent_head(features)
        sample = latent_head.sample(posterior)
        differs = (sample["slab_mean"] - posterior.slab_mean).abs().max() > 1e-4
        assert bool(differs) == conditioned


def test_samples_follow_the_posterior():
    latent_head = head(kl_estimator="mc")
    features = torch.randn(1, 12).expand(100_000, 12)
    posterior = latent_head(features)
    z = latent_head.sample(posterior)["z"]
    gamma, mean, std = posterior.gate_mean[0], posterior.slab_mean[0], posterior.slab_std[0]
    torch.testing.assert_close(z.mean(0), (1 - gamma) * mean, atol=0.03, rtol=0)
    second = gamma * 0.05**2 + (1 - gamma) * (mean**2 + std**2)
    torch.testing.assert_close((z**2).mean(0), second, atol=0.05, rtol=0.05)


def test_estimators_are_of_one_kl_that_the_closed_forms_bound():
    latent_head = head()
    posterior = latent_head(torch.randn(1, 12).expand(200_000, 12))
    costs = {}
    for estimator in ("mc", "rao_blackwell", "closed_form", "collapsed"):
        latent_head.config.kl_estimator = estimator
        costs[estimator] = latent_head.costs(posterior, latent_head.sample(posterior))
    means = {estimator: cost["z_kl"].mean(0) for estimator, cost in costs.items()}
    torch.testing.assert_close(means["mc"], means["rao_blackwell"], atol=0.02, rtol=0.02)
    assert (means["closed_form"] > means["rao_blackwell"] - 0.01).all()
    for name in ("z_kl", "gamma_kl"):
        torch.testing.assert_close(costs["closed_form"][name], costs["collapsed"][name])


@pytest.mark.parametrize(("target", "share"), [(None, 0.2), (3, 0.5)])
def test_the_balance_is_that_of_the_batch(target, share):
    latent_head = head(gate_balance_weight=2.0, target_active_dims=target, gamma_kl_weight=0.01)
    assert latent_head.needs_even_batches
    unbalanced = head(gate_balance_weight=0.0)
    assert not unbalanced.needs_even_batches
    posterior = latent_head(torch.randn(7, 12))
    costs = latent_head.costs(posterior, latent_head.sample(posterior))
    on = (1 - posterior.gate_mean.double()).mean(0)
    expected = kl_divergence(Bernoulli(on), Bernoulli(torch.full_like(on, share))).sum()
    torch.testing.assert_close(costs["penalty"].double(), expected, rtol=1e-4, atol=1e-5)
    assert "penalty" not in unbalanced.costs(posterior, latent_head.sample(posterior))
    costs["penalty"].backward()
    assert latent_head.gate.weight.grad.abs().sum() > 0


def test_prior_samples_follow_the_prior():
    z = head(prior_alpha=3.0, prior_beta=1.0).sample_prior(100_000)
    assert abs(z.var() - (0.75 * 0.05**2 + 0.25)) < 0.01
    assert abs((z.abs() < 0.15).float().mean() - (0.75 * 0.9973 + 0.25 * 0.1192)) < 0.01


@pytest.mark.parametrize(("estimator", "conditioned"), ESTIMATORS)
@pytest.mark.parametrize("prior", [(4.0, 1.0), (30.0, 1.0), (0.1, 0.1), (1000.0, 1000.0)])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_no_nan_at_the_corners(estimator, conditioned, prior, scale):
    config = HSVAEConfig(
        **SIZES, kl_estimator=estimator, condition_slab_on_gate=conditioned, prior_alpha=prior[0], prior_beta=prior[1]
    )
    latent_head = HSVAEModel(config).latent_head
    assert isinstance(latent_head, HSVAEHead)
    features = (scale * torch.randn(64, 12)).requires_grad_()
    posterior = latent_head(features)
    sample = latent_head.sample(posterior)
    total = sample["z"].sum() + sum(cost.sum() for cost in latent_head.costs(posterior, sample).values())
    assert total.isfinite()
    total.backward()
    for gradient in (features.grad, *(parameter.grad for parameter in latent_head.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_released_settings_train_without_nan(autocast):
    model = HSVAEForPreTraining(HSVAEConfig(**SIZES, **RELEASED)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-4)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(150):
        ids = torch.randint(3, 12, (32, 8), generator=generator)
        ids[:, -1] = 1
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(ids).loss
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("wanted", "weight", "low", "start", "total"),
    [
        (0.3, 1.0, 0.001, 0.2, 1.3863),
        (0.3, 1.0, 0.5, 0.2, 2.5),
        (2, 1.0, 0.5, 0.5, 1.3863),
        (0.3, 0.0, 0.5, 0.5, 1.3863),
    ],
)
def test_balanced_gates_begin_four_times_as_open_as_they_are_to_end(wanted, weight, low, start, total, tmp_path):
    options = {"target_active_dims": wanted, "gate_balance_weight": weight, "gate_concentration_min": low}
    model = HSVAEForPreTraining(HSVAEConfig(**SIZES, **options))
    output = model.model.latent_head(torch.zeros(1, 12))
    torch.testing.assert_close(1 - output.gate_mean, torch.full((1, 6), start))
    torch.testing.assert_close(output.gate_alpha + output.gate_beta, torch.full((1, 6), total), rtol=1e-4, atol=0)
    torch.nn.init.normal_(model.model.latent_head.gate.bias)
    model.save_pretrained(tmp_path)
    loaded = HSVAEForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(loaded.model.latent_head.gate.bias, model.model.latent_head.gate.bias)
