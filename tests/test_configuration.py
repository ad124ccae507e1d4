"""Configurations: round trip, strict fields, errors that name the argument."""

import pytest
from families import FAMILIES
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from hsvae_hf import RELEASED, HSVAEConfig


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_round_trip(family, tmp_path):
    config = family.config(prior_alpha=7, num_labels=3)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is family.config_class
    changing = {"_name_or_path", "transformers_version"}
    one, other = ({k: v for k, v in c.to_dict().items() if k not in changing} for c in (config, loaded))
    assert one == other


def test_the_preset_is_the_released_code_and_the_defaults_differ_where_gates_and_words_do():
    config, default = HSVAEConfig(**RELEASED), HSVAEConfig().to_dict()
    differing = {name for name, value in config.to_dict().items() if default[name] != value}
    assert differing == {"kl_estimator", "gamma_kl_weight", "gate_balance_weight", "word_dropout"}
    sizes = (config.vocab_size, config.embedding_size, config.hidden_size, config.latent_size)
    assert sizes == (20_000, 256, 512, 768)
    assert (config.kl_estimator, config.gate_balance_weight) == ("mc", 0.0)
    assert (config.prior_alpha, config.prior_beta, config.z_kl_weight, config.gamma_kl_weight) == (4, 1, 0.01, 0.01)
    assert (config.concrete_temperature, config.spike_std, config.active_threshold) == (0.5, 0.05, 0.5)
    assert (config.gate_concentration_min, config.gate_concentration_max) == (0.5, 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_size": 0}, "`latent_size` must be at least 1, got 0"),
        ({"vocab_size": -5}, "`vocab_size` must be at least 1, got -5"),
        ({"z_kl_weight": -0.1}, "`z_kl_weight` must be at least 0 and finite, got -0.1"),
        ({"gamma_kl_weight": float("nan")}, "`gamma_kl_weight`"),
        ({"word_dropout": 1.0}, r"`word_dropout` must be in \[0, 1\), got 1.0"),
        ({"prior_alpha": 0}, "`prior_alpha` must be positive"),
        ({"spike_std": 0.0}, "`spike_std` must be positive"),
        ({"active_threshold": 1.5}, r"`active_threshold` must be inside \(0, 1\), got 1.5"),
        ({"gate_concentration_max": 0.1}, "`gate_concentration_max` must be above"),
        ({"kl_estimator": "collapsed", "condition_slab_on_gate": True}, "`kl_estimator` must be another"),
        ({"gate_balance_weight": -1.0}, "`gate_balance_weight` must be at least 0"),
        ({"kl_estimator": "exact"}, "kl_estimator"),
        ({"latent_size": "64"}, "latent_size"),
        ({"encoder_type": "lstm"}, "encoder_type"),
        ({"max_active_dims": 0}, "`max_active_dims` must be at least 1, got 0"),
        ({"num_samples": -1}, "`num_samples` must be at least 0, got -1"),
        ({"eos_token_id": 30_000}, "`eos_token_id` must be an id below `vocab_size`"),
        ({"pad_token_id": 1}, "`pad_token_id` must be not `eos_token_id`"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        HSVAEConfig(**options)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, 12.8),
        ({"target_active_dims": 5}, 5),
        ({"gate_balance_weight": 0.0}, None),
        ({"gamma_kl_weight": 0.0}, None),
        ({"max_active_dims": 4}, 2.0),
        ({"max_active_dims": 60}, 12.8),
    ],
)
def test_the_wanted_number_is_the_target_or_the_priors(fields, wanted):
    assert HSVAEConfig(latent_size=64, **fields).wanted_active_dims == wanted
