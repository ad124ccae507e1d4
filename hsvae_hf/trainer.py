"""Trainer that logs every term of the objective and leaves whole checkpoints or none."""

import json
import math
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    TrainOutput,
    get_last_checkpoint,
    has_length,
    rotate_checkpoints,
)

from hsvae_hf.batching import LengthGroupedSampler
from hsvae_hf.callbacks import (
    ActiveDimsController,
    AnnealingCallback,
    FinishCallback,
    ResumedCallback,
    report_steps,
    unwrap,
)
from hsvae_hf.checkpoints import COURSE_NAME, check_intact, check_same_data, check_same_source, course
from hsvae_hf.files import UNFINISHED, claimed_folder, uninterrupted
from hsvae_hf.hub import model_card
from hsvae_hf.processes import ProcessesCallback
from hsvae_hf.training_arguments import TERMS
from hsvae_hf.vector_data import VectorDataset, WindowSampler


class WholeCheckpointTrainer(Trainer):
    """Trainer whose checkpoints get their name once they are whole, so that a killed run can always resume."""

    source: str | None = None  # of a classifier: the `weights_fingerprint` of the trained model under it
    _unfinished = False
    _course: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._resumed = ResumedCallback()
        self.add_callback(self._resumed)
        report_steps(self)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """The Trainer's own; where `overwrite_output_dir` is set, the folder is emptied once all is ready to start.

        Raises:
            ValueError: if there is nothing to train on or, in a finished run that is resumed, nothing left to do; if
                the run was started with other data; if another process writes into the folder; if the loss is no
                longer finite.
        """
        batches = self.get_train_dataloader()
        if has_length(batches) and len(batches) == 0:
            raise ValueError("`train_dataset` must fill a batch, got too few rows; lower per_device_train_batch_size.")
        self.create_optimizer()
        folder = Path(str(self.args.output_dir))
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if resume_from_checkpoint:
            check_intact(str(resume_from_checkpoint))
            check_same_data(resume_from_checkpoint, self.train_dataset)
            if self.source is not None:
                check_same_source(resume_from_checkpoint, self.source)
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            self._resumed.max_steps = state.max_steps
        self._course = course(self.args, self.train_dataset) | ({"source": self.source} if self.source else {})
        first = self.args.process_index == 0
        with claimed_folder(folder) if first else nullcontext():
            overwrite = getattr(self.args, "overwrite_output_dir", False) and not resume_from_checkpoint
            if overwrite and first:
                for path in folder.iterdir():
                    if path.name != UNFINISHED:
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            found = super().train(resume_from_checkpoint, *args, **kwargs)
        self._check_weights()
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's own; a loss that is not finite ends the run before a checkpoint keeps what it did."""
        for name, value in logs.items():
            watched = name.endswith("loss") or (name == "grad_norm" and not self.args.fp16)  # fp16 skips such a step
            if watched and not math.isfinite(value):
                self._raise_diverged({"loss": "the loss"}.get(name, name), value)
        super().log(logs, start_time)

    def _raise_diverged(self, what: str, value: object) -> NoReturn:
        raise ValueError(
            f"`learning_rate` must be lower: {what} at step {self.state.global_step} is {value}; the checkpoints "
            "before it are whole."
        )

    def _check_weights(self) -> None:
        if not all(bool(weight.isfinite().all()) for weight in cast(nn.Module, self.model).parameters()):
            self._raise_diverged("a weight", "not finite")

    def _determine_best_metric(self, metrics: dict[str, float], trial: object) -> bool:
        try:
            return super()._determine_best_metric(metrics, trial)
        except KeyError as error:
            names = ", ".join(name.removeprefix("eval_") for name in metrics)
            raise ValueError(
                f"`metric_for_best_model` must be measured in evaluation, got {self.args.metric_for_best_model!r}; "
                f"name one of {names}."
            ) from error

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Tied weights are saved once: none of them is missing; what is missing else is an error."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [name for name in load_result.missing_keys if name not in tied]
        if missing:
            raise ValueError(
                f"`resume_from_checkpoint` must hold all weights of the model, got one without {missing[0]!r}; resume "
                "from the one before it."
            )
        load_result.missing_keys.clear()
        super()._issue_warnings_after_load(load_result)

    def create_model_card(self, *args: Any, model_name: str | None = None, **kwargs: Any) -> None:
        """The card of `hsvae_hf.hub.model_card`, written to `output_dir`; called by `push_to_hub`."""
        if self.is_world_process_zero():
            folder = Path(str(self.args.output_dir))
            model_card(folder, self.hub_model_id or model_name or folder.name).save(folder / "README.md")

    def _get_output_dir(self, trial: object) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._unfinished else folder

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        """Write a checkpoint under a temporary name, then rename it: a killed run leaves whole ones only."""
        self._check_weights()
        run = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(run / UNFINISHED / name, ignore_errors=True)  # of an attempt that failed
        self.accelerator.wait_for_everyone()
        self._unfinished = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._unfinished = False
        self.accelerator.wait_for_everyone()
        staged, best = run / UNFINISHED / name, self.state.best_model_checkpoint
        if best is not None and Path(best).parent.name == UNFINISHED:
            self.state.best_model_checkpoint = str(run / Path(best).name)
        if self.args.should_save:
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            (staged / COURSE_NAME).write_text(json.dumps(self._course, indent=2) + "\n")
            replaced = run / UNFINISHED / "replaced"  # a deletion that is cut short leaves half of it
            with uninterrupted():
                if (run / name).exists():
                    (run / name).rename(replaced)
                staged.rename(run / name)
            shutil.rmtree(replaced, ignore_errors=True)
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()


