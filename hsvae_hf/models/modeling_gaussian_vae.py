"""The paper's VAE: a Gaussian posterior per latent dimension, with optional L1 or L2 penalties (VAE_L1, VAE_L2)."""

from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from .configuration_text_vae import TextVAEConfig, between
from .distributions import normal_kl, softplus
from .modeling_classification import TextVAEForSequenceClassification
from .modeling_latent import Float32Linear, LatentHead
from .modeling_text_vae import TextVAEForPreTraining, TextVAEModel
from .outputs import GaussianModelOutput


@strict
class GaussianPosteriorConfig(TextVAEConfig):
    """What models with a Gaussian posterior share.

    Args:
        std_min: lower bound of the posterior's standard deviation (0.000001 to 10).
    """

    std_min: float | int = between(1e-6, 10)(default=1e-3)


class GaussianPosterior(LatentHead[GaussianModelOutput]):
    """`q(z|x) = N(mu(h), sigma(h)^2)`; a subclass says what it costs."""

    def __init__(self, config: GaussianPosteriorConfig) -> None:
        super().__init__()
        self.config = config
        self.posterior = Float32Linear(config.feature_size, 2 * config.latent_size)

    def forward(self, features: Tensor) -> GaussianModelOutput:
        """The posterior of `features`, `(batch, feature_size)`; its code is `mu`, dense."""
        mean, raw = self.posterior(features).chunk(2, dim=-1)
        std = softplus(raw) + self.config.std_min
        return GaussianModelOutput(latent=mean, features=features, mean=mean, std=std)

    def sample(self, posterior: GaussianModelOutput) -> dict[str, Tensor]:
        """`z = mu + sigma eps`."""
        return {"z": posterior.mean + posterior.std * torch.randn_like(posterior.mean)}


@strict
class GaussianVAEConfig(GaussianPosteriorConfig):
    """Configuration of the VAE, and of VAE_L1 and VAE_L2 with `penalty_norm` 1 and 2 weighted by `penalty_weight`.

    Args:
        penalty_norm: p of the penalty `|mu|_p^p + |sigma|_p^p`; 0 for none.
    """

    model_type = "gaussian-vae"

    penalty_norm: Literal[0, 1, 2] = 0


class GaussianVAEHead(GaussianPosterior):
    """Kingma & Welling 2014 with a weight on the KL; the penalties are those of Prokhorov et al. 2021, section 4."""

    config: GaussianVAEConfig

    def costs(self, posterior: GaussianModelOutput, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        """`KL(q(z|x) || N(0, I))` in closed form, `(batch, latent_size)`, and the penalty, scalar, if there is one."""
        costs = {"z_kl": normal_kl(posterior.mean, posterior.std)}
        if p := self.config.penalty_norm:
            costs["penalty"] = (posterior.mean.abs() ** p + posterior.std**p).sum(-1).mean()
        return costs

    def sample_prior(self, num_samples: int) -> Tensor:
        """Draws of `N(0, I)`."""
        return torch.randn(num_samples, self.config.latent_size)


class GaussianVAEModel(TextVAEModel):
    """Encoder and Gaussian posterior."""

    config: GaussianVAEConfig
    latent_head_class = GaussianVAEHead


class GaussianVAEForPreTraining(TextVAEForPreTraining):
    """The VAE with its decoder."""

    config: GaussianVAEConfig
    model_class = GaussianVAEModel


class GaussianVAEForSequenceClassification(TextVAEForSequenceClassification):
    """Classifier on samples of the VAE's code."""

    config: GaussianVAEConfig
    model_class = GaussianVAEModel
