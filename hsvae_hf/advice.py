"""Advice: what is wrong with a latent, in one sentence, and what to try; empty codes, dead dimensions, collapse."""

import math
from collections.abc import Mapping
from typing import Any

from hsvae_hf.models.configuration_text_vae import TextVAEConfig


def advice(statistics: Mapping[str, Any], config: TextVAEConfig) -> str | None:
    """One sentence on what is wrong with a latent and what to try; None if nothing is.

    Args:
        statistics: of the model, by `corpus_statistics`.
        config: of the model; what it does not have, or has set already, is not advised.
    """
    if statistics["active_units"] == 0 or statistics.get("mutual_information", 1.0) < 0.1:
        return f"The code ignores the sentence (posterior collapse): {_against_collapse(config)}."
    if "gate_std" not in statistics:  # a model without gates
        return None
    size = config.latent_size
    active, always_on, dead = (statistics[name] for name in ("active_dims", "always_on_dims", "dead_dims"))
    target = getattr(config, "target_active_dims", None)
    if active < 0.5 * min(1.0, target or 1.0):
        set_target = "set target_active_dims, or " if _can_set_target(config) else ""
        return f"Codes are empty: {set_target}lower gamma_kl_weight."
    # Where fewer than 5% switch, at most 10% of the dimensions are on for some of the sentences: the rest of a code is
    # the same in all. Sparser codes have no dimension that is on for 5% of the sentences, and need none.
    same_in_all = max(always_on, active - 0.1 * size)
    if statistics["switching_fraction"] < 0.05 and same_in_all > 0.5 * active:
        remedies = ", or ".join([*_for_balance(config), "train longer"])
        return f"Gates hardly follow the sentence, the same dimensions are on for all: {remedies}."
    uses = statistics.get("rows", math.inf) * active / size  # of a dimension, if all were used alike
    if dead > 0.5 * size and uses >= 10:
        remedy = "lower latent_size or gamma_kl_weight" if config.gamma_kl_weight > 0 else "lower latent_size"
        return f"{dead} of {size} dimensions are never on: {remedy}."
    if always_on > 0.5 * size:
        return f"{always_on} of {size} dimensions are always on: {_against_always_on(config)}."
    return None


def _against_collapse(config: TextVAEConfig) -> str:
    weights = [name for name in ("z_kl_weight", "gamma_kl_weight") if getattr(config, name) > 0]
    remedies = []
    if weights:
        remedies.append(f"lower {' and '.join(weights)}, warm the KL up by --kl_annealing linear")
    if config.decodes_words:
        remedies.append("raise word_dropout")
    patience = "train longer if it has just begun"
    return f"{patience}; else {', or '.join(remedies)}" if remedies else patience


def _against_always_on(config: TextVAEConfig) -> str:
    remedies = _for_balance(config)
    if hasattr(config, "target_active_dims"):
        remedies.append("set target_active_dims" if _can_set_target(config) else "lower target_active_dims")
    return ", and ".join(remedies) or "raise latent_size"


def _can_set_target(config: TextVAEConfig) -> bool:
    return hasattr(config, "target_active_dims") and config.target_active_dims is None


def _for_balance(config: TextVAEConfig) -> list[str]:
    """How gates are made to follow the sentence, as far as that is not set: no remedy or one."""
    if not hasattr(config, "gate_balance_weight"):
        return []
    remedies = []
    if config.gate_balance_weight == 0:
        light = config.model_type == "hsvae" and config.decodes_words
        remedies.append(f"set gate_balance_weight to {0.1 if light else 1}")
    if config.decodes_words and not config.feature_std:
        remedies.append(f"set feature_std to {config.default_feature_std}")
    if config.gamma_kl_weight > 0.001:
        remedies.append("lower gamma_kl_weight to 0.001")
    return [" and ".join(remedies)] if remedies else []
