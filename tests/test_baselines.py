"""The baselines' mathematics against definitions, numeric integration, Monte Carlo and finite differences."""

import itertools
import math

import pytest
import torch
from families import SIZES
from torch.autograd import gradcheck
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

import hsvae_hf
from hsvae_hf.models.distributions import (
    bernoulli_kl,
    choice_entropies,
    gumbel_like,
    inverse_multiquadric_mmd,
    log1mexp,
    normal_kl_to,
    normal_log_prob,
    normal_quadrature,
    select_dimensions,
    sparsemax,
)
from hsvae_hf.models.modeling_gaussian_vae import GaussianVAEHead
from hsvae_hf.models.modeling_mat_vae import MATVAEHead
from hsvae_hf.models.modeling_sdlgm import SDLGMHead
from hsvae_hf.models.modeling_vsc import VSCHead

GRID = torch.linspace(-14, 14, 560_001, dtype=torch.float64)


def f64(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


def head_and_posterior(head_class, config, rows=5, scale=1.0):
    head = head_class(config).double()
    for name, parameter in head.named_parameters():
        torch.nn.init.normal_(parameter, std=scale if "bias" not in name else 0.1)
    return head, head(torch.randn(rows, 12, dtype=torch.float64))


def test_divergences_are_those_of_torch():
    mean, std, prior_mean, prior_std = torch.randn(4, 50, dtype=torch.float64)
    std, prior_std = std.exp(), prior_std.exp()
    expected = kl_divergence(Normal(mean, std), Normal(prior_mean, prior_std))
    torch.testing.assert_close(normal_kl_to(mean, std, prior_mean, prior_std), expected)
    p, q = torch.rand(2, 50, dtype=torch.float64)
    torch.testing.assert_close(bernoulli_kl(p.log(), q.log()), kl_divergence(Bernoulli(p), Bernoulli(q)))
    small = f64(-1e-9, -1e-3, -0.5, -0.8, -40.0)
    torch.testing.assert_close(log1mexp(small).exp(), -torch.expm1(small), rtol=1e-12, atol=0)


def test_gaussian_penalties_and_kl():
    for p in (0, 1, 2):
        config = hsvae_hf.GaussianVAEConfig(**SIZES, penalty_norm=p)
        head, posterior = head_and_posterior(GaussianVAEHead, config)
        costs = head.costs(posterior, head.sample(posterior))
        kl = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0))
        torch.testing.assert_close(costs["z_kl"], kl)
        if p:
            expected = (posterior.mean.abs() ** p).sum() / 5 + (posterior.std**p).sum() / 5
            torch.testing.assert_close(costs["penalty"], expected)
        assert ("penalty" in costs) == bool(p)


def test_mat_vae_log_ratio_integrates_to_the_kl():
    head, posterior = head_and_posterior(MATVAEHead, hsvae_hf.MATVAEConfig(**SIZES, prior_spike_probability=0.7))
    mean, std = posterior.mean[0, 0].item(), posterior.std[0, 0].item()
    q = Normal(mean, std).log_prob(GRID)
    p = (0.3 * Normal(0.0, 1.0).log_prob(GRID).exp() + 0.7 * Normal(0.0, 0.05).log_prob(GRID).exp()).log()
    exact = torch.trapezoid(q.exp() * (q - p), GRID)
    many = type(posterior)(**{name: value[:1].expand(500, -1) for name, value in posterior.items()})
    draws = [head.costs(many, head.sample(many))["z_kl"][:, 0] for _ in range(40)]
    ratio = torch.cat(draws)
    assert abs(ratio.mean() - exact) < 5 * ratio.std() / math.sqrt(len(ratio))


def kernel(u, v):
    return sum(2 * scale / (2 * scale + (u - v) ** 2) for scale in (0.1, 0.2, 0.5, 1, 2, 5))


def naive_mmd(z, points):
    """The formula of the paper, for as many draws of the prior as there are rows."""
    rows, total = len(z), 0.0
    for a, b in zip(z.T, points.T, strict=True):
        for i, j in itertools.permutations(range(rows), 2):
            total += (kernel(a[i], a[j]) + kernel(b[i], b[j])) / (rows * (rows - 1))
        for i, j in itertools.product(range(rows), repeat=2):
            total -= 2 * kernel(a[i], b[j]) / rows**2
    return total


