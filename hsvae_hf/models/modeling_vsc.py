"""Variational sparse coding (Tonolini et al. 2019): spike-and-slab posterior, prior at learned pseudo-inputs."""

import math
from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_text_vae import TextVAEConfig, between, inside, nonnegative, positive, validated
from .distributions import bernoulli_kl, clamp_with_gradient, normal_kl_to, relaxed_gate, softplus
from .modeling_classification import TextVAEForSequenceClassification
from .modeling_latent import Float32Linear, LatentHead
from .modeling_text_vae import TextVAEForPreTraining, TextVAEModel
from .outputs import VSCModelOutput
from .processes import mean_over_processes

MOST_ACTIVE_DIMS = 48  # that the prior keeps on where nothing else is asked for


@strict
class VSCConfig(TextVAEConfig):
    """Configuration of variational sparse coding; the aggregate's KL is in the penalty, J is in it.

    The defaults are for words. Where they differ from the source (Tonolini et al. 2019), see `VSCHead`; its own
    settings are `gate_gradient="pathwise"`, `gate_balance_weight=0`, `penalty_warmup_fraction=0`, `anneal_fraction`
    above 0 and `prior_activity=0.01`.

    Args:
        prior_activity: alpha, the share of dimensions that the prior keeps on, in (0, 1); None is a fifth of them, at
            most 48.
        num_pseudo_inputs: number of learned pseudo-inputs, features as the encoder's, to choose from.
        selector_sharpness: factor on the selector's logits before its softmax (0.001 to 10,000).
        gate_gradient: of the relaxed gate: its own in every draw (`"pathwise"`, the source's), or the mean of that
            over the draw's noise (`"mean"`).
        gate_balance_weight: of the balance over sentences beside J's term in the penalty, 0 for none (>= 0): every
            dimension is to be on for the share `prior_activity` of the batch.
        penalty_warmup_fraction: share of training in which the penalty rises from 0 to its weight, in [0, 1].
        gate_sharpness: c of the relaxed gate at the end of its annealing, and in evaluation (0.001 to 10,000).
        gate_sharpness_start: c at the start of training (0.001 to 10,000).
        anneal_fraction: share of training in which c goes from its start to its end and the slab from a standard
            Gaussian to its own, in [0, 1]; 0 has both as they end from the first step on.
        slab_std_start: the slab's standard deviation in a new model, before `slab_std_min` is added (0.001 to 10).
        slab_std_min: lower bound of the slab's standard deviation (0.000001 to 10).
        active_threshold: a dimension is on in the code where its probability of being off is below it, in (0, 1).
            Training ends by setting it: where gates are balanced, so that codes have as many non-zeros as the prior
            wants.
    """

    model_type = "vsc"
    default_feature_std = 0.3

    penalty_weight: float | int = nonnegative(default=0.1)
    prior_activity: float | int | None = validated(
        lambda value: value is None or 0 < value < 1, "inside (0, 1)", "leave it out"
    )(default=None)
    num_pseudo_inputs: int = positive(default=16)
    selector_sharpness: float | int = between(1e-3, 1e4)(default=10.0)
    gate_gradient: Literal["mean", "pathwise"] = "mean"
    gate_balance_weight: float | int = nonnegative(default=1.0)
    penalty_warmup_fraction: float | int = between(0, 1)(default=0.5)
    gate_sharpness: float | int = between(1e-3, 1e4)(default=200.0)
    gate_sharpness_start: float | int = between(1e-3, 1e4)(default=50.0)
    anneal_fraction: float | int = between(0, 1)(default=0.0)
    slab_std_start: float | int = between(1e-3, 10)(default=0.125)
    slab_std_min: float | int = between(1e-6, 10)(default=1e-3)
    active_threshold: float | int = inside(0, 1, "leave it out")(default=0.5)

    @property
    def prior_share(self) -> float:
        """alpha: `prior_activity`, or what stands for None."""
        if self.prior_activity is not None:
            return float(self.prior_activity)
        return min(0.2, MOST_ACTIVE_DIMS / self.latent_size)


