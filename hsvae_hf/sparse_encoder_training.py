"""Codes trained by the `SparseEncoderTrainer` of sentence-transformers: a loss, and a callback that finishes them."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hsvae_hf.active_dims import fit_code_scale, hold_target, sets_threshold
from hsvae_hf.callbacks import CALIBRATION_ROWS, ActiveDimsController, AnnealingCallback, logger, unwrap
from hsvae_hf.encoding import evaluation_mode
from hsvae_hf.extras import require
from hsvae_hf.models.modeling_text_vae import TextVAEForPreTraining
from hsvae_hf.sentence_transformers import find_codes
from hsvae_hf.statistics import NEIGHBOUR_ROWS, fit_similarity
from hsvae_hf.vector_data import VECTOR_ROWS

require("sentence_transformers", extra="sentence-transformers")
from sentence_transformers import SparseEncoder, SparseEncoderTrainer  # noqa: E402 - once it is known to be there

BATCH = 1024  # vectors that the threshold is set on, per forward pass


class HSVAELoss(nn.Module):
    """The coder's own objective: reconstruction, KL terms, balance and neighbours of the vectors that reach it.

    The vectors of all columns of a batch are one batch of the objective. They are detached: this loss trains the coder
    alone, and the encoder learns from `loss`, if it is there and the encoder is not frozen. An encoder that learns
    moves what the coder reconstructs, while the coder's statistics of the vectors stay those of the start.

    Annealing, the control of the number of non-zeros, and the threshold are set by `SparseCodesCallback`.

    Args:
        model: ends with a `SparseCodes`, whose coder has its decoder.
        loss: another loss of sparse encoders, on the codes, such as `SparseMultipleNegativesRankingLoss(model)`; None
            leaves the objective alone, which needs no labels and takes a single column too.
        weight: of the objective (>= 0). It is in nats per sentence, of the order of the vectors' width; losses on codes
            are of the order of 1.

    Raises:
        ValueError: if `model` has no such `SparseCodes`, `loss` takes no codes, or `weight` is negative.

    Example:
        >>> from sentence_transformers import SparseEncoderTrainer
        >>> loss = HSVAELoss(model)  # doctest: +SKIP
        >>> trainer = SparseEncoderTrainer(model, arguments, train_dataset=rows, loss=loss)  # doctest: +SKIP
        >>> trainer.add_callback(SparseCodesCallback(trainer))  # doctest: +SKIP
    """

    def __init__(self, model: SparseEncoder, loss: nn.Module | None = None, weight: float = 1.0) -> None:
        super().__init__()
        _coder(model)
        if loss is not None and not hasattr(loss, "compute_loss_from_embeddings"):
            raise ValueError(
                f"`loss` must be one on codes, got a {type(loss).__name__} without `compute_loss_from_embeddings`; "
                "give one such as SparseMultipleNegativesRankingLoss(model)."
            )
        if not weight >= 0:
            raise ValueError(f"`weight` must be at least 0, got {weight!r}; 1 is the objective as it is.")
        self.model, self.weight = model, weight
        self.loss: Any = loss

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> dict[str, Tensor]:
        """The terms, whose sum is the loss.

        Args:
            sentence_features: a column of sentences each, as the model takes them.
            labels: of `loss`.

        Returns:
            `reconstruction_loss` and `latent_loss` (KL terms, balance and neighbours, each by its weight), scalars, and
            the terms of `loss`.
        """
        outputs = [self.model(dict(features)) for features in sentence_features]
        vectors = torch.cat([output["sentence_vectors"] for output in outputs]).detach()
        objective = _coder(self.model)(vectors=vectors, return_dict=True)
        reconstruction = objective.reconstruction_loss.float()
        terms = {
            "reconstruction_loss": self.weight * reconstruction,
            "latent_loss": self.weight * (objective.loss - reconstruction),
        }
        if self.loss is not None:
            codes = [output["sentence_embedding"] for output in outputs]
            found = self.loss.compute_loss_from_embeddings(codes, labels)
            terms |= found if isinstance(found, Mapping) else {"base_loss": found}
        return terms

    def get_config_dict(self) -> dict[str, Any]:
        """What a model card says of the loss."""
        return {"loss": None if self.loss is None else type(self.loss).__name__, "weight": self.weight}

    @property
    def citation(self) -> str:
        """Of the model, in BibTeX."""
        return """
