"""The models: everything in this folder but this file is saved with a model and travels to the Hub.

transformers copies the relative imports of one folder, so files here import each other by `from .name import` alone,
and nothing else of hsvae_hf. This file tells the Auto classes of transformers which class is which.
"""

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

from .configuration_hsvae import RELEASED, HSVAEConfig
from .modeling_gaussian_vae import (
    GaussianVAEConfig,
    GaussianVAEForPreTraining,
    GaussianVAEForSequenceClassification,
    GaussianVAEModel,
)
from .modeling_hsvae import HSVAEForPreTraining, HSVAEForSequenceClassification, HSVAEModel
from .modeling_mat_vae import MATVAEConfig, MATVAEForPreTraining, MATVAEForSequenceClassification, MATVAEModel
from .modeling_sdlgm import SDLGMConfig, SDLGMForPreTraining, SDLGMForSequenceClassification, SDLGMModel
from .modeling_sparsemax_ae import (
    SparsemaxAEConfig,
    SparsemaxAEForPreTraining,
    SparsemaxAEForSequenceClassification,
    SparsemaxAEModel,
)
from .modeling_text_encoder import (
    TextEncoderConfig,
    TextEncoderForPreTraining,
    TextEncoderForSequenceClassification,
    TextEncoderModel,
)
from .modeling_vsc import VSCConfig, VSCForPreTraining, VSCForSequenceClassification, VSCModel

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
__all__ = ["MODELS", "RELEASED", *(found.__name__ for classes in MODELS.values() for found in classes)]

for _config, *_models in MODELS.values():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    for _auto, _model in zip(
        (AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification), _models, strict=True
    ):
        _auto.register(_config, _model, exist_ok=True)
