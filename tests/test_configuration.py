"""Configurations: round trip, ranges and rules with errors that name the field, files of version 0.1.0."""

import copy
import json
from dataclasses import fields

import pytest
import torch
import transformers
from families import FAMILIES, SIZES, bert, frozen
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel

from hsvae_hf import MODELS, RELEASED, HSVAEConfig, HSVAEForPreTraining, HSVAEModel
from hsvae_hf.models.configuration_text_vae import refusal

CONFIGS = {model_type: classes[0] for model_type, classes in MODELS.items()}
SMALL = {
    name: SIZES | {"sdlgm": {"sparsity_cap": 3}, "text-encoder": {"latent_size": 12}}.get(name, {}) for name in MODELS
}
# What config.json of version 0.1.0 says of fields that are gone.
OF_0_1_0 = {"learn_decoder_std": False, "code_snr_min": 0.0, "pseudo_inputs": "features", "pseudo_length": 8}


def refused(call):
    """What a user reads of the error of `call`."""
    with pytest.raises((ValueError, StrictDataclassError)) as caught:
        call()
    return refusal(caught.value)


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
    assert differing == {"kl_estimator", "gamma_kl_weight", "gate_balance_weight", "feature_std", "word_dropout"}
    sizes = (config.vocab_size, config.embedding_size, config.hidden_size, config.latent_size)
    assert sizes == (20_000, 256, 512, 768)
    assert (config.kl_estimator, config.gate_balance_weight) == ("mc", 0.0)
    assert (config.prior_alpha, config.prior_beta, config.z_kl_weight, config.gamma_kl_weight) == (4, 1, 0.01, 0.01)
    assert (config.concrete_temperature, config.spike_std, config.active_threshold) == (0.5, 0.05, 0.5)
    assert (config.gate_concentration_min, config.gate_concentration_max) == (0.5, 100)


def test_gates_of_words_are_balanced_lightly_those_of_vectors_and_of_old_files_are_not():
    vectors = {"encoder_type": "vector", "decoder_type": "vector", "vector_size": 4, "tie_word_embeddings": False}
    assert [HSVAEConfig(**options).gate_balance_weight for options in ({}, vectors)] == [0.1, 1]
    assert HSVAEConfig.from_dict({"model_type": "hsvae", "penalty_weight": 0.5}).gate_balance_weight == 0.5


@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_range_is_checked_whenever_its_field_is_set(model_type):
    config = CONFIGS[model_type](**SMALL[model_type])
    ranges = [item for item in fields(config) if "validator" in item.metadata]
    assert len(ranges) > 15
    for item in ranges:
        value = "none" if item.name == "tokenizer_checksum" else -1
        assert refused(lambda name=item.name, value=value: setattr(config, name, value)).startswith(f"`{item.name}` ")


