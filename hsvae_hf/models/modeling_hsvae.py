"""HSVAE (Prokhorov et al. 2021): a Beta-distributed gate per latent dimension decides spike (off) or slab (on)."""

import math

import torch
from torch import Tensor
from transformers import initialization as init

from .configuration_hsvae import HSVAEConfig
from .distributions import (
    bernoulli_kl,
    beta_kl,
    clamp_with_gradient,
    logit_of_mean,
    normal_kl,
    sample_beta,
    sample_binary_concrete,
    softplus,
    spike_slab_kl_rao_blackwell,
    spike_slab_log_ratio,
)
from .modeling_classification import TextVAEForSequenceClassification
from .modeling_latent import Float32Linear, LatentHead
from .modeling_text_vae import TextVAEForPreTraining, TextVAEModel
from .outputs import HSVAEModelOutput
from .processes import mean_over_processes


class GateLinear(Float32Linear):
    """Parameters of the gates' posterior before softplus: alpha of all dimensions, then beta."""

    def __init__(self, feature_size: int, latent_size: int, start: float, low: float) -> None:
        """Begin with `E[1 - gamma|x]` around `start`, at most a half, and both parameters at least `low`."""
        super().__init__(feature_size, 2 * latent_size)
        self.start, self.low = start, low

    def init_parameters(self) -> None:
        """Set the bias, 0 for half open gates."""
        total = max(2 * math.log(2), self.low / self.start)
        both = torch.tensor([1 - self.start, self.start], dtype=torch.float64) * total
        inverse = both + (-(-both).expm1()).log()  # of softplus
        init.copy_(self.bias, inverse.repeat_interleave(len(self.bias) // 2))


class HSVAEHead(LatentHead[HSVAEModelOutput]):
    """Gate and slab of the hierarchical spike-and-slab posterior (paper, section 3).

    `q(gamma|x) = Beta(a(h), b(h))`, `q(z|gamma, x) = (1 - gamma) N(mu, sigma^2) + gamma N(0, spike_std^2)`;
    prior `gamma ~ Beta(prior_alpha, prior_beta)`, `p(z|gamma) = (1 - gamma) N(0, 1) + gamma N(0, spike_std^2)`.

    Where paper and released code differ: the paper's slab network reads gamma, the released one does not
    (`condition_slab_on_gate`); the paper lets the spike's width go to 0, the code keeps 0.05 (`spike_std`); the code
    adds 1e-5 to a and b in training only and diverges to NaN, here a and b stay inside
    `[gate_concentration_min, gate_concentration_max]` and their gradients pass the bounds.

    KL_z by `kl_estimator`, each with one draw of gamma:
    `mc`: the log ratio at the drawn z, as released (its gradient is biased by the straight-through step);
    `rao_blackwell`: the same mixture KL, unbiased, the indicator summed out;
    `closed_form`: `(1 - gamma) KL(N(mu, sigma^2) || N(0, 1))`, the KL of the pair (z, indicator), an upper bound of
    the mixture KL, with `b / (a + b)` for `1 - gamma` where the slab does not read gamma;
    `collapsed`: the objective of `closed_form` with gamma integrated out of the draw of z as well: no Beta draw.

    Beyond the paper: KL_gamma averaged over sentences is `I(x; gamma) + KL(q(gamma) || p(gamma))`, so it also costs
    what a gate tells of its sentence, and training may end with the same dimensions on for all. With
    `gate_balance_weight` w the objective has `w sum_i KL(Bern(mean_x (1 - E[gamma_i|x])) || Bern(share))` besides: the
    aggregate is held, not the sentence, so a small `gamma_kl_weight` is enough and the choice is free to follow x.

    With `nonnegative_codes` mu goes through a softplus. The slab stays Gaussian around it and so does the prior: a draw
    in training may be negative, a code never is.
    """

    penalty_field = "gate_balance_weight"

    def __init__(self, config: HSVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.target_active_dims = self.wanted_active_dims = config.wanted_active_dims
        self.needs_even_batches = bool(config.gate_balance_weight)
        slab_inputs = config.feature_size + (config.latent_size if config.condition_slab_on_gate else 0)
        # Half open, a wide code begins with values that a sparse one has no use for; as closed as they are to end, more
        # dimensions never learn.
        start = min(0.5, 4 * self._share()) if self.needs_even_batches else 0.5
        self.gate = GateLinear(config.feature_size, config.latent_size, start, config.gate_concentration_min)
        self.slab = Float32Linear(slab_inputs, 2 * config.latent_size)

    def forward(self, features: Tensor) -> HSVAEModelOutput:
        """Posterior parameters; a slab that reads gamma is taken at `E[gamma|x]`.

        Args:
            features: `(batch, feature_size)`.

        Returns:
            The parameters; a dimension is on where `E[gamma|x] < active_threshold`.
        """
        low, high = self.config.gate_concentration_min, self.config.gate_concentration_max
        alpha, beta = clamp_with_gradient(softplus(self.gate(features)), low, high).chunk(2, dim=-1)
        gate_mean = alpha / (alpha + beta)
        slab_mean, slab_std = self._slab(features, gate_mean)
        off = gate_mean >= self.config.active_threshold  # not of NaN, which must show
        return HSVAEModelOutput(
            latent=torch.where(off, 0.0, slab_mean),  # what is on, at its slab's mean
            features=features,
            gate_mean=gate_mean,
            slab_mean=slab_mean,
            slab_std=slab_std,
            gate_alpha=alpha,
            gate_beta=beta,
        )

    def mean(self, posterior: HSVAEModelOutput) -> Tensor:
        """`E[z|x] = (1 - E[gamma|x]) mu`, `(batch, latent_size)`."""
        return (1 - posterior.gate_mean) * posterior.slab_mean

    def values(self, posterior: HSVAEModelOutput) -> Tensor:
        """The slab's mean, `(batch, latent_size)`."""
        return posterior.slab_mean

    def sample(self, posterior: HSVAEModelOutput) -> dict[str, Tensor]:
        """Draw gamma, the spike/slab indicator and z, each `(batch, latent_size)`."""
        mean, std = posterior.slab_mean, posterior.slab_std
        sample: dict[str, Tensor] = {}
        if self.config.kl_estimator == "collapsed":
            logits = logit_of_mean(posterior.gate_alpha, posterior.gate_beta)
        else:
            log_gamma, log_slab = sample_beta(posterior.gate_alpha, posterior.gate_beta)
            if self.config.condition_slab_on_gate:
                mean, std = self._slab(posterior.features, log_gamma.exp())
            logits = log_gamma - log_slab
            sample |= {"log_gamma": log_gamma, "log_slab": log_slab}
        spike = sample_binary_concrete(logits, self.config.concrete_temperature)
        on = 1 - spike
        z = on * mean + (self.config.spike_std * spike + on * std) * torch.randn_like(mean)
        return sample | {"z": z, "slab_mean": mean, "slab_std": std}

    def costs(self, posterior: HSVAEModelOutput, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        """KL_z by the configured estimator and KL_gamma in closed form, `(batch or gamma_kl_rows, latent_size)`."""
        estimator, spike_std = self.config.kl_estimator, self.config.spike_std
        mean, std = sample["slab_mean"], sample["slab_std"]
        alpha, beta = posterior.gate_alpha, posterior.gate_beta
        if estimator in ("closed_form", "collapsed"):
            slab = sample["log_slab"].exp() if self.config.condition_slab_on_gate else beta / (alpha + beta)
            z_kl = slab * normal_kl(mean, std)
        else:
            gate = sample["log_gamma"], sample["log_slab"]
            if estimator == "mc":
                z_kl = spike_slab_log_ratio(sample["z"], *gate, mean, std, spike_std)
            else:
                z_kl = spike_slab_kl_rao_blackwell(*gate, mean, std, spike_std)
        rows = self.config.gamma_kl_rows if self.training else None
        gamma_kl = beta_kl(alpha[:rows], beta[:rows], self.config.prior_alpha, self.config.prior_beta)
        costs = {"z_kl": z_kl, "gamma_kl": gamma_kl}
        if self.config.gate_balance_weight:
            costs["penalty"] = self._imbalance(posterior.gate_mean)
        return costs

    def _imbalance(self, gate_mean: Tensor) -> Tensor:
        """How far the shares of the batch that dimensions are on for are from the wanted one."""
        on = (1 - gate_mean).mean(0)
        log_on = (mean_over_processes(on) if self.training else on).clamp(1e-6, 1 - 1e-6).log()
        return bernoulli_kl(log_on, log_on.new_tensor(math.log(self._share()))).sum()

    def _share(self) -> float:
        """The share of sentences that a balanced dimension is to be on for."""
        if self.target_active_dims is not None:
            return float(self.target_active_dims / self.config.latent_size)
        return float(self.config.prior_beta / (self.config.prior_alpha + self.config.prior_beta))

    def diagnostics(self, posterior: HSVAEModelOutput) -> dict[str, Tensor]:
        """`E[z|x]`, slab mean and `E[gamma|x]`."""
        return {
            "posterior_mean": self.mean(posterior),
            "slab_mean": posterior.slab_mean,
            "spike_probability": posterior.gate_mean,
        }

    def sample_prior(self, num_samples: int) -> Tensor:
        """Draw the indicator, whose probability is the mean of gamma's prior, then z from spike or slab."""
        shape = (num_samples, self.config.latent_size)
        spike = self.config.prior_alpha / (self.config.prior_alpha + self.config.prior_beta)
        noise = torch.randn(shape)
        return torch.where(torch.rand(shape) < spike, self.config.spike_std * noise, noise)

    def _slab(self, features: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        inputs = torch.cat([features, gamma], dim=-1) if self.config.condition_slab_on_gate else features
        mean, raw = self.slab(inputs).chunk(2, dim=-1)
        if self.config.nonnegative_codes:
            mean = softplus(mean)
        return mean, softplus(raw) + self.config.slab_std_min


class HSVAEModel(TextVAEModel):
    """Encoder and HSVAE head: what people push and embed with."""

    config: HSVAEConfig
    latent_head_class = HSVAEHead


class HSVAEForPreTraining(TextVAEForPreTraining):
    """HSVAE with its decoder: the objective of the paper (equation 3), generation, interpolation."""

    config: HSVAEConfig
    model_class = HSVAEModel


class HSVAEForSequenceClassification(TextVAEForSequenceClassification):
    """Classifier on samples of HSVAE's code (paper, section 4.2)."""

    config: HSVAEConfig
    model_class = HSVAEModel
