"""Sparse sentence encoders learned without labels, as ordinary Hugging Face models."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

from hsvae_hf.configuration_hsvae import HSVAEConfig
from hsvae_hf.encoding import encode
from hsvae_hf.modeling_hsvae import HSVAEForPreTraining, HSVAEForSequenceClassification, HSVAEModel

__version__ = "0.1.0"
__all__ = [
    "HSVAEConfig",
    "HSVAEForPreTraining",
    "HSVAEForSequenceClassification",
    "HSVAEModel",
    "encode",
]

for _classes in ((HSVAEConfig, HSVAEModel, HSVAEForPreTraining, HSVAEForSequenceClassification),):
    _config = _classes[0]
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    for _auto, _model in zip(
        (AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification), _classes[1:], strict=True
    ):
        _auto.register(_config, _model, exist_ok=True)
