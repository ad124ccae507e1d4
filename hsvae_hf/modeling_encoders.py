"""Text encoders: padded token ids in, one feature vector per sentence out, exact under padding on either side."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel

from .configuration_text_vae import TextVAEConfig
from .pooling import pool


def check_ids(ids: Tensor, mask: Tensor, vocab_size: int, name: str) -> None:
    """Raise a clear error for a row without tokens or an id outside the vocabulary (one device sync, eagerly)."""
    if torch.compiler.is_compiling():
        return
    if ids.shape[0] == 0 or ids.shape[1] == 0:
        raise ValueError(f"`{name}` must hold at least one token, got shape {tuple(ids.shape)}; drop empty batches.")
    real = ids.masked_fill(~mask, 0)
    shortest, smallest, largest = torch.stack([mask.sum(dim=1).min(), real.min(), real.max()]).tolist()
    if shortest == 0:
        raise ValueError(
            f"`{name}` must have a token in every row, got a row of padding alone; the tokenizer ends every sentence, "
            "even an empty one, with its end-of-sentence token."
        )
    if smallest < 0 or largest >= vocab_size:
        raise ValueError(
            f"`{name}` must hold ids from 0 to {vocab_size - 1}, got {smallest if smallest < 0 else largest}; "
            "use the tokenizer that was saved with this model."
        )


def real_tokens_first(mask: Tensor) -> Tensor:
    """Indices `(batch, steps)` that move every row's real tokens to its front, wherever the padding is."""
    return mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)


class TextEncoder(nn.Module):
    """What every encoder does with its input; a subclass turns right-padded embeddings or ids into features."""

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """Encode a padded batch; padding, on whichever side it is, does not change the result.

        Args:
            input_ids: `(batch, steps)`.
            attention_mask: `(batch, steps)`, 1 for real tokens; all are real without it.
            inputs_embeds: `(batch, steps, width of the word embeddings)` instead of `input_ids`.

        Returns:
            Features, `(batch, feature_size)`.

        Raises:
            ValueError: unless exactly one of `input_ids` and `inputs_embeds` is given; for a row without tokens; for
                ids outside the vocabulary; for more tokens than the encoder has positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`, got both or neither.")
        if inputs_embeds is not None:
            ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        else:
            ids = cast(Tensor, input_ids)
        mask = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        check_ids(ids, mask, self.get_word_embeddings().num_embeddings, "input_ids")
        order = real_tokens_first(mask)
        if inputs_embeds is None:
            ids = ids.masked_fill(~mask, 0).gather(1, order)
        else:
            inputs_embeds = inputs_embeds.gather(1, order.unsqueeze(-1).expand_as(inputs_embeds))
        return self.encode(ids, mask.gather(1, order), inputs_embeds)

    def get_word_embeddings(self) -> nn.Embedding:
        """The word embeddings."""
        raise NotImplementedError

    def set_word_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings."""
        raise NotImplementedError

    def encode(self, ids: Tensor, mask: Tensor, inputs_embeds: Tensor | None) -> Tensor:
        """Features of a right-padded batch, from `inputs_embeds` where they are given, else from `ids`."""
        raise NotImplementedError


class GRUEncoder(TextEncoder):
    """Word embeddings and a GRU; the features are its state after the last real token (end of sentence)."""

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.gru = nn.GRU(config.embedding_size, config.hidden_size, batch_first=True)

    def get_word_embeddings(self) -> nn.Embedding:
        """The word embeddings, shared with the decoder if `tie_word_embeddings` is set."""
        return self.embed_tokens

    def set_word_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings."""
        self.embed_tokens = value

    def encode(self, ids: Tensor, mask: Tensor, inputs_embeds: Tensor | None) -> Tensor:
        """The state after each row's last real token, `(batch, hidden_size)`."""
        # Not a PackedSequence: its backward pass fills a gradient of the whole batch at every step, quadratic in steps.
        states, _ = self.gru(self.embed_tokens(ids) if inputs_embeds is None else inputs_embeds)
        return states[torch.arange(len(ids), device=ids.device), mask.sum(dim=1) - 1]


class TransformerEncoder(TextEncoder):
    """Any text encoder of transformers; the features are its last layer, pooled over the real tokens."""

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__()
        self.config, self.frozen = config, config.freeze_text_encoder
        self.adopt(AutoModel.from_config(config.encoder_config))

    def adopt(self, transformer: PreTrainedModel) -> None:
        """Use this model; its own pooler, which nothing here reads, is dropped."""
        if getattr(transformer, "pooler", None) is not None:
            setattr(transformer, "pooler", None)  # noqa: B010
        self.transformer = transformer.requires_grad_(not self.frozen)

    def train(self, mode: bool = True) -> "TransformerEncoder":
        """Training mode, except for a frozen encoder, which keeps its dropout off."""
        return super().train(mode and not self.frozen)

    def get_word_embeddings(self) -> nn.Embedding:
        """The transformer's word embeddings."""
        return cast(nn.Embedding, self.transformer.get_input_embeddings())

    def set_word_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings."""
        self.transformer.set_input_embeddings(value)

    def encode(self, ids: Tensor, mask: Tensor, inputs_embeds: Tensor | None) -> Tensor:
        """The pooled vector of each row, `(batch, feature_size)`."""
        self._check_positions(ids.shape[1])
        inputs: dict[str, Any] = {"input_ids": ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        learned = inputs_embeds is not None and inputs_embeds.requires_grad  # VSC's pseudo-sentences
        with torch.set_grad_enabled(torch.is_grad_enabled() and (learned or not self.frozen)):
            states = self.transformer(attention_mask=mask.long(), **inputs).last_hidden_state
        vectors = pool(states, mask, self.config.pooling)
        return F.normalize(vectors, dim=-1) if self.config.normalize_vectors else vectors

    def _check_positions(self, steps: int) -> None:
        limit = getattr(self.transformer.config, "max_position_embeddings", None)
        table = getattr(getattr(self.transformer, "embeddings", None), "position_embeddings", None)
        if table is not None and table.padding_idx is not None:  # RoBERTa counts from the padding id on
            limit = table.num_embeddings - table.padding_idx - 1
        if limit is not None and steps > limit:
            raise ValueError(
                f"`input_ids` must have at most {limit} tokens for this encoder, got {steps}; truncate, with "
                f"`truncation=True, max_length={limit}` in the tokenizer."
            )


class NoEncoder(TextEncoder):
    """In the place of an encoder, where sentence vectors come from elsewhere."""

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refuse text.

        Raises:
            ValueError: always.
        """
        raise ValueError("`vectors` must be given: this model holds no text encoder. Make them with the one it is for.")

    def get_word_embeddings(self) -> nn.Embedding:
        """Refuse, in the way in which the library expects it of models without words.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("This model takes `vectors`: it holds no text encoder, so no word embeddings.")

    def set_word_embeddings(self, value: nn.Embedding) -> None:
        """Refuse likewise."""
        self.get_word_embeddings()


class Standardizer(nn.Module):
    """Vectors to zero mean and unit variance per dimension, by statistics that are saved with the model."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """Take the statistics of `vectors` `(rows, size)`; a dimension that never varies keeps its scale."""
        std = vectors.double().std(0, correction=0)
        self.mean.copy_(vectors.double().mean(0))
        self.std.copy_(torch.where(std > 1e-8, std, 1.0))

    def forward(self, vectors: Tensor) -> Tensor:
        """`(batch, size)` to the same."""
        return (vectors - self.mean) / self.std

    def undo(self, vectors: Tensor) -> Tensor:
        """Back to the encoder's own units."""
        return vectors * self.std + self.mean
