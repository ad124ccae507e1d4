"""Models: everything in this folder but this file is saved with a model and travels to the Hub.

transformers copies the relative imports of one folder, so files here import each other by `from .name import` alone,
and nothing else of hsvae_hf. This file tells the Auto classes of transformers which class is which.
"""

from typing import NamedTuple

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

from .configuration_hsvae import RELEASED, HSVAEConfig
from .configuration_text_vae import TextVAEConfig
from .modeling_classification import TextVAEForSequenceClassification
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
from .modeling_text_vae import TextVAEForPreTraining, TextVAEModel
from .modeling_vsc import VSCConfig, VSCForPreTraining, VSCForSequenceClassification, VSCModel


class ModelClasses(NamedTuple):
    """A model family: its configuration, and its classes for the three Auto classes of models."""

    config: type[TextVAEConfig]
    model: type[TextVAEModel]
    pretraining: type[TextVAEForPreTraining]
    classification: type[TextVAEForSequenceClassification]


MODELS: dict[str, ModelClasses] = {  # by model type
    classes[0].model_type: ModelClasses(*classes)
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
__all__ = ["MODELS", "RELEASED", *(kind.__name__ for classes in MODELS.values() for kind in classes)]

for _type, _classes in MODELS.items():
    AutoConfig.register(_type, _classes.config, exist_ok=True)
    AutoModel.register(_classes.config, _classes.model, exist_ok=True)
    AutoModelForPreTraining.register(_classes.config, _classes.pretraining, exist_ok=True)
    AutoModelForSequenceClassification.register(_classes.config, _classes.classification, exist_ok=True)