class TextVAETrainer(WholeCheckpointTrainer):
    """Trainer that also logs the terms of the objective and the perplexity per token, in training and evaluation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.label_names: list[str] = []  # the input is the target: without this, evaluation looks for labels
        self._terms: dict[str, dict[str, Tensor]] = {"": {}, "eval_": {}}
        names = ("kl_annealing", "kl_warmup_steps", "kl_cycles")
        self.add_callback(AnnealingCallback(*(getattr(self.args, name) for name in names if hasattr(self.args, name))))
        self.add_callback(ProcessesCallback())
        self.add_callback(ActiveDimsController())
        self.add_callback(FinishCallback(self))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As of every run; one that fails leaves no hook on the model."""
        try:
            return super().train(*args, **kwargs)
        finally:
            ActiveDimsController.release(unwrap(self.model))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's loss; its other terms are summed up for the next log."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        rows = len(next(iter(inputs.values())))
        sums = self._terms["" if model.training else "eval_"]
        terms = {name: outputs.get(name) for name in TERMS}
        weight = 1.0 if model.training else float(rows)  # as the Trainer weighs the loss that stands beside them
        # nn.DataParallel gathers scalars into vectors
        batch = {name: value.detach().float().mean() * weight for name, value in terms.items() if value is not None}
        batch["weight"] = loss.new_full((), weight)
        if "num_tokens" in outputs:  # words: the perplexity is theirs
            batch["num_tokens"] = outputs["num_tokens"].float().sum()
            batch["nats"] = outputs["reconstruction_loss"].detach().float().mean() * rows
        for name, value in batch.items():
            sums[name] = sums[name] + value if name in sums else value
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms' means since the last log, over all processes, to what is logged."""
        found = next((name for name in logs if name.endswith("loss") and name != "train_loss"), None)
        prefix = "" if found is None else found.removesuffix("loss")  # that of an evaluation is the caller's choice
        mode = "eval_" if prefix else ""
        if found is not None and self._terms[mode]:
            names, sums = zip(*self._terms[mode].items(), strict=True)
            self._terms[mode] = {}
            total = dict(zip(names, self.accelerator.reduce(torch.stack(sums), "sum").tolist(), strict=True))
            weight, nats, tokens = total.pop("weight"), total.pop("nats", None), total.pop("num_tokens", None)
            logs |= {f"{prefix}{name}": value / weight for name, value in total.items()}
            if tokens is not None:
                logs[f"{prefix}perplexity"] = math.exp(min(nats / tokens, 700.0))
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The Trainer's own; sums up the terms of this data set alone."""
        self._terms["eval_"] = {}
        return super().evaluation_loop(*args, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weights of layers alone: pseudo-inputs do not decay towards 0."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.endswith("pseudo_inputs")]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # The argument has lost the column `length`, which the model does not read.
        dataset: Any = self.train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if isinstance(dataset, VectorDataset) and not dataset.in_memory:
            return WindowSampler(dataset, seed, epoch=self._epoch)
        columns = getattr(dataset, "column_names", None) or []
        if self.args.train_sampling_strategy != "group_by_length" or "length" not in columns:
            return super()._get_train_sampler(train_dataset)
        model = unwrap(self.model)
        even = model.model.latent_head.needs_even_batches or bool(model.config.feature_std)
        batch = self.args.train_batch_size * self.args.world_size
        return LengthGroupedSampler(
            dataset["length"][:],
            batch,
            seed,
            window=1 if even else 8,  # one batch sorted by itself is not grouped
            epoch=self._epoch,
        )

    def _epoch(self) -> int:
        return int(self.state.epoch or 0)