@inproceedings{prokhorov-etal-2021-learning,
  title     = {Learning Sparse Sentence Encoding without Supervision:
               An Exploration of Sparsity in Variational Autoencoders},
  author    = {Prokhorov, Victor and Li, Yingzhen and Shareghi, Ehsan and Collier, Nigel},
  booktitle = {Proceedings of the 6th Workshop on Representation Learning for NLP (RepL4NLP-2021)},
  pages     = {34--46},
  year      = {2021}
}
"""


class SparseCodesCallback(TrainerCallback):
    """What `hsvae_hf.fit` does beside gradients, for the coder in a `SparseEncoder`.

    Before training: the statistics of the vectors, if nobody has set them. While training: the annealing of the KL, and
    the wanted number of non-zeros (`ActiveDimsController`). After training: the threshold that gives this number on
    rows of `eval_dataset`, or of `train_dataset` without one, the scale of the codes, and whether they are compared by
    cosine or by dot product, which the encoder takes over unless it was told. Without it, codes keep a
    threshold of 0.5. The monitor of `fit` (`CollapseMonitor`) has no counterpart here.

    To be added by `trainer.add_callback(SparseCodesCallback(trainer))`.

    Args:
        trainer: whose model is finished.
        kl_annealing: as of `AnnealingCallback`; "none" for a coder that is trained already.
        kl_warmup_steps: likewise.
        kl_cycles: likewise.

    Raises:
        ValueError: if the trainer's model has no `SparseCodes` whose coder has its decoder.
    """

    def __init__(
        self,
        trainer: SparseEncoderTrainer,
        kl_annealing: Literal["none", "linear", "cyclical"] = "linear",
        kl_warmup_steps: int | None = None,
        kl_cycles: int = 4,
    ) -> None:
        _coder(trainer.model)
        self.trainer = trainer
        self.annealing = AnnealingCallback(kl_annealing, kl_warmup_steps, kl_cycles)
        self.controller = ActiveDimsController()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Set what training itself needs."""
        coder = _coder(self.trainer.model)
        coder.base_model.dimensions_json = None  # names of dimensions as they were
        if not coder.model.standardizer.mean.any():
            coder.model.standardizer.fit(torch.from_numpy(self._vectors(self.trainer.train_dataset, VECTOR_ROWS)))
        self.controller.on_train_begin(args, state, control, model=coder)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Anneal."""
        self.annealing.on_step_begin(args, state, control, model=_coder(self.trainer.model))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Set what codes need."""
        coder = _coder(self.trainer.model)
        self.controller.release(coder)
        held_out = vectors = self._vectors(self.trainer.train_dataset, VECTOR_ROWS)
        if self.trainer.eval_dataset is not None:
            held_out = self._vectors(self.trainer.eval_dataset, CALIBRATION_ROWS)
        if sets_threshold(coder):
            if self.trainer.eval_dataset is None:
                logger.warning(
                    "there is no `eval_dataset`: the threshold is set on rows that the model was trained on, whose "
                    "codes are longer than others. Give held-out rows."
                )
            parts = torch.from_numpy(held_out).to(args.device).split(BATCH)
            hold_target(coder, ({"vectors": part} for part in parts))
        fit_code_scale(coder, vectors)
        fit_similarity(coder, [{"vectors": torch.from_numpy(held_out[:NEIGHBOUR_ROWS]).to(args.device)}])
        find_codes(self.trainer.model).tell_similarity(unwrap(self.trainer.model))

    def _vectors(self, dataset: Any, rows: int) -> np.ndarray:
        """Vectors of an even sample of a data set, all its columns of sentences, `(rows * columns, feature_size)`.

        They are made of the trainer's own batches, so with its prompts.
        """
        model, parts = unwrap(self.trainer.model), []
        with torch.random.fork_rng(), evaluation_mode(model):
            for batch in self.trainer.get_eval_dataloader(_sample(dataset, rows)):
                columns, _ = self.trainer.collect_features(batch)
                parts += [model(column)["sentence_vectors"].float().cpu().numpy() for column in columns]
        return np.concatenate(parts)


def _coder(model: object) -> Any:
    """The coder, a `TextVAEForPreTraining`."""
    coder = find_codes(model).coder
    if not isinstance(coder, TextVAEForPreTraining):
        raise ValueError(
            f"`model` must have a coder with its decoder, got a {type(coder).__name__}; load it with "
            "AutoModelForPreTraining."
        )
    return coder


def _sample(dataset: Any, rows: int) -> Any:
    """`rows` rows of a data set of any kind; of a stream the first, of several data sets as many of each."""
    if isinstance(dataset, dict):
        return type(dataset)({name: _sample(part, rows) for name, part in dataset.items()})
    if not hasattr(dataset, "__len__"):
        return dataset.take(rows)
    return dataset.shuffle(seed=0).select(range(min(rows, len(dataset))))  # rows may be sorted by class