@pytest.mark.parametrize("rows", [2, 3, 7])
def test_mmd_is_the_naive_double_loop(rows):
    z, points = torch.randn(rows, 2, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    weights = torch.rand(9, dtype=torch.float64)
    weights /= weights.sum()
    expected = 0.0
    for column in z.T:
        for i, j in itertools.permutations(range(rows), 2):
            expected += kernel(column[i], column[j]) / (rows * (rows - 1))
        for i, k in itertools.product(range(rows), range(9)):
            expected -= 2 * weights[k] * kernel(column[i], points[k]) / rows
        for k, m in itertools.product(range(9), repeat=2):
            expected += weights[k] * weights[m] * kernel(points[k], points[m])
    torch.testing.assert_close(inverse_multiquadric_mmd(z, points, weights), expected)


def test_mmd_is_the_mean_of_the_released_formula_over_draws_of_the_prior():
    z = torch.randn(6, 2, dtype=torch.float64)
    draws = torch.stack([naive_mmd(z, torch.randn(6, 2, dtype=torch.float64)) for _ in range(150)])
    exact = inverse_multiquadric_mmd(z, *normal_quadrature(1.0))
    assert abs(draws.mean() - exact) < 5 * draws.std() / math.sqrt(len(draws))
    assert draws.std() > 0


def test_mmd_gradient_and_quadrature():
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda z: inverse_multiquadric_mmd(z, *normal_quadrature(1.0)), z)
    coarse = inverse_multiquadric_mmd(z, *normal_quadrature(1.0))
    fine = inverse_multiquadric_mmd(z, *normal_quadrature(1.0, step=0.02, reach=9.0))
    torch.testing.assert_close(coarse, fine, atol=1e-5, rtol=0)
    same = inverse_multiquadric_mmd(torch.randn(2000, 1, dtype=torch.float64), *normal_quadrature(1.0))
    other = inverse_multiquadric_mmd(1 + torch.randn(2000, 1, dtype=torch.float64), *normal_quadrature(1.0))
    assert abs(same) < 0.02 < 0.1 < other


def test_sparsemax_is_the_projection_on_the_simplex():
    scores = 2 * torch.randn(200, 7, dtype=torch.float64)
    found = sparsemax(scores)
    low, high = scores.min(-1).values - 1, scores.max(-1).values
    for _ in range(200):  # the threshold at which the positive parts sum to 1, by bisection
        middle = (low + high) / 2
        above = (scores - middle.unsqueeze(-1)).clamp_min(0).sum(-1) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    torch.testing.assert_close(found, (scores - low.unsqueeze(-1)).clamp_min(0))
    assert (found == 0).any()
    assert gradcheck(sparsemax, torch.randn(4, 5, dtype=torch.float64, requires_grad=True))


def test_vsc_kl_is_the_integral():
    config = hsvae_hf.VSCConfig(**SIZES, num_pseudo_inputs=3, prior_activity=0.01, gate_balance_weight=0.0)
    head, posterior = head_and_posterior(VSCHead, config, scale=0.2)
    costs = head.eval().costs(posterior, {})
    choice = (10 * head.selector(posterior.features)).softmax(-1) @ head.pseudo_inputs
    prior = head(choice)
    for row, column in itertools.product(range(5), range(6)):
        (g, m, s), (g_u, m_u, s_u) = (
            (p.log_active[row, column].exp(), p.slab_mean[row, column], p.slab_std[row, column])
            for p in (posterior, prior)
        )
        log_q, log_p = normal_log_prob(GRID, m, s) + g.log(), normal_log_prob(GRID, m_u, s_u) + g_u.log()
        slab = torch.trapezoid(log_q.exp() * (log_q - log_p), GRID)
        exact = slab + (1 - g) * ((1 - g) / (1 - g_u)).log()
        total = costs["z_kl"][row, column] + costs["gamma_kl"][row, column]
        torch.testing.assert_close(total, exact, atol=1e-7, rtol=1e-6)
    share = prior.log_active.exp().mean(-1)
    expected = 6 * kl_divergence(Bernoulli(share), Bernoulli(f64(0.01))).mean()
    torch.testing.assert_close(costs["penalty"], expected)


