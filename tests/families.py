"""The model families that the shared contract runs over: one line each."""

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import transformers

import hsvae_hf

SIZES = {"vocab_size": 40, "embedding_size": 8, "hidden_size": 12, "latent_size": 6}


@dataclass
class Family:
    name: str
    config_class: type
    model: type
    pretraining: type
    classification: type
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def given(self) -> bool:
        """Whether it takes vectors, having no text encoder."""
        return self.options.get("encoder_type") == "vector"

    @property
    def gru(self) -> bool:
        return "encoder_config" not in self.options and not self.given

    @property
    def words(self) -> bool:
        """Whether words are reconstructed, not vectors."""
        return self.options.get("decoder_type", "gru") == "gru"

    @property
    def latent_size(self) -> int:
        return self.options.get("latent_size", SIZES["latent_size"])

    def config(self, **changes: Any) -> Any:
        if self.config_class is hsvae_hf.HSVAEConfig and "penalty_weight" in changes:
            changes["gate_balance_weight"] = changes.pop("penalty_weight")  # the name of its one weight
        return self.config_class(**copy.deepcopy({**SIZES, **self.options, **changes}))


def each(families: Any) -> Any:
    """A fixture that is one of these families after another."""
    return pytest.fixture(params=families, ids=lambda family: family.name)(lambda request: request.param)


def bert(vocab_size: int = 40) -> dict[str, Any]:
    """A transformer encoder, tiny; dropout off, so that training mode is comparable."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"vocab_size": vocab_size, "max_position_embeddings": 4000}
    encoder = transformers.BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return {"encoder_type": "transformer", "encoder_config": encoder, "tie_word_embeddings": False}


def frozen() -> dict[str, Any]:
    """A frozen transformer whose vector is what is reconstructed."""
    return {**bert(), "freeze_text_encoder": True, "decoder_type": "vector"}


def family(name: str, model_type: str, **options: Any) -> Family:
    return Family(name, *hsvae_hf.MODELS[model_type], options)


FAMILIES = [
    family("hsvae", "hsvae", kl_estimator="rao_blackwell", gate_balance_weight=0.0),
    family("hsvae-released", "hsvae", **hsvae_hf.RELEASED),
    family("hsvae-balanced", "hsvae"),
    family("hsvae-conditioned", "hsvae", kl_estimator="closed_form", condition_slab_on_gate=True),
    family("hsvae-plain-features", "hsvae", feature_std=0),
    family("hsvae-bert", "hsvae", **bert()),
    family("vae", "gaussian-vae"),
    family("vae-l1", "gaussian-vae", penalty_norm=1),
    family("mat-vae", "mat-vae"),
    family("vsc", "vsc"),
    family("sdlgm", "sdlgm", sparsity_cap=3),
    family("sparsemax-ae", "sparsemax-ae"),
    family("text-encoder", "text-encoder", latent_size=12),
    family("text-encoder-bert", "text-encoder", latent_size=16, **bert()),
    family("hsvae-vector", "hsvae", **frozen()),
    family("vae-vector", "gaussian-vae", **frozen()),
    family("mat-vae-vector", "mat-vae", **frozen()),
    family("vsc-vector", "vsc", **frozen()),
    family("sdlgm-vector", "sdlgm", sparsity_cap=3, **frozen()),
    family("sparsemax-ae-vector", "sparsemax-ae", **frozen()),
    family("text-encoder-vector", "text-encoder", latent_size=16, **frozen()),
]
VECTORS = {"encoder_type": "vector", "vector_size": 5, "decoder_type": "vector", "tie_word_embeddings": False}
SINGLE = {"sdlgm": {"sparsity_cap": 3}, "text-encoder": {"latent_size": 5}}
GIVEN = [family(f"{name}-given", name, **VECTORS, **SINGLE.get(name, {})) for name in hsvae_hf.MODELS]
EVERY = FAMILIES + GIVEN  # what takes sentences, and what takes vectors
BY_NAME = {family.name: family for family in EVERY}
DENSE = {"vae", "vae-l1", "mat-vae", "text-encoder", "text-encoder-bert"}  # no zeros in the code
DENSE |= {"vae-vector", "mat-vae-vector", "text-encoder-vector"}
DETERMINISTIC = {"sparsemax-ae", "text-encoder", "text-encoder-bert"}  # nothing is drawn, no prior
DETERMINISTIC |= {"sparsemax-ae-vector", "text-encoder-vector"}
