"""What the latent does while training goes on: a callback that logs it, and says when something is wrong."""

import logging
import math
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import has_length

from hsvae_hf.calibration import hold_target
from hsvae_hf.evaluation import advice, corpus_statistics
from hsvae_hf.extras import require

logger = logging.getLogger(__name__)
CALIBRATION_ROWS = 4000  # that the threshold for a wanted number of active dimensions is set on
LOGGED: tuple[str, ...] = ("active_dims", "active_units", "dead_dims", "always_on_dims", "mutual_information")
LOGGED += (
    "gate_std",
    "switching_fraction",
    "average_hoyer_samples",
    "average_hoyer_posterior_means",
    "neighbours_kept",
)


def held_out_batches(trainer: Trainer, rows: int) -> Iterator[dict[str, Tensor]]:
    """An even sample of the trainer's evaluation set, on the model's device, in this process alone.

    Of a stream, the first `rows` rows.
    """
    dataset: Any = trainer.eval_dataset
    if has_length(dataset):  # rows may be sorted by class
        dataset = Subset(cast(Any, dataset), np.random.default_rng(0).permutation(len(dataset))[:rows].tolist())
    size = min(rows, trainer.args.per_device_eval_batch_size)
    loader = DataLoader(dataset, size, collate_fn=trainer.data_collator)
    for place, batch in enumerate(islice(loader, math.ceil(rows / size))):
        yield {name: value[: rows - place * size].to(trainer.args.device) for name, value in batch.items()}


class CollapseMonitor(TrainerCallback):
    """At every evaluation, statistics of the latent on some rows of the evaluation set; training goes on unchanged.

    Codes are counted as the finished model's, whose threshold holds the wanted number of active dimensions.

    To be added by `trainer.add_callback(CollapseMonitor(trainer))`.

    They are logged as `eval_active_dims` and so on, to wherever the trainer logs; the KL of every dimension goes to
    TensorBoard as a histogram. Advice, one sentence, is a warning of this module's logger.

    Args:
        trainer: whose `eval_dataset` is looked at, and which logs.
        rows: how many of it.

    Raises:
        ImportError: without `evaluate`, of the extra `train`.
    """

    def __init__(self, trainer: Trainer, rows: int = 1000) -> None:
        require("evaluate")
        self.trainer, self.rows = trainer, rows
        self.statistics: dict[str, Any] = {}  # of the last evaluation; see `corpus_statistics`
        self._warned: tuple[bool, str] | None = None  # whether at the end, and the sentence without numbers

    def figures(self) -> dict[str, float]:
        """What was logged at the last evaluation, by its names in the log."""
        return {f"eval_{name}": self.statistics[name] for name in LOGGED if name in self.statistics}

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, log, advise; the first process does so for all."""
        if self.trainer.eval_dataset is None or not state.is_world_process_zero:
            return
        model: Any = self.trainer.accelerator.unwrap_model(self.trainer.model)
        modes = model.training
        with torch.random.fork_rng():  # training goes on as if nobody had looked
            threshold = getattr(model.config, "active_threshold", None)
            hold_target(model.eval(), held_out_batches(self.trainer, CALIBRATION_ROWS))
            self.statistics = corpus_statistics(model, held_out_batches(self.trainer, self.rows))
            if threshold is not None:  # training goes by its own
                model.config.active_threshold = threshold
        model.train(modes)
        self.trainer.log(self.figures())
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                kl = torch.tensor(self.statistics.get("kl_per_dimension", [0.0]))
                callback.tb_writer.add_histogram("eval/kl_per_dimension", kl, state.global_step)
        sentence = advice(self.statistics, model.config)
        last = 0 < state.max_steps <= state.global_step
        found = None if sentence is None else (last, re.sub(r"\d+", "", sentence))
        if found is not None and found != self._warned:  # once, and again at the end if it is still so
            logger.warning("step %d: %s", state.global_step, sentence)
        self._warned = found
