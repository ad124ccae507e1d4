"""Configurations: round trip, strict fields, errors that name the argument."""

import pytest
import torch
from families import FAMILIES, SIZES, bert
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from hsvae_hf import RELEASED, HSVAEConfig, HSVAEForPreTraining


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_round_trip(family, tmp_path):
    config = family.config(z_kl_weight=7, num_labels=3)
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
        ({"prior_alpha": 0}, "`prior_alpha` must be from 0.001 to 10000, got 0;"),
        ({"spike_std": 0.0}, "`spike_std` must be from 0.0001 to 10, got 0.0;"),
        ({"active_threshold": 1.5}, r"`active_threshold` must be inside \(0, 1\), got 1.5"),
        ({"gate_concentration_max": 0.1}, "`gate_concentration_max` must be above"),
        ({"kl_estimator": "collapsed", "condition_slab_on_gate": True}, "`kl_estimator` must be another"),
        ({"gate_concentration_max": 70_000}, "`gate_concentration_max` must be from 0.001 to 10000, got 70000"),
        ({"gate_concentration_min": 1e-6}, "`gate_concentration_min` must be from 0.001 to 10000, got 1e-06"),
        (
            {"gate_concentration_min": 0.005, "kl_estimator": "mc"},
            "`gate_concentration_min` must be at least 0.01 where gamma is drawn, got 0.005",
        ),
        ({"concrete_temperature": 1e-30}, "`concrete_temperature` must be from 0.01 to 100"),
        ({"slab_std_min": 1e-30}, "`slab_std_min` must be from 1e-06 to 10"),
        ({"prior_beta": float("inf")}, "`prior_beta` must be from 0.001"),
        ({"latent_dim": 64}, "`latent_dim` must be a field of HSVAEConfig, got an unknown name; .* `latent_size`"),
        ({"hidden_dim": 64}, "`hidden_dim` .* the nearest is `hidden_size`"),
        ({"num_beams": 4}, "`num_beams` must be a field of HSVAEConfig"),
        ({"gate_balance_weight": -1.0}, "`gate_balance_weight` must be at least 0"),
        ({"kl_estimator": "exact"}, "kl_estimator"),
        ({"latent_size": "64"}, "latent_size"),
        ({"encoder_type": "lstm"}, "encoder_type"),
        ({"max_active_dims": 0}, "`max_active_dims` must be at least 1, got 0"),
        ({"num_samples": -1}, "`num_samples` must be at least 0, got -1"),
        ({"eos_token_id": 30_000}, "`eos_token_id` must be an id below `vocab_size`"),
        ({"eos_token_id": [1, 30_000]}, "`eos_token_id` must be an id below `vocab_size`"),
        ({"pad_token_id": 1}, "`pad_token_id` must be not `eos_token_id`"),
        ({"pad_token_id": 3, "eos_token_id": [1, 3]}, "`pad_token_id` must be not `eos_token_id`"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        HSVAEConfig(**options)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_an_unknown_field_is_refused_by_every_family(family):
    with pytest.raises(ValueError, match=r"`latent_sizes` must be a field of .*; the nearest is `latent_size`"):
        family.config(latent_sizes=4)


def test_what_the_library_itself_passes_is_no_unknown_field(tmp_path):
    config = HSVAEConfig(num_labels=3, attn_implementation="eager", projection_dim=32, torch_dtype="float32")
    assert (config.num_labels, config.latent_size) == (3, 32)
    assert HSVAEConfig(**config.to_dict()).to_dict() == config.to_dict()  # what `from_dict` and copies do
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("{", '{"of_a_later_version": 1,', 1))
    assert AutoConfig.from_pretrained(tmp_path).latent_size == 32


def test_the_vocabulary_is_that_of_the_encoder():
    message = r"`vocab_size` must be at most that of `encoder_config` \(40\), got 50"
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        HSVAEConfig(**{**SIZES, **bert(), "vocab_size": 50})
    model = HSVAEForPreTraining(HSVAEConfig(**{**SIZES, **bert(), "vocab_size": 30}))
    ids = torch.tensor([[35, 7, 1]])
    assert model(ids, labels=torch.tensor([[29, 1]])).loss.isfinite()
    with pytest.raises(ValueError, match="`labels` must be given, of the decoder's 30 words: the encoder reads 40"):
        model(ids)


@pytest.mark.parametrize(("eos", "ids"), [(1, [1]), ([1, 5], [1, 5]), (None, [])])
def test_a_sentence_may_end_in_several_tokens_or_in_none(eos, ids):
    assert HSVAEConfig(eos_token_id=eos, bos_token_id=None).eos_token_ids == ids


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
