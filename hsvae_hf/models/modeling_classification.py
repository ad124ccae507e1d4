"""Classification head on draws of a latent."""

import math
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_text_vae import TextVAEConfig
from .modeling_base import TextVAEPreTrainedModel
from .modeling_encoders import learns, traced
from .modeling_latent import Float32Linear
from .modeling_text_vae import TextVAEModel

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


class TextVAEForSequenceClassification(TextVAEPreTrainedModel):
    """Classifier with K-sample Monte-Carlo marginalisation: `p(y|x) = mean_k p(y|z_k)`, `z_k ~ q(z|x)`."""

    _auto_class = "AutoModelForSequenceClassification"
    model_class: type[TextVAEModel]
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", "gamma_kl_scale"]

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__(config)
        self.num_labels = len(config.id2label or {})
        self.model = self.model_class(config)
        width = config.classifier_hidden_size
        self.classifier = nn.Sequential(
            Float32Linear(config.latent_size, width),
            nn.LeakyReLU(),
            Float32Linear(width, width),
            nn.LeakyReLU(),
            Float32Linear(width, self.num_labels),
        )
        self.post_init()
        self.freeze()

    def freeze(self) -> None:
        """Stop gradients of what `freeze_text_encoder` and `freeze_encoder` name."""
        super().freeze()
        if self.config.freeze_encoder:
            self.model.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for a frozen encoder, which keeps its dropout off unless an adapter in it learns."""
        super().train(mode)
        self.model.train(mode and (not self.config.freeze_encoder or learns(self.model)))
        return self

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        vectors: Tensor | None = None,
        **kwargs: object,
    ) -> SequenceClassifierOutput:
        """Classify sentences.

        With `num_samples = K > 0` the draws are random, in evaluation too (seed torch to repeat them); with
        `num_samples = 0` the deterministic code is classified.

        Args:
            input_ids: `(batch, steps)`.
            attention_mask: `(batch, steps)`, 1 for real tokens, padding on either side.
            inputs_embeds: `(batch, steps, embedding_size)` instead of `input_ids`.
            labels: `(batch,)` class ids, -100 for none; `(batch, num_labels)` for multi-label; floats for regression.
                The first ones set the configuration's `problem_type`, if it has none.
            vectors: `(batch, feature_size)`, the encoder's features (before `feature_std`) instead of text.
            kwargs: of `TextVAEModel.forward`.

        Returns:
            Loss, and logits `(batch, num_labels)`: log marginal probabilities (single label), log odds of the marginal
            probabilities (multi-label) or the mean prediction (regression).

        Raises:
            ValueError: if `labels` are outside the range.
        """
        posterior = self.model(input_ids, attention_mask, inputs_embeds, vectors, return_dict=True, **kwargs)
        samples = max(self.config.num_samples, 1)
        if self.config.num_samples > 0:
            tensors = {name: value for name, value in posterior.items() if isinstance(value, Tensor)}
            repeated = {name: value.repeat_interleave(samples, dim=0) for name, value in tensors.items()}
            z = self.model.sample(type(posterior)(**repeated))["z"]
        else:
            z = self.model.unscaled_code(posterior)
        scores = self.classifier(z).unflatten(0, (-1, samples))  # (batch, samples, num_labels)
        problem = self._problem_type(labels)
        if labels is not None and self.config.problem_type is None and not traced():
            # As in transformers: a saved model must know how to read its logits.
            self.config.problem_type = problem
        if problem == "regression":
            logits = scores.mean(1)
        elif problem == "multi_label_classification":
            log_yes, log_no = F.logsigmoid(scores).logsumexp(1), F.logsigmoid(-scores).logsumexp(1)
            logits = log_yes - log_no
        else:
            logits = scores.log_softmax(-1).logsumexp(1) - math.log(samples)
        loss = None if labels is None else self._loss(problem, logits, labels)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=posterior.hidden_states, attentions=posterior.attentions
        )

    def _problem_type(self, labels: Tensor | None) -> ProblemType:
        if self.config.problem_type is not None:
            return self.config.problem_type
        if self.num_labels == 1:
            return "regression"
        several = labels is not None and (labels.is_floating_point() or labels.shape[1:] == (self.num_labels,))
        return "multi_label_classification" if several else "single_label_classification"

    def _loss(self, problem: str, logits: Tensor, labels: Tensor) -> Tensor:
        if problem == "regression":
            return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).view_as(logits.squeeze(-1)))
        if problem == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        labels = labels.reshape(-1).long()
        if not traced():
            self._check_labels(labels)
        return F.nll_loss(logits, labels)

    def _check_labels(self, labels: Tensor) -> None:
        given = torch.where(labels == -100, 0, labels)  # what a loss of torch leaves out
        lowest, highest = given.min().item(), given.max().item()
        if lowest < 0 or highest >= self.num_labels:
            raise ValueError(
                f"`labels` must be from 0 to {self.num_labels - 1}, got {lowest if lowest < 0 else highest}; "
                "set `num_labels` to the number of classes."
            )
