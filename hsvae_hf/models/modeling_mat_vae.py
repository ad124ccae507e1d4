"""MAT-VAE (Mathieu et al. 2019): a sparse prior shared by all sentences, and an MMD that ties the aggregate to it."""

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from .configuration_text_vae import between, inside
from .distributions import inverse_multiquadric_mmd, normal_log_prob, normal_quadrature, spike_slab_log_prob
from .modeling_classification import TextVAEForSequenceClassification
from .modeling_gaussian_vae import GaussianPosterior, GaussianPosteriorConfig
from .modeling_text_vae import TextVAEForPreTraining, TextVAEModel
from .outputs import GaussianModelOutput


@strict
class MATVAEConfig(GaussianPosteriorConfig):
    """Configuration of MAT-VAE; psi is `z_kl_weight`, lambda is `penalty_weight`.

    Args:
        prior_spike_probability: g of the prior `(1 - g) N(0, 1) + g N(0, spike_std^2)`, in (0, 1).
        spike_std: standard deviation of the prior's spike (0.0001 to 10).
    """

    model_type = "mat-vae"

    prior_spike_probability: float | int = inside(0, 1, "0.8 is the paper's")(default=0.8)
    spike_std: float | int = between(1e-4, 10)(default=0.05)


class MATVAEHead(GaussianPosterior):
    """Gaussian posterior, fixed spike-and-slab prior (Mathieu et al. 2019, section 5.2, with the text decoder).

    The MMD's expectation over the prior is taken exactly instead of by draws; see `inverse_multiquadric_mmd`.
    """

    config: MATVAEConfig
    needs_even_batches = True  # the MMD ties the aggregate to the prior

    def costs(self, posterior: GaussianModelOutput, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        """`log q(z|x) - log p(z)` at the drawn z, `(batch, latent_size)`, and the MMD of the batch to the prior."""
        z = sample["z"]
        share = z.new_tensor(float(self.config.prior_spike_probability))
        prior = spike_slab_log_prob(z, share.log(), torch.log1p(-share), 0.0, 1.0, self.config.spike_std)
        costs = {"z_kl": normal_log_prob(z, posterior.mean, posterior.std) - prior}
        # The distance of a single draw to a distribution is not defined.
        costs["penalty"] = inverse_multiquadric_mmd(z, *self._prior_quadrature()) if len(z) > 1 else z.new_zeros(())
        return costs

    def _prior_quadrature(self) -> tuple[Tensor, Tensor]:
        spike, slab = normal_quadrature(self.config.spike_std, step=1.0), normal_quadrature(1.0)
        share = self.config.prior_spike_probability
        return torch.cat([spike[0], slab[0]]), torch.cat([share * spike[1], (1 - share) * slab[1]])

    def sample_prior(self, num_samples: int) -> Tensor:
        """Draws of the spike-and-slab prior."""
        noise = torch.randn(num_samples, self.config.latent_size)
        spike = torch.rand_like(noise) < self.config.prior_spike_probability
        return torch.where(spike, self.config.spike_std * noise, noise)


class MATVAEModel(TextVAEModel):
    """Encoder and MAT-VAE's posterior."""

    config: MATVAEConfig
    latent_head_class = MATVAEHead


class MATVAEForPreTraining(TextVAEForPreTraining):
    """MAT-VAE with its decoder."""

    config: MATVAEConfig
    model_class = MATVAEModel


class MATVAEForSequenceClassification(TextVAEForSequenceClassification):
    """Classifier on samples of MAT-VAE's code."""

    config: MATVAEConfig
    model_class = MATVAEModel