@pytest.mark.parametrize(
    ("model_type", "options", "message"),
    [
        ("hsvae", {"latent_size": 0}, "`latent_size` must be at least 1, got 0; choose a positive number."),
        ("hsvae", {"gamma_kl_weight": float("nan")}, "`gamma_kl_weight` must be at least 0 and finite, got nan"),
        ("hsvae", {"word_dropout": 1.0}, "`word_dropout` must be in [0, 1), got 1.0"),
        ("hsvae", {"prior_beta": float("inf")}, "`prior_beta` must be from 0.001 to 10000, got inf"),
        ("hsvae", {"active_threshold": 1.5}, "`active_threshold` must be inside (0, 1), got 1.5; 0.5 is the paper's."),
        ("hsvae", {"max_active_dims": 0}, "`max_active_dims` must be at least 1, got 0; choose a positive number, or"),
        ("hsvae", {"gate_concentration_max": 0.1}, "`gate_concentration_max` must be above"),
        ("hsvae", {"condition_slab_on_gate": True}, "`kl_estimator` must be another than 'collapsed'"),
        (
            "hsvae",
            {"gate_concentration_min": 0.005, "kl_estimator": "mc"},
            "`gate_concentration_min` must be at least 0.01 where gamma is drawn, got 0.005",
        ),
        ("hsvae", {"target_active_dims": 6}, "`target_active_dims` must be between 0 and 6, got 6"),
        ("hsvae", {"target_active_dims": 2, "gamma_kl_weight": 0}, "`gamma_kl_weight` must be positive with"),
        ("hsvae", {"kl_estimator": "exact"}, "kl_estimator"),
        ("hsvae", {"similarity_fn_name": "euclidean"}, "similarity_fn_name"),
        ("hsvae", {"latent_size": "64"}, "latent_size"),
        ("hsvae", {"eos_token_id": [1, 99]}, "`eos_token_id` must be an id below `vocab_size` (40), got [1, 99]"),
        ("hsvae", {"pad_token_id": -1}, "`pad_token_id` must be an id below `vocab_size` (40), got -1"),
        ("hsvae", {"pad_token_id": 3, "eos_token_id": [1, 3]}, "`pad_token_id` must be not `eos_token_id`, got 3"),
        ("hsvae", {"num_beams": 4}, "`num_beams` must be a field of HSVAEConfig"),
        ("hsvae", {"encoder_type": "transformer"}, "`encoder_config` must be given if and only if"),
        ("hsvae", {"freeze_text_encoder": True}, "`freeze_text_encoder` must be False without a transformer"),
        ("hsvae", {"encoder_config": {"model_type": "none"}}, "`encoder_config` must be a dict with a known"),
        ("hsvae", {**bert(), "tie_word_embeddings": True}, "`tie_word_embeddings` must be False without a GRU"),
        ("hsvae", {**bert(), "vocab_size": 50}, "`vocab_size` must be at most that of `encoder_config` (40), got 50"),
        (
            "hsvae",
            {**bert(), "encoder_config": transformers.T5Config()},
            "`encoder_config` must be that of a text encoder, without a decoder, got T5Config",
        ),
        ("gaussian-vae", {"similarity_weight": 1.0}, "`similarity_weight` must be 0 where words are reconstructed"),
        ("hsvae", {"encoder_type": "vector", "vector_size": 3}, "`tie_word_embeddings` must be False"),
        (
            "hsvae",
            {"encoder_type": "vector", "vector_size": 3, "tie_word_embeddings": False},
            "`decoder_type` must be 'vector' where `encoder_type` is, got 'gru'",
        ),
        ("hsvae", {"decoder_type": "vector"}, "`encoder_type` must be 'vector' or 'transformer' with a vector decoder"),
        ("hsvae", {**frozen(), "freeze_text_encoder": False}, "`freeze_text_encoder` must be True with a vector"),
        ("hsvae", {**frozen(), "vector_size": 3}, "`vector_size` must be given if and only if"),
        ("hsvae", {**frozen(), "default_prompt_name": "query"}, "`default_prompt_name` must be one of None, got"),
        ("text-encoder", {"feature_std": 0.3}, "`feature_std` must be 0 for a plain text encoder"),
        ("hsvae", {**frozen(), "feature_std": 1}, "`feature_std` must be 0 with a vector decoder"),
        ("sdlgm", {"sparsity_cap": 7}, "`sparsity_cap` must be at most `latent_size` (6), got 7; lower it."),
        ("sparsemax-ae", {"score_std": 1e-9}, "`score_std` must be 0 or from 0.001 to 1000, got 1e-09; None chooses"),
        ("text-encoder", {"latent_size": 5}, "`latent_size` must be the width of the encoder's features (12), got 5"),
    ],
)
def test_bad_values_are_named(model_type, options, message):
    assert message in refused(lambda: CONFIGS[model_type](**copy.deepcopy(SIZES | options)))


@pytest.mark.parametrize("config_class", CONFIGS.values(), ids=CONFIGS)
def test_an_unknown_field_is_refused_by_every_family(config_class):
    message = refused(lambda: config_class(latent_sizes=4))
    assert message.startswith(f"`latent_sizes` must be a field of {config_class.__name__}")
    assert message.endswith("the nearest is `latent_size`.")


def test_what_the_library_itself_passes_is_no_unknown_field(tmp_path):
    config = HSVAEConfig(num_labels=3, attn_implementation="eager", projection_dim=32, torch_dtype="float32")
    assert (config.num_labels, config.latent_size) == (3, 32)
    assert HSVAEConfig(**config.to_dict()).to_dict() == config.to_dict()  # what `from_dict` and copies do
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("{", '{"of_a_later_version": 1,', 1))
    assert AutoConfig.from_pretrained(tmp_path).latent_size == 32


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_configuration_of_0_1_0_loads_unless_it_uses_what_is_gone(model_type, tmp_path):
    config = CONFIGS[model_type](**SMALL[model_type])
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | OF_0_1_0))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.to_dict().keys().isdisjoint(OF_0_1_0)
    assert loaded.to_dict() == AutoConfig.for_model(**saved).to_dict() | {"_name_or_path": str(tmp_path)}
    for name, value in {"learn_decoder_std": True, "code_snr_min": 0.5, "pseudo_inputs": "sentences"}.items():
        path.write_text(json.dumps(saved | OF_0_1_0 | {name: value}))
        message = refused(lambda: AutoConfig.from_pretrained(tmp_path))
        assert message.startswith(
            f"`{name}` must be {OF_0_1_0[name]!r}, got {value!r}; for this model use version 0.1.0"
        )


def test_overrides_at_loading_are_checked(tmp_path):
    HSVAEModel(HSVAEConfig(**SIZES)).save_pretrained(tmp_path)
    for name, value in {"word_dropout": 2, "target_active_dims": 9}.items():  # a range, and a rule of two fields
        message = refused(lambda override={name: value}: AutoModel.from_pretrained(tmp_path, **override))
        assert message.startswith(f"`{name}` must be")


def test_a_decoder_may_know_fewer_words_than_its_encoder():
    model = HSVAEForPreTraining(HSVAEConfig(**{**SIZES, **bert(), "vocab_size": 30}))
    ids = torch.tensor([[35, 7, 1]])
    assert model(ids, labels=torch.tensor([[29, 1]])).loss.isfinite()
    with pytest.raises(ValueError, match="`labels` must be given, of the decoder's 30 words: the encoder reads 40"):
        model(ids)


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