class PosteriorLinear(Float32Linear):
    """Parameters of the posterior before their bounds: gates, slab means, slab deviations."""

    def __init__(self, feature_size: int, latent_size: int, slab_std: float) -> None:
        """Begin with slabs of standard deviation `slab_std`."""
        super().__init__(feature_size, 3 * latent_size)
        self.slab_std = slab_std

    def init_parameters(self) -> None:
        """Set the bias, 0 but for the slab's deviation."""
        raw_std = self.slab_std + math.log(-math.expm1(-self.slab_std))  # inverse of softplus
        others, size = 2 * len(self.bias) // 3, len(self.bias) // 3
        init.copy_(self.bias, torch.tensor([0.0] * others + [raw_std] * size))


class VSCHead(LatentHead[VSCModelOutput]):
    """`q(z|x) = prod_i g_i N(mu_i, sigma_i^2) + (1 - g_i) delta_0`, `log g = -ReLU(-v(h))` (Tonolini et al. 2019).

    g is the probability of being ON, the opposite of HSVAE's gamma. The gate is relaxed in the draw,
    `z = sigmoid(c (eta - 1 + g)) (mu + sigma eps)`, eta uniform. The prior is `q(z|u*)`, u* a soft choice among learned
    pseudo-inputs made by a selector from h; mixing is done on encoded pseudo-inputs. Beyond the paper: g stays
    below 0.999, since the KL's gradient grows as `1 / (1 - g)`, and the ReLU passes its gradient, so that a gate that
    is fully on can close again; the warm-up `(lambda mu, lambda log sigma^2)` is in the draw and in the KL alike.

    Words need more, as a decoder of words does without the code as long as that is mostly noise, and closed gates
    hardly learn:

    - The gate's gradient is the mean over eta (`gate_gradient`; see `relaxed_gate`). At c = 200 that of a single draw
      is 0 for nearly all dimensions of a sentence.
    - No warm-up from a slab `N(0, 1)`, in which only the pattern of gates tells of x (`anneal_fraction` 0), and slabs
      that begin narrow (`slab_std_start`).
    - The penalty rises from 0 (`penalty_warmup_fraction`): gates begin open, so values learn first.
    - A balance over sentences, as of HSVAE: `sum_i KL(Bern(mean_x g_i) || Bern(alpha))` (`gate_balance_weight`). J's
      term holds the mean over dimensions at the pseudo-inputs, which a few that are on for all sentences satisfy.
    """

    def __init__(self, config: VSCConfig) -> None:
        super().__init__()
        self.config = config
        self.needs_even_batches = config.gate_balance_weight > 0
        if config.gate_balance_weight > 0 and config.penalty_weight > 0:
            most = config.max_active_dims
            wanted = config.latent_size * config.prior_share
            self.wanted_active_dims = wanted if most is None else min(wanted, most / 2)
        self.progress = 1.0  # of the annealing, where training tells; evaluation is always at 1
        self.penalty_scale = 1.0  # likewise
        self.posterior = PosteriorLinear(config.feature_size, config.latent_size, config.slab_std_start)
        self.selector = Float32Linear(config.feature_size, config.num_pseudo_inputs)
        self.pseudo_inputs = nn.Parameter(torch.empty(config.num_pseudo_inputs, config.feature_size))

    def init_parameters(self) -> None:
        """Set pseudo-inputs that differ, about as large as the features that they stand for."""
        init.normal_(self.pseudo_inputs, std=self.config.feature_std or 0.3)

    def anneal(self, progress: float) -> None:
        """Set the gate's sharpness, the slab's warm-up and the penalty's."""
        self.progress = self._share_done(progress, self.config.anneal_fraction)
        self.penalty_scale = self._share_done(progress, self.config.penalty_warmup_fraction)

    def forward(self, features: Tensor) -> VSCModelOutput:
        """Posterior of `features`, `(batch, feature_size)`; a dimension is on where `1 - g < active_threshold`."""
        log_active, mean, std = self._posterior(features)
        on = 1 - log_active.exp() < self.config.active_threshold
        return VSCModelOutput(
            latent=torch.where(on, mean, 0.0),
            features=features,
            log_active=log_active,
            slab_mean=mean,
            slab_std=std,
        )

    def mean(self, posterior: VSCModelOutput) -> Tensor:
        """`E[z|x] = g mu`, `(batch, latent_size)`."""
        return posterior.log_active.exp() * posterior.slab_mean

    def values(self, posterior: VSCModelOutput) -> Tensor:
        """The slab's mean, `(batch, latent_size)`."""
        return posterior.slab_mean

    def sample(self, posterior: VSCModelOutput) -> dict[str, Tensor]:
        """A draw with the relaxed gate, `(batch, latent_size)`."""
        start, end = self.config.gate_sharpness_start, self.config.gate_sharpness
        sharpness = start + (end - start) * self._warmth()
        uniform, mean_slope = torch.rand_like(posterior.slab_mean), self.config.gate_gradient == "mean"
        gate = relaxed_gate(posterior.log_active.exp(), uniform, sharpness, mean_slope)
        mean, std = self._warm(posterior.slab_mean, posterior.slab_std)
        return {"z": gate * (mean + std * torch.randn_like(mean))}

    def costs(self, posterior: VSCModelOutput, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both halves of `KL(q(z|x) || q(z|u*))` in closed form; J's term and the balance over sentences."""
        choice = (self.config.selector_sharpness * self.selector(posterior.features)).softmax(-1)
        log_prior, prior_mean, prior_std = self._posterior(choice @ self._pseudo_features().to(choice.dtype))
        mean, std = self._warm(posterior.slab_mean, posterior.slab_std)
        slab = normal_kl_to(mean, std, *self._warm(prior_mean, prior_std))  # (batch, latent_size)
        log_share = log_prior.exp().mean(-1).log()  # (batch,)
        target = log_share.new_tensor(math.log(self.config.prior_share))
        penalty = self.config.latent_size * bernoulli_kl(log_share, target).mean()
        if self.config.gate_balance_weight > 0:
            penalty = penalty + self.config.gate_balance_weight * self._imbalance(posterior.log_active, target)
        return {
            "z_kl": posterior.log_active.exp() * slab,
            "gamma_kl": bernoulli_kl(posterior.log_active, log_prior),
            "penalty": penalty * (self.penalty_scale if self.training else 1.0),
        }

    def _imbalance(self, log_active: Tensor, target: Tensor) -> Tensor:
        """How far the shares of the batch that dimensions are on for are from `exp(target)`."""
        on = log_active.exp().mean(0)
        on = mean_over_processes(on) if self.training else on
        return bernoulli_kl(on.clamp(1e-6, 1 - 1e-6).log(), target).sum()

    def diagnostics(self, posterior: VSCModelOutput) -> dict[str, Tensor]:
        """`E[z|x]`, slab mean and the probability of being off."""
        return {
            "posterior_mean": self.mean(posterior),
            "slab_mean": posterior.slab_mean,
            "spike_probability": -torch.expm1(posterior.log_active),
        }

    def sample_prior(self, num_samples: int) -> Tensor:
        """Draws at pseudo-inputs chosen evenly, with exact zeros."""
        features = self._pseudo_features()
        log_active, mean, std = self._posterior(features[torch.randint(len(features), (num_samples,))])
        on = torch.rand_like(mean) < log_active.exp()
        return torch.where(on, mean + std * torch.randn_like(mean), 0.0)

    def _posterior(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raw_gate, mean, raw_std = self.posterior(features).chunk(3, dim=-1)
        return clamp_with_gradient(raw_gate, -15.0, -1e-3), mean, softplus(raw_std) + self.config.slab_std_min

    def _pseudo_features(self) -> Tensor:
        if self.pseudo_inputs.is_meta:
            raise ValueError(
                "`device_map` must keep the latent head in memory, got one that offloads it, whose pseudo-inputs are "
                "read outside its `forward`; give more `max_memory`, or `device_map={'': 'cpu'}`."
            )
        return self.pseudo_inputs.to(self.posterior.weight.dtype)

    @staticmethod
    def _share_done(progress: float, fraction: float) -> float:
        return min(1.0, progress / fraction) if fraction else 1.0

    def _warmth(self) -> float:
        return self.progress if self.training else 1.0

    def _warm(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        warmth = self._warmth()
        return warmth * mean, std**warmth


class VSCModel(TextVAEModel):
    """Encoder and spike-and-slab posterior."""

    config: VSCConfig
    latent_head_class = VSCHead


class VSCForPreTraining(TextVAEForPreTraining):
    """Variational sparse coding with its decoder."""

    config: VSCConfig
    model_class = VSCModel


class VSCForSequenceClassification(TextVAEForSequenceClassification):
    """Classifier on samples of the sparse code."""

    config: VSCConfig
    model_class = VSCModel
