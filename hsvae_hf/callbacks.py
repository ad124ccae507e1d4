"""What happens at the steps of training: the annealing of the KL, and a word on a run that goes on."""

import logging
import math
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class ResumedCallback(TrainerCallback):
    """Refuses to train a finished run for one more step, as the Trainer would; says where its length has changed."""

    max_steps: int | None = None  # that the run was started with

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare the steps done with the steps wanted."""
        if state.global_step >= state.max_steps > 0:
            raise ValueError(
                f"`resume_from_checkpoint` must be a run that is not finished, got {state.global_step} of "
                f"{state.max_steps} steps done; raise num_train_epochs or max_steps."
            )
        if self.max_steps not in (None, state.max_steps) and state.is_world_process_zero:
            logger.warning(
                "this run was started for %s steps and now goes on to %s: what follows the share of training done, "
                "such as a schedule, goes on at another place",
                self.max_steps,
                state.max_steps,
            )


class AnnealingCallback(TrainerCallback):
    """What changes during training, by the step alone, so that a resumed run goes on where it was.

    Scales the KL terms, and tells the latent head how far training is.

    Args:
        kind: of the KL's scale: `none` is 1 throughout; `linear` ramps from 0 to 1 in `warmup_steps`; `cyclical` (Fu et
            al. 2019) ramps over the first half of each of `cycles` equal parts of training and stays at 1 for the
            other half.
        warmup_steps: of the linear ramp, at least 1; None is a third of all steps.
        cycles: number of cycles, at least 1.
    """

    def __init__(
        self, kind: Literal["none", "linear", "cyclical"] = "none", warmup_steps: int | None = None, cycles: int = 4
    ) -> None:
        for name, value in (("kl_warmup_steps", warmup_steps), ("kl_cycles", cycles)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}; leave it out.")
        if kind not in ("none", "linear", "cyclical"):
            raise ValueError(f"`kl_annealing` must be none, linear or cyclical, got {kind!r}; name one of them.")
        if warmup_steps is not None and kind != "linear":
            raise ValueError(
                f"`kl_warmup_steps` must be left out unless `kl_annealing` is linear, got it with {kind!r}."
            )
        self.kind, self.warmup_steps, self.cycles = kind, warmup_steps, cycles

    def scale(self, step: int, max_steps: int) -> float:
        """Factor of the KL terms at `step`, in [0, 1]."""
        if self.kind == "none":
            return 1.0
        if self.kind == "linear":
            return min(1.0, step / (self.warmup_steps or max(1, max_steps // 3)))
        cycle = max(1, math.ceil(max_steps / self.cycles))
        return min(1.0, 2 * (step % cycle) / cycle)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Set both for this step."""
        model = getattr(model, "module", model)
        model.kl_scale = self.scale(state.global_step, state.max_steps)
        model.model.latent_head.anneal(state.global_step / max(1, state.max_steps))
