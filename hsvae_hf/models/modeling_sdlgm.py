"""SDLGM (Xu et al.): at most L_0 non-zeros, their number chosen per sentence. A reconstruction from the abstract."""

import math

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from .configuration_text_vae import TextVAEConfig, between, positive
from .distributions import choice_entropies, gumbel_like, normal_kl, select_dimensions, softplus
from .modeling_classification import TextVAEForSequenceClassification
from .modeling_latent import Float32Linear, LatentHead
from .modeling_text_vae import TextVAEForPreTraining, TextVAEModel
from .outputs import SDLGMModelOutput


@strict
class SDLGMConfig(TextVAEConfig):
    """Configuration of the sparse deep latent Gaussian model.

    Args:
        sparsity_cap: L_0, the most non-zeros of a code, in draws too; at most `latent_size`.
        count_temperature: tau_1, of the Gumbel-Softmax over the number of non-zeros (0.01 to 100).
        selection_temperature: tau_2, of the Gumbel-Softmax over dimensions (0.01 to 100).
        slab_std_min: lower bound of a selected dimension's standard deviation (0.000001 to 10).
    """

    model_type = "sdlgm"

    sparsity_cap: int = positive(default=16)
    count_temperature: float | int = between(0.01, 100)(default=0.5)
    selection_temperature: float | int = between(0.01, 100)(default=0.5)
    slab_std_min: float | int = between(1e-6, 10)(default=1e-3)

    def validate_sdlgm(self) -> None:
        """A cap that the code can hold."""
        if self.sparsity_cap > self.latent_size:
            self.refuse("sparsity_cap", f"at most `latent_size` ({self.latent_size})", "lower it")


class SDLGMHead(LatentHead[SDLGMModelOutput]):
    """How many dimensions, which, and their values, in this order.

    The full text of Xu et al. was not at hand; this is a reconstruction from its abstract, in these equations.
    Prior: L uniform on 1..L_0; S, L distinct dimensions drawn evenly without replacement; `w ~ N(0, I)`;
    `z = mask(S) w`. Posterior: `q(L|x) = softmax f_L(h)`; `q(S|L, x)` Plackett-Luce with logits `f_S(h)`;
    `w ~ N(mu(h), sigma(h)^2)`. Draws by two straight-through Gumbel-Softmax steps (`select_dimensions`).
    The KL of the selection is exact in expectation over the drawn order; its gradient leaves out how the order's
    probability changes (the score-function part).
    """

    independent_gates = False

    def __init__(self, config: SDLGMConfig) -> None:
        super().__init__()
        self.config = config
        self.count = Float32Linear(config.feature_size, config.sparsity_cap)
        self.selection = Float32Linear(config.feature_size, config.latent_size)
        self.slab = Float32Linear(config.feature_size, 2 * config.latent_size)

    def forward(self, features: Tensor) -> SDLGMModelOutput:
        """Posterior of `features`, `(batch, feature_size)`; the code has the most probable count and dimensions."""
        count_logits, selection_logits = self.count(features), self.selection(features)
        mean, raw = self.slab(features).chunk(2, dim=-1)
        count, selection = self.config.count_temperature, self.config.selection_temperature
        mask = select_dimensions(count_logits, selection_logits, count, selection)
        return SDLGMModelOutput(
            latent=mask * mean,
            features=features,
            count_logits=count_logits,
            selection_logits=selection_logits,
            slab_mean=mean,
            slab_std=softplus(raw) + self.config.slab_std_min,
        )

    def sample(self, posterior: SDLGMModelOutput) -> dict[str, Tensor]:
        """Draw count, dimensions and values; `chosen`, `(batch, sparsity_cap)`, are the dimensions in order."""
        count = posterior.count_logits + gumbel_like(posterior.count_logits)
        selection = posterior.selection_logits + gumbel_like(posterior.selection_logits)
        mask = select_dimensions(count, selection, self.config.count_temperature, self.config.selection_temperature)
        values = posterior.slab_mean + posterior.slab_std * torch.randn_like(posterior.slab_mean)
        chosen = selection.detach().topk(self.config.sparsity_cap, dim=-1).indices
        return {"z": mask * values, "mask": mask, "chosen": chosen}

    def costs(self, posterior: SDLGMModelOutput, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        """`KL(q(S, L) || p(S, L))` and `sum_i mask_i KL(N(mu_i, sigma_i^2) || N(0, 1))`.

        The first is `KL(q(L) || rho) + sum_k q(L >= k) [log(D - k + 1) - H(Cat_k)]`, `Cat_k` the k-th dimension's
        distribution given those chosen before it: `(batch, 1 + sparsity_cap)`.
        """
        log_count = posterior.count_logits.log_softmax(-1)
        count = log_count.exp()
        count_kl = (count * log_count).sum(-1, keepdim=True) + math.log(self.config.sparsity_cap)
        at_least = count.flip(-1).cumsum(-1).flip(-1)  # (batch, sparsity_cap): q(L >= k)
        steps = torch.arange(self.config.sparsity_cap, device=count.device)
        entropy = choice_entropies(posterior.selection_logits, sample["chosen"])
        gamma_kl = torch.cat([count_kl, at_least * ((self.config.latent_size - steps).log() - entropy)], dim=-1)
        return {"z_kl": sample["mask"] * normal_kl(posterior.slab_mean, posterior.slab_std), "gamma_kl": gamma_kl}

    def diagnostics(self, posterior: SDLGMModelOutput) -> dict[str, Tensor]:
        """The code, its values before the mask, and the mask as a probability of being off, 0 or 1."""
        off = (posterior.latent == 0).to(posterior.latent.dtype)
        return {"posterior_mean": posterior.latent, "slab_mean": posterior.slab_mean, "spike_probability": off}

    def sample_prior(self, num_samples: int) -> Tensor:
        """Draws of the prior, with exact zeros."""
        cap, size = self.config.sparsity_cap, self.config.latent_size
        order = torch.rand(num_samples, size).argsort(-1).argsort(-1)
        on = order < torch.randint(1, cap + 1, (num_samples, 1))
        return torch.where(on, torch.randn(num_samples, size), 0.0)


class SDLGMModel(TextVAEModel):
    """Encoder and SDLGM's posterior."""

    config: SDLGMConfig
    latent_head_class = SDLGMHead


class SDLGMForPreTraining(TextVAEForPreTraining):
    """SDLGM with its decoder."""

    config: SDLGMConfig
    model_class = SDLGMModel


class SDLGMForSequenceClassification(TextVAEForSequenceClassification):
    """Classifier on samples of the sparse code."""

    config: SDLGMConfig
    model_class = SDLGMModel
