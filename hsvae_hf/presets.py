"""Presets: settings that go together, and which of them a run takes where nothing else is asked for."""

from typing import Any

from hsvae_hf.models import RELEASED

PRESETS = ("small", "paper", "released")
# Words on two cores in minutes. The rate, the schedule and the number of steps were chosen on validation rows.
SMALL_MODEL: dict[str, Any] = {
    "vocab_size": 6_000,
    "embedding_size": 96,
    "hidden_size": 192,
    "latent_size": 64,
    "target_active_dims": 12,
}
SMALL_TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 64,
    "learning_rate": 5e-3,
    "lr_scheduler_type": "linear",
    "max_steps": 1_200,
    "eval_strategy": "steps",
    "eval_steps": 300,
    "save_strategy": "steps",
    "save_steps": 300,
}
SMALL_LENGTH = 60  # tokens per sentence
ENCODER_DEFAULTS: dict[str, Any] = {"learning_rate": 8e-5, "tie_word_embeddings": False}  # the paper's, with BERT
# What trains on vectors without tuning, for every model type, and for one.
VECTOR_DEFAULTS: dict[str, Any] = {
    "decoder_type": "vector",
    "freeze_text_encoder": True,
    "tie_word_embeddings": False,
    "latent_size": 512,
    "z_kl_weight": 0.1,
    "gamma_kl_weight": 0.1,
    "similarity_weight": 20.0,
    "learning_rate": 1e-2,
    "weight_decay": 1.0,
    "lr_scheduler_type": "cosine",
    "max_steps": 1500,
    "kl_annealing": "linear",
    "eval_strategy": "steps",
    "eval_steps": 500,
    "save_strategy": "steps",
    "save_steps": 500,
    "train_sampling_strategy": "random",
}
HEAD_DEFAULTS: dict[str, dict[str, Any]] = {
    "text-encoder": {"latent_size": 0},  # the width of the encoder's features
    # With concentrations of at least 0.5, every dimension that is off would be drawn on in one sentence of twenty.
    "hsvae": {
        "prior_alpha": 10.0,
        "prior_beta": 0.05,
        "gate_concentration_min": 0.001,
        "gamma_kl_rows": 64,
        "code_reconstruction_weight": 0.75,
        "revival_weight": 0.5,
    },
    # The source's own settings; those for words are in `VSCConfig`.
    "vsc": {
        "prior_activity": 0.01,
        "penalty_weight": 0.01,
        "gate_gradient": "pathwise",
        "gate_balance_weight": 0.0,
        "penalty_warmup_fraction": 0.0,
        "anneal_fraction": 0.5,
        "slab_std_start": 0.6931,
    },
}
CODE_RIDGE = 0.1  # of codes of vectors
CODE_BUDGETS = (2, 4, 8, 16, 32, 64)  # that codes of vectors are trained for, as far as their width allows


def defaults(model_type: str, preset: str | None, vectors: bool, encoder: bool) -> dict[str, Any]:
    """Values of the options that a run leaves open.

    Args:
        model_type: of the model.
        preset: one of `PRESETS`; None is "small" where words are trained with a GRU, and none elsewhere.
        vectors: whether vectors are reconstructed.
        encoder: whether the model stands on a pretrained text encoder.

    Returns:
        Fields of the configuration, of the training arguments and of the data arguments, by name.

    Raises:
        ValueError: if the preset is not for this model or input.
    """
    if vectors:
        values = VECTOR_DEFAULTS | HEAD_DEFAULTS.get(model_type, {})
    else:
        values = dict(ENCODER_DEFAULTS) if encoder else {}
    if preset == "small" and (vectors or encoder):
        raise ValueError(
            "`preset` must be left out with an encoder or vectors, got 'small', which is for words and a GRU."
        )
    if preset == "released":
        if model_type != "hsvae":
            raise ValueError(f"`preset` must be small or paper for {model_type}, got 'released', which is for hsvae.")
        return values | RELEASED | {"ascii_only": True}
    if preset == "paper" or vectors or encoder:
        return values
    small = SMALL_MODEL | SMALL_TRAINING | {"max_length": SMALL_LENGTH}
    if model_type != "hsvae":
        del small["target_active_dims"]
    if model_type == "text-encoder":
        del small["latent_size"]  # the width of the encoder's features
    return small
