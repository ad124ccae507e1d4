"""The paper's VAE: a Gaussian posterior per latent dimension, with optional L1 or L2 penalties (VAE_L1, VAE_L2)."""

from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from .configuration_text_vae import TextVAEConfig, require, require_range
from .distributions import normal_kl, softplus
from .modeling_latent import Encode, Float32Linear, LatentHead
from .modeling_text_vae import TextVAEForPreTraining, TextVAEForSequenceClassification, TextVAEModel
from .outputs import GaussianModelOutput


@strict
class GaussianPosteriorConfig(TextVAEConfig):
    """What models with a Gaussian posterior share.

    Args:
        std_min: lower bound of the posterior's standard deviation (0.000001 to 10).
        code_snr_min: dimensions with `|mean| < code_snr_min * std` are zero in the code; 0 keeps the code dense.
    """

    std_min: float | int = 1e-3
    code_snr_min: float | int = 0.0

    def validate_posterior(self) -> None:
        """A positive scale and a threshold that is not negative."""
        require_range(self, 1e-6, 10, "std_min")
        remedy = "0 keeps every dimension"
        require(self.code_snr_min >= 0, "code_snr_min", "at least 0", self.code_snr_min, remedy)


class GaussianPosterior(LatentHead):
    """`q(z|x) = N(mu(h), sigma(h)^2)`; a subclass says what it costs."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.posterior = Float32Linear(config.feature_size, 2 * config.latent_size)

    def forward(self, features: Tensor) -> GaussianModelOutput:
        """The posterior of `features` `(batch, feature_size)`; its code is `mu`, dense unless `code_snr_min` is set."""
        mean, raw = self.posterior(features).chunk(2, dim=-1)
        std = softplus(raw) + self.config.std_min
        code = mean if self.config.code_snr_min == 0 else mean * (mean.abs() >= self.config.code_snr_min * std)
        return GaussianModelOutput(sparse_embedding=code, latent=mean, features=features, mean=mean, std=std)

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

    def costs(self, posterior: GaussianModelOutput, sample: dict[str, Tensor], encode: Encode) -> dict[str, Tensor]:
        """`KL(q(z|x) || N(0, I))` in closed form, `(batch, latent_size)`, and the penalty, scalar, if there is one."""
        costs = {"z_kl": normal_kl(posterior.mean, posterior.std)}
        if p := self.config.penalty_norm:
            costs["penalty"] = (posterior.mean.abs() ** p + posterior.std**p).sum(-1).mean()
        return costs

    def sample_prior(self, num_samples: int, encode: Encode) -> Tensor:
        """Draws of `N(0, I)`."""
        return torch.randn(num_samples, self.config.latent_size)


class GaussianVAEModel(TextVAEModel):
    """Encoder and Gaussian posterior."""

    config_class = GaussianVAEConfig
    latent_head_class = GaussianVAEHead


class GaussianVAEForPreTraining(TextVAEForPreTraining):
    """The VAE with its decoder."""

    config_class = GaussianVAEConfig
    model_class = GaussianVAEModel


class GaussianVAEForSequenceClassification(TextVAEForSequenceClassification):
    """Classifier on samples of the VAE's code."""

    config_class = GaussianVAEConfig
    model_class = GaussianVAEModel
