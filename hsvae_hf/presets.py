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
