"""Settings that go together, by the name that `--preset` has for them."""

from typing import Any

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
# What trains on vectors without tuning, for every model type, and for one.
VECTOR_DEFAULTS: dict[str, Any] = {
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
    "text-encoder": {"latent_size": 0},  # its features' own
    # With concentrations of at least 0.5, every dimension that is off would be drawn on in one sentence of twenty.
    "hsvae": {"prior_alpha": 10.0, "prior_beta": 0.05, "gate_concentration_min": 0.001},
}
