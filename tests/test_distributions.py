"""The mathematics against Monte Carlo and closed forms in float64."""

import math

import pytest
import torch
from torch.distributions import Beta, Categorical, Normal, kl_divergence

from hsvae_hf.models.distributions import (
    beta_kl,
    clamp_with_gradient,
    neighbour_kl,
    normal_kl,
    relaxed_gate,
    sample_beta,
    sample_binary_concrete,
    spike_slab_kl_rao_blackwell,
    spike_slab_log_prob,
    spike_slab_log_ratio,
)

N = 400_000
CASES = [(0.3, 0.8, 0.6), (0.7, 1.5, 0.2), (0.95, 0.2, 1.0), (0.05, -1.0, 0.5)]  # gamma, slab mean, slab std
SPIKE = 0.05


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


def gate(gamma):
    return f64(gamma).log(), torch.log1p(-f64(gamma))


def draw_mixture(gamma, mean, std):
    spike = torch.rand(N, dtype=torch.float64) < gamma
    noise = torch.randn(N, dtype=torch.float64)
    return torch.where(spike, SPIKE * noise, mean + std * noise)


@pytest.mark.parametrize(("gamma", "mean", "std"), CASES)
def test_spike_slab_density_integrates_to_one(gamma, mean, std):
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    density = spike_slab_log_prob(z, *gate(gamma), f64(mean), f64(std), SPIKE).exp()
    torch.testing.assert_close(torch.trapezoid(density, z), f64(1.0))


@pytest.mark.parametrize(("gamma", "mean", "std"), CASES)
def test_estimators_agree_on_the_mixture_kl_and_closed_form_bounds_it(gamma, mean, std):
    log_gate, mean, std = gate(gamma), f64(mean), f64(std)
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    density = spike_slab_log_prob(z, *log_gate, mean, std, SPIKE).exp()
    exact = torch.trapezoid(density * spike_slab_log_ratio(z, *log_gate, mean, std, SPIKE), z)
    mc = spike_slab_log_ratio(draw_mixture(gamma, mean, std), *log_gate, mean, std, SPIKE)
    rao_blackwell = spike_slab_kl_rao_blackwell(*(g.expand(N) for g in log_gate), mean.expand(N), std.expand(N), SPIKE)
    for estimate in (mc, rao_blackwell):
        assert abs(estimate.mean() - exact) < 5 * estimate.std() / math.sqrt(N)
    assert rao_blackwell.std() < mc.std()
    assert (1 - gamma) * normal_kl(mean, std) >= exact


def test_normal_kl_is_that_of_torch():
    mean, std = torch.randn(50, dtype=torch.float64), torch.rand(50, dtype=torch.float64) + 0.1
    torch.testing.assert_close(normal_kl(mean, std), kl_divergence(Normal(mean, std), Normal(0.0, 1.0)))


@pytest.mark.parametrize("prior", [(4.0, 1.0), (30.0, 1.0), (0.1, 0.1), (1000.0, 1000.0)])
def test_beta_kl_is_that_of_torch_and_of_monte_carlo(prior):
    a, b = f64([0.5, 2.0, 40.0, 100.0]), f64([1.0, 0.7, 8.0, 100.0])
    posterior, target = Beta(a, b), Beta(*map(f64, prior))
    torch.testing.assert_close(beta_kl(a, b, *prior), kl_divergence(posterior, target))
    gamma = posterior.sample((N,)).clamp(1e-12, 1 - 1e-12)
    ratio = posterior.log_prob(gamma) - target.log_prob(gamma)
    assert ((ratio.mean(0) - beta_kl(a, b, *prior)).abs() < 6 * ratio.std(0) / math.sqrt(N) + 1e-6).all()
    single = beta_kl(a.float(), b.float(), *prior).double()
    torch.testing.assert_close(single, beta_kl(a, b, *prior), rtol=1e-3, atol=1e-3)


def test_beta_draws_have_the_right_moments_and_gradients():
    a, b = f64(3.0).requires_grad_(), f64(2.0).requires_grad_()
    log_gamma, log_slab = sample_beta(a.expand(N), b.expand(N))
    gamma = log_gamma.exp()
    torch.testing.assert_close(gamma + log_slab.exp(), torch.ones_like(gamma))
    assert abs(gamma.mean() - 0.6) < 5e-3
    assert abs(gamma.var() - 0.04) < 2e-3
    grads = torch.autograd.grad(gamma.mean(), (a, b))
    torch.testing.assert_close(torch.stack(grads), f64([2 / 25, -3 / 25]), rtol=0.03, atol=0)  # d a/(a+b)