def test_vsc_balances_every_dimension_over_the_batch():
    options = SIZES | {"prior_activity": 0.3, "num_pseudo_inputs": 3}
    head, posterior = head_and_posterior(VSCHead, hsvae_hf.VSCConfig(**options, gate_balance_weight=2.0))
    alone = VSCHead(hsvae_hf.VSCConfig(**options, gate_balance_weight=0.0)).double()
    alone.load_state_dict(head.state_dict())
    expected = 0.0
    for column in posterior.log_active.exp().T:
        expected += 2 * kl_divergence(Bernoulli(column.mean()), Bernoulli(f64(0.3)))
    difference = head.costs(posterior, {})["penalty"] - alone.costs(posterior, {})["penalty"]
    torch.testing.assert_close(difference, expected)
    assert head.needs_even_batches and not alone.needs_even_batches


def test_the_penalty_of_vsc_rises_in_training_alone():
    head, posterior = head_and_posterior(VSCHead, hsvae_hf.VSCConfig(**SIZES, penalty_warmup_fraction=0.5))

    def penalty(progress, training):
        head.train(training).anneal(progress)
        return head.costs(posterior, {})["penalty"].item()

    full = penalty(0.0, False)
    assert [penalty(progress, True) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0, full / 2, full, full])


@pytest.mark.parametrize(("size", "share"), [(32, 0.2), (240, 0.2), (768, 48 / 768)])
def test_the_prior_of_vsc_keeps_a_fifth_on_but_no_more_than_48(size, share):
    assert hsvae_hf.VSCConfig(**(SIZES | {"latent_size": size})).prior_share == pytest.approx(share)
    assert hsvae_hf.VSCConfig(**SIZES, prior_activity=0.7).prior_share == 0.7


def test_a_new_vsc_begins_with_the_slab_that_is_asked_for():
    model = hsvae_hf.VSCModel(hsvae_hf.VSCConfig(**SIZES, slab_std_start=0.3))
    posterior = model.latent_head(torch.zeros(1, 12))
    torch.testing.assert_close(posterior.slab_std, torch.full((1, 6), 0.301))
    assert not posterior.slab_mean.any()


def test_vsc_anneals_in_training_only():
    config = hsvae_hf.VSCConfig(**SIZES, anneal_fraction=0.5, gate_sharpness_start=50.0)
    head, posterior = head_and_posterior(VSCHead, config)

    def draw(progress, training):
        head.train(training).anneal(progress)
        torch.manual_seed(1)
        return head.sample(posterior)["z"]

    assert torch.equal(draw(0.0, False), draw(1.0, False))
    assert torch.equal(draw(0.5, True), draw(1.0, False))
    assert not torch.equal(draw(0.25, True), draw(0.5, True))
    flat = type(posterior)(**{**posterior, "log_active": torch.full_like(posterior.log_active, -1e-9)})
    head.train().anneal(0.0)  # a standard Gaussian slab; with the gate wide open, the relaxed gate is near 1
    z = torch.stack([head.sample(flat)["z"] for _ in range(4000)])
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 1) < 0.05


def test_sdlgm_never_exceeds_its_cap_and_uses_all_counts():
    config = hsvae_hf.SDLGMConfig(**(SIZES | {"latent_size": 30}), sparsity_cap=5)
    head, posterior = head_and_posterior(SDLGMHead, config, rows=10_000, scale=0.3)
    sample = head.sample(posterior)
    counts = (sample["z"] != 0).sum(-1)
    assert counts.max() == 5
    assert counts.unique().tolist() == [1, 2, 3, 4, 5]
    assert torch.equal(sample["mask"].unique(), f64(0.0, 1.0))
    assert (posterior.latent != 0).sum(-1).max() <= 5
    expected = posterior.count_logits.argmax(-1) + 1
    assert torch.equal((posterior.latent != 0).sum(-1), expected)


