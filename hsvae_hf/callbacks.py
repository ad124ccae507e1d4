"""Callbacks of training: annealing, the number of non-zeros, finishing, the monitor, what is printed at each step."""

import inspect
import logging
import math
import re
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, Literal, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import has_length

from hsvae_hf.active_dims import fit_code_scale, hold_target, sets_threshold
from hsvae_hf.advice import advice
from hsvae_hf.console import device_name, duration, figure, say
from hsvae_hf.encoding import evaluation_mode
from hsvae_hf.models.processes import mean_over_processes
from hsvae_hf.statistics import NEIGHBOUR_ROWS, corpus_statistics, fit_similarity
from hsvae_hf.tokens import NO_LIMIT
from hsvae_hf.training_arguments import check_annealing
from hsvae_hf.vector_data import VECTOR_ROWS, VectorDataset

logger = logging.getLogger(__name__)
CONTROL_RATE = 0.03  # share of the log ratio of non-zeros that is corrected per step
CALIBRATION_ROWS = 4000  # that the threshold for a wanted number of active dimensions is set on
LOGGED = (  # statistics of the monitor
    "active_dims",
    "active_units",
    "dead_dims",
    "always_on_dims",
    "mutual_information",
    "gate_std",
    "switching_fraction",
    "average_hoyer_samples",
    "average_hoyer_posterior_means",
    "neighbours_kept",
)
ESTIMATE_STEPS, ESTIMATE_SECONDS, LEAST_SECONDS = 10, 20.0, 3.0  # after which the time left is said
SHORT_RUN = 60.0  # seconds left, below which the logs do not say it
LONG_RUN = 1800.0  # seconds left, from which on the remedy is said
LABELS = {
    "reconstruction_loss": "reconstruction",
    "z_kl": "KL of values",
    "gamma_kl": "KL of gates",
    "squared_error": "squared error",
    "active_dims": "dimensions on",
    "active_units": "varying",
    "dead_dims": "never on",
    "always_on_dims": "always on",
    "mutual_information": "mutual information",
    "neighbours_kept": "neighbours kept",
}
NOT_SHOWN = ("epoch", "runtime", "per_second", "grad_norm", "learning_rate", "flos", "hoyer", "gate_std", "fraction")


def unwrap(model: object) -> Any:
    """The model of this package inside what runs it on several devices, or adapts it."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def held_out_batches(trainer: Trainer, rows: int) -> Iterator[dict[str, Tensor]]:
    """An even sample of the trainer's evaluation set, on the model's device, in this process alone.

    Without an evaluation set, of the training set. Of a stream, the first `rows` rows.
    """
    dataset: Any = trainer.train_dataset if trainer.eval_dataset is None else trainer.eval_dataset
    if isinstance(dataset, dict):  # several, by name
        dataset = next(iter(dataset.values()))
    return sample_batches(trainer, dataset, rows)


def sample_batches(trainer: Trainer, dataset: Any, rows: int) -> Iterator[dict[str, Tensor]]:
    """An even sample of a data set, in the trainer's batches."""
    if isinstance(dataset, Dataset) and trainer.args.remove_unused_columns:  # as the Trainer does
        read = inspect.signature(unwrap(trainer.model).forward).parameters
        dataset = dataset.select_columns([name for name in dataset.column_names if name in read])
    if has_length(dataset):  # rows may be sorted by class
        dataset = Subset(cast(Any, dataset), np.random.default_rng(0).permutation(len(dataset))[:rows].tolist())
    size = min(rows, trainer.args.per_device_eval_batch_size)
    loader = DataLoader(dataset, size, collate_fn=trainer.data_collator)
    for place, batch in enumerate(islice(loader, math.ceil(rows / size))):
        yield {name: value[: rows - place * size].to(trainer.args.device) for name, value in batch.items()}


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
        check_annealing(kind, warmup_steps, cycles)
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
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: object
    ) -> None:
        """Set both for this step."""
        model = unwrap(model)
        model.kl_scale = self.scale(state.global_step, state.max_steps)
        model.model.latent_head.anneal(state.global_step / max(1, state.max_steps))