def test_concrete_is_hard_with_the_gradient_of_its_relaxation():
    logits = torch.full((N,), 0.8, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    hard = sample_binary_concrete(logits, 0.5)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert abs(hard.mean() - torch.sigmoid(f64(0.8))) < 5e-3
    torch.manual_seed(1)
    noise = torch.logit(torch.rand_like(logits).clamp(1e-7, 1 - 1e-7))
    step = 1e-6
    above, below = (torch.sigmoid((logits.detach() + sign * step + noise) / 0.5) for sign in (1, -1))
    (gradient,) = torch.autograd.grad(hard.sum(), logits)
    torch.testing.assert_close(gradient, (above - below) / (2 * step))


def test_neighbours_by_code_and_by_vector_are_compared_row_by_row():
    vectors, codes = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64, requires_grad=True)

    def shares(rows, row):
        others = [other for other in range(5) if other != row]
        cosines = [torch.cosine_similarity(rows[row], rows[other], dim=0) for other in others]
        return Categorical(logits=torch.stack(cosines) / 0.1)

    expected = sum(kl_divergence(shares(vectors, row), shares(codes, row)) for row in range(5)) / 5
    torch.testing.assert_close(neighbour_kl(vectors, codes, 0.1), expected)
    (gradient,) = torch.autograd.grad(neighbour_kl(vectors, codes, 0.1), codes)
    step = 1e-6 * torch.randn(5, 7, dtype=torch.float64)
    change = neighbour_kl(vectors, codes + step, 0.1) - neighbour_kl(vectors, codes - step, 0.1)
    torch.testing.assert_close((gradient * step).sum() * 2, change, rtol=1e-4, atol=1e-12)
    for scale in (1e-12, 3.0, 1e12):
        torch.testing.assert_close(neighbour_kl(scale * vectors, vectors, 0.01), f64(0.0))
        torch.testing.assert_close(neighbour_kl(vectors, scale * vectors, 0.01), f64(0.0))
    assert neighbour_kl(vectors[:1], codes[:1], 0.1) == 0
    empty = torch.zeros(5, 7, requires_grad=True)
    neighbour_kl(vectors.float(), empty, 0.01).backward()
    assert empty.grad.isfinite().all()


def test_clamp_bounds_the_value_and_keeps_the_gradient():
    value = torch.tensor([-3.0, 0.7, 400.0], requires_grad=True)
    clamped = clamp_with_gradient(value, 0.5, 100.0)
    torch.testing.assert_close(clamped, torch.tensor([0.5, 0.7, 100.0]))
    (gradient,) = torch.autograd.grad((2 * clamped).sum(), value)
    assert gradient.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("log_gate", [(-87.0, 0.0), (0.0, -87.0)])
def test_log_ratio_is_finite_with_finite_gradients_at_closed_and_open_gates(log_gate):
    z = torch.tensor([0.0, 1e-3, 3.0, 1e4], requires_grad=True)
    mean, std = torch.tensor(1e4, requires_grad=True), torch.tensor(1e-3, requires_grad=True)
    ratio = spike_slab_log_ratio(z, *map(torch.tensor, log_gate), mean, std, SPIKE)
    assert ratio.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(ratio.sum(), (z, mean, std)))


ENDS = [(0.01, 0.01), (0.01, 1e4), (1e4, 0.01), (1e4, 1e4), (0.02, 5.0), (0.5, 100.0), (1e-3, 1e3)]


@pytest.mark.parametrize("concentrations", ENDS)
def test_beta_draws_are_right_where_the_configuration_ends(concentrations):
    a, b = (torch.full((100_000,), value, requires_grad=True) for value in concentrations)
    logs = sample_beta(a, b)
    assert all(log.isfinite().all() and (log <= 0).all() for log in logs)
    for loss in (sum(log.sum() for log in logs), sum(log.exp().sum() for log in logs)):
        for gradient in torch.autograd.grad(loss, (a, b), retain_graph=True):
            assert gradient.isfinite().all()
    reference = Beta(*map(f64, concentrations))
    error = 5 * reference.stddev / 100_000**0.5 + 1e-3 * reference.mean
    assert abs(logs[0].exp().double().mean() - reference.mean) < error


@pytest.mark.parametrize("sharpness", [5.0, 200.0])
def test_the_mean_slope_of_a_relaxed_gate_is_that_over_its_noise(sharpness):
    points = 400_000
    uniform = ((torch.arange(points) + 0.5) / points).to(torch.float64)
    for probability in (0.001, 0.03, 0.5, 0.97, 0.999):
        active = torch.full((points,), probability, dtype=torch.float64, requires_grad=True)
        exact = relaxed_gate(active, uniform, sharpness, mean_slope=False)
        (slopes,) = torch.autograd.grad(exact.sum(), active)
        smooth = relaxed_gate(active, uniform, sharpness, mean_slope=True)
        (means,) = torch.autograd.grad(smooth.sum(), active)
        assert torch.equal(exact, smooth)
        torch.testing.assert_close(means, slopes.mean().expand_as(means), rtol=1e-5, atol=0)
    middle = torch.full((points,), 0.5, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(relaxed_gate(middle, uniform, 200.0, mean_slope=False).sum(), middle)
    assert (slopes**2).mean() == pytest.approx(200 / 6, rel=1e-4)
    assert (slopes > 0.1).double().mean() < 0.1  # the others tell nothing
