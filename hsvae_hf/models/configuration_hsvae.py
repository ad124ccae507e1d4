"""Configuration of HSVAE: the Beta prior over the gates, the estimators, the threshold of the codes."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration_text_vae import TextVAEConfig, between, inside, nonnegative, positive

# The settings of the code released with the paper, as fields of HSVAEConfig.
RELEASED: dict[str, Any] = {
    "prior_alpha": 4.0,
    "prior_beta": 1.0,
    "z_kl_weight": 0.01,
    "gamma_kl_weight": 0.01,
    "concrete_temperature": 0.5,
    "spike_std": 0.05,
    "kl_estimator": "mc",
    "condition_slab_on_gate": False,
    "gate_concentration_min": 0.5,
    "similarity_weight": 0.0,
    "gate_balance_weight": 0.0,
    "active_threshold": 0.5,
    "word_dropout": 0.0,
    "feature_std": 0.0,
}


@strict
class HSVAEConfig(TextVAEConfig):
    """Configuration of the hierarchical sparse VAE (Prokhorov et al. 2021).

    `gamma` is the spike probability of a latent dimension: near 1 = dimension off. The defaults are the released
    settings, except for what makes gates and codes follow the sentence: `kl_estimator`, `gamma_kl_weight`,
    `gate_balance_weight`, `feature_std` and `word_dropout`; `HSVAEConfig(**RELEASED)` has all of the released ones.

    Args:
        prior_alpha: alpha of the prior `gamma ~ Beta(alpha, beta)` (0.001 to 10,000); larger switches more dimensions
            off.
        prior_beta: beta of the same prior (0.001 to 10,000).
        concrete_temperature: temperature of the straight-through binary Concrete indicator (0.01 to 100).
        spike_std: standard deviation of the spike in prior and posterior (0.0001 to 10; the paper lets it
            go to 0).
        kl_estimator: how KL_z is estimated; see `hsvae_hf.models.modeling_hsvae.HSVAEHead`.
        condition_slab_on_gate: whether the slab's network takes gamma as input (paper, section 3) or not (released
            code).
        gate_concentration_min: lower bound of the posterior's Beta parameters (0.001 to 10,000; at least 0.01 where
            gamma is drawn, that is unless `kl_estimator` is `"collapsed"`).
        gate_concentration_max: upper bound of the same (at most 10,000). Gradients pass both bounds unchanged.
        slab_std_min: lower bound of the slab's standard deviation (0.000001 to 10).
        gamma_kl_weight: lambda, of the gate's KL (>= 0).
        gamma_kl_rows: rows of a batch that the gate's KL is taken of in training, an unbiased estimate that saves time;
            None takes all.
        gate_balance_weight: of a penalty that is not the paper's, 0 for none: every dimension is to be on for the same
            share of the batch, `target_active_dims / latent_size`; see `HSVAEHead`. Left out, it is 0.1 where words are
            reconstructed, 1 where vectors are.
        target_active_dims: non-zeros per code that training is to end with, on average: it adapts the weight of the
            gate's KL, from `gamma_kl_weight` on, once the KL is annealed. None keeps the weight, but see
            `wanted_active_dims`.
        active_threshold: a dimension is active where `E[gamma|x]` is below it, in (0, 1); the paper's Binarise is 0.5.
            Training ends by setting it, see `hsvae_hf.calibrate_threshold`.
    """

    model_type = "hsvae"
    default_feature_std = 0.3
    gives_nonnegative_codes = True

    gamma_kl_weight: float | int = nonnegative(default=0.001)
    prior_alpha: float | int = between(1e-3, 1e4)(default=4.0)
    prior_beta: float | int = between(1e-3, 1e4)(default=1.0)
    concrete_temperature: float | int = between(0.01, 100)(default=0.5)
    spike_std: float | int = between(1e-4, 10)(default=0.05)
    kl_estimator: Literal["mc", "rao_blackwell", "closed_form", "collapsed"] = "collapsed"
    condition_slab_on_gate: bool = False
    gate_concentration_min: float | int = between(1e-3, 1e4)(default=0.5)
    gate_concentration_max: float | int = between(1e-3, 1e4)(default=100.0)
    slab_std_min: float | int = between(1e-6, 10)(default=1e-3)
    gamma_kl_rows: int | None = positive(default=None)
    gate_balance_weight: float | int | None = nonnegative(default=None)
    target_active_dims: float | int | None = None
    active_threshold: float | int = inside(0, 1, "0.5 is the paper's")(default=0.5)

    def __post_init__(self, **kwargs: object) -> None:
        """As of every model; of a file that has both weights of the penalty, one is made."""
        of_file = "model_type" in kwargs
        if self.gate_balance_weight is None:
            self.gate_balance_weight = 1.0 if of_file or not self.decodes_words else 0.1
        if of_file and self.penalty_weight != 1:  # of version 0.1.0
            self.gate_balance_weight *= self.penalty_weight
            self.penalty_weight = 1.0
        super().__post_init__(**kwargs)

    @property
    def wanted_active_dims(self) -> float | None:
        """`target_active_dims`, or with `gate_balance_weight` what the prior says; None where no number is held.

        That is `latent_size * prior_beta / (prior_alpha + prior_beta)`, at most half of `max_active_dims`.
        """
        if self.target_active_dims is not None or self.gate_balance_weight == 0 or self.gamma_kl_weight == 0:
            return self.target_active_dims
        wanted = self.latent_size * self.prior_beta / (self.prior_alpha + self.prior_beta)
        return wanted if self.max_active_dims is None else min(wanted, self.max_active_dims / 2)

    def validate_hsvae(self) -> None:
        """Ordered bounds; an estimator that fits the gate; a target that a code can have.

        The collapsed estimator integrates gamma out, which a slab conditioned on gamma does not allow. The others draw
        gamma; the sampler's draws have another mean where both concentrations are below 0.01.
        """
        if self.gate_concentration_max <= self.gate_concentration_min:
            rule = f"above `gate_concentration_min` ({self.gate_concentration_min})"
            self.refuse("gate_concentration_max", rule, "the released code proposes the bounds 0.5 and 100")
        collapsed = self.kl_estimator == "collapsed"
        if self.gate_concentration_min < 0.01 and not collapsed:
            rule = "at least 0.01 where gamma is drawn"
            self.refuse("gate_concentration_min", rule, "set `kl_estimator='collapsed'`, which draws no gamma")
        if self.condition_slab_on_gate and collapsed:
            rule = "another than 'collapsed' where `condition_slab_on_gate` is True"
            remedy = "set `condition_slab_on_gate=False` or `kl_estimator='closed_form'`"
            self.refuse("kl_estimator", rule, remedy)
        if self.penalty_weight != 1:
            self.refuse("penalty_weight", "1 for HSVAE, whose penalty has one weight", "set `gate_balance_weight`")
        if self.target_active_dims is None:
            return
        most = min(self.latent_size, self.max_active_dims or self.latent_size)
        fixed = self.min_active_dims == most < self.latent_size
        if not 0 < self.target_active_dims < most and not (fixed and 0 < self.target_active_dims <= most):
            remedy = "choose fewer than `latent_size` and `max_active_dims` allow"
            self.refuse("target_active_dims", f"between 0 and {most}", remedy)
        if self.gamma_kl_weight == 0:
            self.refuse("gamma_kl_weight", "positive with `target_active_dims`", "0.1 is a start")
