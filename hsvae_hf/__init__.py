"""Sparse sentence encoders learned without labels, as ordinary Hugging Face models."""

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

from hsvae_hf.configuration_hsvae import RELEASED, HSVAEConfig
from hsvae_hf.encoding import encode, encode_vectors
from hsvae_hf.explanation import explain
from hsvae_hf.modeling_gaussian_vae import (
    GaussianVAEConfig,
    GaussianVAEForPreTraining,
    GaussianVAEForSequenceClassification,
    GaussianVAEModel,
)
from hsvae_hf.modeling_hsvae import HSVAEForPreTraining, HSVAEForSequenceClassification, HSVAEModel
from hsvae_hf.modeling_mat_vae import MATVAEConfig, MATVAEForPreTraining, MATVAEForSequenceClassification, MATVAEModel
from hsvae_hf.modeling_sdlgm import SDLGMConfig, SDLGMForPreTraining, SDLGMForSequenceClassification, SDLGMModel
from hsvae_hf.modeling_sparsemax_ae import (
    SparsemaxAEConfig,
    SparsemaxAEForPreTraining,
    SparsemaxAEForSequenceClassification,
    SparsemaxAEModel,
)
from hsvae_hf.modeling_text_encoder import (
    TextEncoderConfig,
    TextEncoderForPreTraining,
    TextEncoderForSequenceClassification,
    TextEncoderModel,
)
from hsvae_hf.modeling_vsc import VSCConfig, VSCForPreTraining, VSCForSequenceClassification, VSCModel

__version__ = "0.1.0"

# By model type: the configuration, and its classes for AutoModel, AutoModelForPreTraining and
# AutoModelForSequenceClassification.
MODELS: dict[str, tuple[Any, Any, Any, Any]] = {
    classes[0].model_type: classes
    for classes in (
        (HSVAEConfig, HSVAEModel, HSVAEForPreTraining, HSVAEForSequenceClassification),
        (GaussianVAEConfig, GaussianVAEModel, GaussianVAEForPreTraining, GaussianVAEForSequenceClassification),
        (MATVAEConfig, MATVAEModel, MATVAEForPreTraining, MATVAEForSequenceClassification),
        (VSCConfig, VSCModel, VSCForPreTraining, VSCForSequenceClassification),
        (SDLGMConfig, SDLGMModel, SDLGMForPreTraining, SDLGMForSequenceClassification),
        (SparsemaxAEConfig, SparsemaxAEModel, SparsemaxAEForPreTraining, SparsemaxAEForSequenceClassification),
        (TextEncoderConfig, TextEncoderModel, TextEncoderForPreTraining, TextEncoderForSequenceClassification),
    )
}
__all__ = [
    "MODELS",
    "RELEASED",
    "encode",
    "encode_vectors",
    "explain",
    *(_class.__name__ for _classes in MODELS.values() for _class in _classes),
]

for _config, *_models in MODELS.values():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    for _auto, _model in zip(
        (AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification), _models, strict=True
    ):
        _auto.register(_config, _model, exist_ok=True)