class ActiveDimsController(TrainerCallback):
    """Holds the wanted number of non-zeros per code by the weight of the gate's KL.

    After every forward pass in training, once the KL is annealed, the weight moves by
    `(active / wanted) ** CONTROL_RATE`: up where the batch's codes, of all processes, have too many non-zeros, down
    where too few. The
    factor is the buffer `gamma_kl_scale` of the model, so a checkpoint keeps it.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: object
    ) -> None:
        """Begin to watch the codes, if a number of non-zeros is wanted."""
        model = unwrap(model)
        self.release(model)  # a run that failed may have left its hook
        wanted = model.model.latent_head.target_active_dims
        if wanted is not None and hasattr(model, "gamma_kl_scale"):  # not of a classifier
            model.active_dims_hook = model.model.register_forward_hook(partial(self._adapt, model, wanted))

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: object = None,
        **kwargs: object,
    ) -> None:
        """Stop watching."""
        self.release(unwrap(model))

    @staticmethod
    def release(model: object) -> None:
        """Stop watching a model, whoever watches it."""
        hook = model.__dict__.pop("active_dims_hook", None)
        if hook is not None:
            hook.remove()

    @staticmethod
    @torch.no_grad()
    def _adapt(model: Any, wanted: float, body: object, inputs: object, posterior: Any) -> None:
        if not model.training or model.kl_scale < 1.0:
            return
        active = (posterior.latent != 0).float().sum(-1).mean()  # open gates, whatever the limits of codes say
        active = mean_over_processes(active)
        ratio = (active / wanted).clamp(0.25, 4.0)
        model.gamma_kl_scale.mul_(ratio**CONTROL_RATE).clamp_(1e-4, 1e4)


class FinishCallback(TrainerCallback):
    """Finishes a model: everything that is set by data, not by gradients.

    Before training: the length of generated sentences, and the statistics of the vectors, if vectors are reconstructed
    and nobody has set them. After training: the threshold that gives the wanted number of non-zeros on held-out rows,
    or the number that draws use where none is wanted (`hold_target`); the scale of the codes of vectors; and how these
    are compared: by cosine or by dot product, whichever keeps more of the neighbours of held-out vectors
    (`fit_similarity`). A resumed run ends in the same way.

    `TextVAETrainer` has it. Another Trainer takes it by `trainer.add_callback(FinishCallback(trainer))`.

    Args:
        trainer: whose model is finished, on the rows of its `eval_dataset`, or of its `train_dataset` without one.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: object
    ) -> None:
        """Set what training itself needs."""
        model = unwrap(model)
        if any(weight.requires_grad for weight in model.base_model.parameters()):
            model.base_model.dimensions_json = None  # names of dimensions as they were
        if not hasattr(model, "decoder"):  # a classifier
            return
        limit = getattr(self.trainer.processing_class, "model_max_length", NO_LIMIT)
        if model.config.decodes_words and limit < NO_LIMIT:
            model.generation_config.max_length = limit + 1  # the start token counts
        if not model.config.decodes_words and not model.model.standardizer.mean.any():
            self._fit_standardizer(model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: object
    ) -> None:
        """Set what codes need."""
        model = unwrap(model)
        if not hasattr(model, "decoder"):
            return
        if sets_threshold(model):
            if self.trainer.eval_dataset is None:
                logger.warning(
                    "there is no `eval_dataset`: the threshold is set on rows that the model was trained on, whose "
                    "codes are longer than others. Give held-out rows."
                )
            hold_target(model, held_out_batches(self.trainer, CALIBRATION_ROWS))
        if not model.config.decodes_words:
            fit_code_scale(model, self._vectors(model))
            fit_similarity(model, held_out_batches(self.trainer, NEIGHBOUR_ROWS))

    def _fit_standardizer(self, model: Any) -> None:
        dataset: Any = self.trainer.train_dataset
        if isinstance(dataset, VectorDataset):
            mean, std = dataset.moments.mean, dataset.moments.std
            model.model.standardizer.set_statistics(torch.from_numpy(mean), torch.from_numpy(std))
        else:
            model.model.standardizer.fit(torch.from_numpy(self._vectors(model)))

    def _vectors(self, model: Any) -> np.ndarray:
        """Vectors of the training set, all or some thousands, `(rows, feature_size)`."""
        dataset: Any = self.trainer.train_dataset
        if isinstance(dataset, VectorDataset):
            return dataset.sample
        parts = []
        with evaluation_mode(model):
            for batch in sample_batches(self.trainer, dataset, VECTOR_ROWS):
                if "vectors" not in batch:
                    text = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
                    batch["vectors"] = model.model.encoder(**text).pooler_output
                parts.append(batch["vectors"].float().cpu().numpy())
        return np.concatenate(parts)


class ResumedCallback(TrainerCallback):
    """Refuses to train a finished run for one more step, as the Trainer would; says where its length has changed."""

    max_steps: int | None = None  # that the run was started with

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
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