def test_sdlgm_draws_plackett_luce_and_its_count():
    torch.manual_seed(3)
    rows, logits = 200_000, torch.randn(4, dtype=torch.float64)
    counts = torch.randn(2, dtype=torch.float64)
    scores = logits.expand(rows, -1) + gumbel_like(logits.expand(rows, -1))
    number = counts.expand(rows, -1) + gumbel_like(counts.expand(rows, -1))
    mask = select_dimensions(number, scores, 0.5, 0.5)
    two = mask.sum(-1) == 2
    assert abs(two.double().mean() - counts.softmax(-1)[1]) < 0.01
    p = logits.softmax(-1)
    for i, j in itertools.combinations(range(4), 2):
        pair = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        seen = (mask[two][:, i] * mask[two][:, j]).mean()
        assert abs(seen - pair) < 0.01


def test_sdlgm_kl_is_that_of_all_sequences():
    config = hsvae_hf.SDLGMConfig(**(SIZES | {"latent_size": 5}), sparsity_cap=3)
    head, posterior = head_and_posterior(SDLGMHead, config, rows=1, scale=0.5)
    p, count = posterior.selection_logits[0].softmax(-1), posterior.count_logits[0].softmax(-1)
    exact = 0.0
    for length in (1, 2, 3):
        exact += count[length - 1] * (count[length - 1] * 3).log()
        for sequence in itertools.permutations(range(5), length):
            probability, left, uniform = 1.0, 1.0, 1.0
            for step, index in enumerate(sequence):
                probability, left, uniform = probability * p[index] / left, left - p[index], uniform / (5 - step)
            exact += count[length - 1] * probability * (probability / uniform).log()
    many = type(posterior)(**{name: value.expand(20_000, -1) for name, value in posterior.items()})
    costs = head.costs(many, head.sample(many))
    estimate = costs["gamma_kl"].sum(-1)
    assert abs(estimate.mean() - exact) < 5 * estimate.std() / math.sqrt(20_000)
    assert costs["gamma_kl"].shape == (20_000, 4)


@pytest.mark.parametrize(("size", "cap"), [(30, 5), (6, 6), (1, 1)])
def test_each_choice_of_sdlgm_has_the_entropy_of_what_is_left(size, cap):
    logits = 3 * torch.randn(4, size, dtype=torch.float64, requires_grad=True)
    chosen = torch.rand(4, size).topk(cap).indices
    entropies = choice_entropies(logits, chosen)
    assert gradcheck(lambda value: choice_entropies(value, chosen), (logits,))
    for row in range(4):
        left = list(range(size))
        for step, index in enumerate(chosen[row].tolist()):
            expected = Categorical(logits=logits[row, left]).entropy()
            torch.testing.assert_close(entropies[row, step], expected)
            left.remove(index)


def test_the_gradient_of_a_selection_is_that_of_its_steps():
    counts = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 6, dtype=torch.float64)
    found = torch.autograd.grad((select_dimensions(counts, scores, 0.7, 0.9) * weights).sum(), (counts, scores))
    total = 0.0
    for row in range(3):
        share = (counts[row] / 0.7).softmax(-1)
        left = list(range(6))
        for step in range(4):
            best = max(left, key=lambda index: scores[row, index].item())
            probability = (scores[row, left] / 0.9).softmax(-1)
            on = step <= counts[row].argmax()
            total = total + share[step:].sum() * weights[row, best] + on * (probability * weights[row, left]).sum()
            left.remove(best)
    for gradient, expected in zip(found, torch.autograd.grad(total, (counts, scores)), strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("head_class", "config_class", "fields"),
    [
        (GaussianVAEHead, hsvae_hf.GaussianVAEConfig, ("mean", "std")),
        (VSCHead, hsvae_hf.VSCConfig, ("log_active", "slab_mean", "slab_std")),
    ],
)
def test_reparameterised_draws_have_the_gradient_of_finite_differences(head_class, config_class, fields):
    options = {"gate_sharpness": 5.0, "gate_gradient": "pathwise"} if head_class is VSCHead else {}
    head, posterior = head_and_posterior(head_class, config_class(**SIZES, **options), rows=2, scale=0.2)
    values = [posterior[name].detach().requires_grad_() for name in fields]

    def draw(*values):
        torch.manual_seed(0)
        return head.sample(type(posterior)(**{**posterior, **dict(zip(fields, values, strict=True))}))["z"]

    assert gradcheck(draw, values)
