"""Training in several processes: what they draw alike, and what each draws for itself."""

from typing import Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from hsvae_hf.callbacks import unwrap


class ProcessesCallback(TrainerCallback):
    """Lets several processes train as one would: noise of its own for each, the same budget of the codes for all.

    The Trainer seeds all processes alike. The rows of one would get the noise of the rows of another.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Seed this process; a resumed run goes on with the state that its checkpoint holds.

        Raises:
            ValueError: if processes may have batches of different sizes.
        """
        if args.world_size > 1 and not cast(Any, args.accelerator_config).even_batches:
            raise ValueError(
                "`accelerator_config` must keep `even_batches` with several processes, got False; leave it out: "
                "statistics of a batch are taken over equal parts."
            )
        if args.process_index > 0:
            set_seed(args.seed + args.process_index)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: object
    ) -> None:
        """Seed the draw of the budget, by the step alone."""
        unwrap(model).budget_seed = args.seed + state.global_step if args.world_size > 1 else None