class CollapseMonitor(TrainerCallback):
    """At every evaluation, statistics of the latent on some rows of the evaluation set; training goes on unchanged.

    Codes are counted as the finished model's, whose threshold is set as `FinishCallback` sets it.

    To be added by `trainer.add_callback(CollapseMonitor(trainer))`.

    They are logged as `eval_active_dims` and so on, to wherever the trainer logs; the KL of every dimension goes to
    TensorBoard as a histogram. Advice, one sentence, is a warning of this module's logger.

    Args:
        trainer: whose `eval_dataset` is looked at, and which logs.
        rows: how many of it.
    """

    def __init__(self, trainer: Trainer, rows: int = 1000) -> None:
        self.trainer, self.rows = trainer, rows
        self.statistics: dict[str, Any] = {}  # of the last evaluation; see `corpus_statistics`
        self._warned: tuple[bool, str] | None = None  # whether at the end, and the sentence without numbers

    def figures(self) -> dict[str, float]:
        """What was logged at the last evaluation, by its names in the log."""
        return {f"eval_{name}": self.statistics[name] for name in LOGGED if name in self.statistics}

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Measure, log, advise; the first process does so for all."""
        if self.trainer.eval_dataset is None or not state.is_world_process_zero:
            return
        model = unwrap(self.trainer.model)
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


def report_steps(trainer: Trainer, remedy: str | None = None) -> None:
    """Let a trainer report by `ReportCallback`, in place of what transformers prints.

    Args:
        trainer: a trainer of any kind.
        remedy: advice for a run with hours left on a CPU.
    """
    usual = [trainer.pop_callback(kind) for kind in (PrinterCallback, ProgressCallback, ReportCallback)]
    if any(callback is not None for callback in usual):  # in a notebook there is a table, which stays
        trainer.add_callback(ReportCallback(remedy))
        if sys.stderr.isatty() and not trainer.args.disable_tqdm:
            trainer.add_callback(_Bars())


class ReportCallback(TrainerCallback):
    """Says how long training is, soon how much time is left, and every log in one line, with the time left again.

    Args:
        remedy: what to do where much time is left on a CPU.
    """

    def __init__(self, remedy: str | None = None) -> None:
        self.remedy = remedy
        self.training = False
        self._start: tuple[int, float] | None = None  # step and time that the estimate counts from
        self._left: float | None = None  # seconds, once that is known

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Say the number of steps and the device."""
        self.training, self._start, self._left = state.is_world_process_zero, None, None
        if not self.training:
            return
        batches, parts = kwargs.get("train_dataloader"), []
        if has_length(batches):
            epochs = state.max_steps * args.gradient_accumulation_steps / max(1, len(batches))
            parts.append(f"{figure(epochs)} epochs")
        if state.global_step:
            parts.append(f"from step {state.global_step:,} on")
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = f"{state.max_steps:,} steps of {rows:,} rows" + (f" ({', '.join(parts)})" if parts else "")
        say(f"training: {steps}, on {device_name(args.device)}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Reckon how much time is left, by the steps after the first, which is slower; say it when it is known."""
        if not self.training:
            return
        now = time.monotonic()
        if self._start is None:
            self._start = state.global_step, now
        steps, seconds = state.global_step - self._start[0], now - self._start[1]
        known = seconds >= ESTIMATE_SECONDS or (steps >= ESTIMATE_STEPS and seconds >= LEAST_SECONDS)
        if not known or steps == 0:
            return
        first, self._left = self._left is None, (state.max_steps - state.global_step) * seconds / steps
        if first:
            slow = self.remedy is not None and self._left >= LONG_RUN and torch.device(args.device).type == "cpu"
            say(f"about {duration(self._left)} left" + (f"; {self.remedy}" if slow else ""))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Print one line, while training."""
        if not self.training or not logs:
            return
        if "train_runtime" in logs:
            say(f"trained for {duration(logs['train_runtime'])}")
            return
        held_out = any(name.startswith("eval_") for name in logs)
        group = "train" if not held_out else ("held out" if "eval_loss" in logs else "codes")
        named = {name.removeprefix("eval_"): value for name, value in logs.items()}
        kept = {name: value for name, value in named.items() if not any(part in name for part in NOT_SHOWN)}
        shown = [
            f"{LABELS.get(name, name.replace('_', ' '))} {value if isinstance(value, str) else figure(value, 4)}"
            for name, value in kept.items()
        ]
        if group == "train" and self._left is not None and self._left >= SHORT_RUN:
            shown.append(f"about {duration(self._left)} left")
        width = len(f"{state.max_steps:,}")
        say(f"step {state.global_step:>{width},}/{state.max_steps:,}  {group:<8}  {', '.join(shown)}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Say no more: what is logged later is the caller's to print."""
        self.training = False


class _Bars(ProgressCallback):
    """The bars of transformers, without its lines."""

    def on_log(self, *args: object, **kwargs: object) -> None:
        """Print nothing."""
