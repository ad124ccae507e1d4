"""Beta, binary Concrete, spike-and-slab and their divergences: pure functions, everything in log space.

Shapes: every argument broadcasts to `(batch, latent_size)`, and so does every result; nothing is summed here.
`log_gamma` is the log of the spike probability gamma, `log_slab` the log of `1 - gamma`.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Dirichlet
from torch.nn import functional as F

_TINY = torch.finfo(torch.float32).tiny  # smallest normal number: its log is finite, about -87


def clamp_with_gradient(value: Tensor, low: float, high: float) -> Tensor:
    """Clamp `value` to `[low, high]` in the forward pass and leave its gradient as it is in the backward pass."""
    return value + (value.clamp(low, high) - value).detach()


def sample_beta(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Draw `gamma ~ Beta(alpha, beta)` with implicit reparameterisation gradients.

    A Beta is a two-component Dirichlet; drawing that gives `1 - gamma` without cancellation where gamma is near 1.

    Returns:
        `log(gamma)` and `log(1 - gamma)`, both finite.
    """
    pair = Dirichlet(torch.stack([alpha, beta], dim=-1), validate_args=False).rsample().clamp_min(_TINY)
    log_gamma, log_slab = pair.log().unbind(-1)
    return log_gamma, log_slab


def sample_binary_concrete(logits: Tensor, temperature: float) -> Tensor:
    """Draw a Bernoulli with the given logits; its gradient is that of the binary Concrete (straight-through).

    Returns:
        Exactly 0 or 1 in the forward pass.
    """
    uniform = torch.rand_like(logits).clamp(1e-7, 1 - 1e-7)
    soft = torch.sigmoid((logits + torch.logit(uniform)) / temperature)
    hard = (soft > 0.5).to(soft.dtype)
    return hard + (soft - soft.detach())


def normal_log_prob(value: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """Log density of `N(mean, std^2)` at `value`."""
    log_std = std.log() if isinstance(std, Tensor) else math.log(std)
    return -0.5 * ((value - mean) / std) ** 2 - log_std - 0.5 * math.log(2 * math.pi)


def spike_slab_log_prob(
    z: Tensor, log_gamma: Tensor, log_slab: Tensor, mean: Tensor | float, std: Tensor | float, spike_std: float
) -> Tensor:
    """Log density of `(1 - gamma) N(mean, std^2) + gamma N(0, spike_std^2)` at `z`."""
    return torch.logaddexp(log_slab + normal_log_prob(z, mean, std), log_gamma + normal_log_prob(z, 0.0, spike_std))


def spike_slab_log_ratio(
    z: Tensor, log_gamma: Tensor, log_slab: Tensor, mean: Tensor, std: Tensor, spike_std: float
) -> Tensor:
    """`log q(z|gamma, x) - log p(z|gamma)`: its mean under q is KL_z given gamma (the `mc` estimator at a draw z)."""
    posterior = spike_slab_log_prob(z, log_gamma, log_slab, mean, std, spike_std)
    return posterior - spike_slab_log_prob(z, log_gamma, log_slab, 0.0, 1.0, spike_std)


def spike_slab_kl_rao_blackwell(
    log_gamma: Tensor, log_slab: Tensor, mean: Tensor, std: Tensor, spike_std: float
) -> Tensor:
    """Unbiased estimate of `KL(q(z|gamma, x) || p(z|gamma))`, summed exactly over the spike/slab indicator.

    `gamma f(spike_std eps_1) + (1 - gamma) f(mean + std eps_2)`, f the log ratio.
    """
    spike = spike_std * torch.randn_like(mean)
    slab = mean + std * torch.randn_like(mean)
    at_spike = spike_slab_log_ratio(spike, log_gamma, log_slab, mean, std, spike_std)
    at_slab = spike_slab_log_ratio(slab, log_gamma, log_slab, mean, std, spike_std)
    return log_gamma.exp() * at_spike + log_slab.exp() * at_slab


def normal_kl(mean: Tensor, std: Tensor) -> Tensor:
    """`KL(N(mean, std^2) || N(0, 1))`."""
    return 0.5 * (mean**2 + std**2 - 1) - std.log()


def beta_kl(alpha: Tensor, beta: Tensor, prior_alpha: float, prior_beta: float) -> Tensor:
    """`KL(Beta(alpha, beta) || Beta(prior_alpha, prior_beta))` in closed form."""
    log_prior_norm = math.lgamma(prior_alpha) + math.lgamma(prior_beta) - math.lgamma(prior_alpha + prior_beta)
    total = alpha + beta
    log_norm = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(total)
    return (
        log_prior_norm
        - log_norm
        + (alpha - prior_alpha) * torch.digamma(alpha)
        + (beta - prior_beta) * torch.digamma(beta)
        + (prior_alpha + prior_beta - total) * torch.digamma(total)
    )


def logit_of_mean(alpha: Tensor, beta: Tensor) -> Tensor:
    """Logit of `E[gamma] = alpha / (alpha + beta)`."""
    return alpha.log() - beta.log()


def softplus(value: Tensor) -> Tensor:
    """`log(1 + exp(value))`, kept above the smallest normal number so that its log is finite."""
    return F.softplus(value).clamp_min(_TINY)
