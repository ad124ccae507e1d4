"""The model families that the shared contract runs over: one line each."""

from dataclasses import dataclass, field
from typing import Any

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

    def config(self, **changes: Any) -> Any:
        return self.config_class(**{**SIZES, **self.options, **changes})


_HSVAE = (
    hsvae_hf.HSVAEConfig,
    hsvae_hf.HSVAEModel,
    hsvae_hf.HSVAEForPreTraining,
    hsvae_hf.HSVAEForSequenceClassification,
)
FAMILIES = [
    Family("hsvae", *_HSVAE),
    Family("hsvae-mc", *_HSVAE, {"kl_estimator": "mc"}),
    Family("hsvae-collapsed", *_HSVAE, {"kl_estimator": "collapsed"}),
    Family("hsvae-conditioned", *_HSVAE, {"kl_estimator": "closed_form", "condition_slab_on_gate": True}),
]
