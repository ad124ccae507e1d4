"""Text encoders: padded token ids in, one feature vector per sentence out.

Padding, on either side, changes no result.
"""

from abc import ABC, abstractmethod
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_text_vae import TextVAEConfig
from .pooling import pool

# Features; then hidden states (None where the call names layers and not this one) and attentions, or no such.
Encoded = tuple[Tensor, tuple[Tensor | None, ...], tuple[Tensor, ...]]


def traced() -> bool:
    """Whether a graph is being recorded, by `torch.compile`, `torch.export` or `torch.jit.trace`: no value is known."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def exporting() -> bool:
    """Whether the graph is that of `torch.export`, as far as torch says so (from 2.7 on)."""
    return bool(getattr(torch.compiler, "is_exporting", bool)())


def exported_gru(gru: nn.GRU, inputs: Tensor) -> Tensor:
    """The states of `gru` `(batch, steps, hidden_size)` by a loop in the graph: `torch.export` unrolls `nn.GRU` itself.

    Args:
        gru: of one layer, from zeros.
        inputs: `(batch, steps, input_size)`.
    """
    from torch._higher_order_ops import scan

    of_inputs, of_state, inputs_bias, state_bias = gru.all_weights[0]

    def step(state: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        own = F.linear(state, of_state, state_bias).chunk(3, dim=-1)
        reset, update, new = given.chunk(3, dim=-1)
        keep = torch.sigmoid(update + own[1])
        new = torch.tanh(new + torch.sigmoid(reset + own[0]) * own[2])
        state = (1 - keep) * new + keep * state
        return state, state.clone()

    start = inputs.new_zeros(inputs.shape[0], gru.hidden_size)
    return cast(Tensor, scan(step, start, F.linear(inputs, of_inputs, inputs_bias), dim=1)[1])


def at_hand(tensor: Tensor) -> bool:
    """Whether its values may be read: not where a graph is recorded, nor on a device that would be waited for."""
    return tensor.device.type == "cpu" and not traced()


def check_ids(ids: Tensor, mask: Tensor, vocab_size: int, name: str) -> None:
    """Raise a clear error for an empty batch and, where values are at hand, for a row without tokens or a wrong id.

    On a CUDA device a wrong id fails later, in the embedding.
    """
    if traced():
        return
    if ids.shape[0] == 0 or ids.shape[1] == 0:
        raise ValueError(f"`{name}` must hold at least one token, got shape {tuple(ids.shape)}; drop empty batches.")
    if not at_hand(ids):
        return
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


def check_positions(steps: int, limit: int | None) -> None:
    """Raise a clear error for more tokens than an encoder has positions."""
    if limit is not None and steps > limit:
        raise ValueError(
            f"`input_ids` must have at most {limit} tokens for this encoder, got {steps}; truncate, with "
            f"`truncation=True, max_length={limit}` in the tokenizer."
        )


def real_tokens_first(mask: Tensor) -> Tensor:
    """Indices `(batch, steps)` that move every row's real tokens to its front, wherever the padding is.

    By sums, since a stable sort is no operator of ONNX.
    """
    real = mask.long()
    before = real.cumsum(1)  # real tokens up to here
    place = torch.where(mask, before, before[:, -1:] + (1 - real).cumsum(1)) - 1
    return torch.zeros_like(place).scatter(1, place, torch.ones_like(place).cumsum(1) - 1)


def in_order(values: Tensor, order: Tensor, dim: int) -> Tensor:
    """`values` `(batch, ...)` with dimension `dim` of each row permuted by `order` `(batch, steps)`."""
    shape = [1] * values.dim()
    shape[0], shape[dim] = order.shape
    return values.gather(dim, order.view(shape).expand_as(values))


def learns(module: nn.Module) -> bool:
    """Whether a parameter in `module` requires a gradient."""
    return any(parameter.requires_grad for parameter in module.parameters())


class TextEncoder(nn.Module, ABC):
    """What every encoder does with its input; a subclass turns right-padded embeddings or ids into features."""

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **asked: bool,
    ) -> BaseModelOutputWithPooling:
        """Encode a padded batch; padding, on whichever side it is, does not change the result.

        Args:
            input_ids: `(batch, steps)`.
            attention_mask: `(batch, steps)`, 1 for real tokens; all are real without it.
            inputs_embeds: `(batch, steps, width of the word embeddings)` instead of `input_ids`.
            token_type_ids: `(batch, steps)`, of a transformer that tells the two parts of a pair apart.
            asked: `output_hidden_states` and `output_attentions`, as in transformers; False unless given.

        Returns:
            `pooler_output`, the features, `(batch, feature_size)`; if asked for, in the order of the input,
            `hidden_states`, the embeddings and then each layer's states, `(batch, steps, width)` each, and
            `attentions`, `(batch, heads, steps, steps)` per layer.

        Raises:
            ValueError: unless exactly one of `input_ids` and `inputs_embeds` is given; for a mask of another shape; for
                a row without tokens; for ids outside the vocabulary; for more tokens than the encoder has positions; if
                `output_attentions` is asked of what has none.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`, got both or neither.")
        if inputs_embeds is not None:
            ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        else:
            ids = cast(Tensor, input_ids)
        mask = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        for name, given in (("attention_mask", mask), ("token_type_ids", token_type_ids)):
            if given is not None and given.shape != ids.shape:
                raise ValueError(f"`{name}` must be {tuple(ids.shape)}, as the tokens, got {tuple(given.shape)}.")
        check_ids(ids, mask, self.config.encoder_vocab_size, "input_ids")
        order = real_tokens_first(mask)
        types: dict[str, Any] = {} if token_type_ids is None else {"token_type_ids": token_type_ids.gather(1, order)}
        if inputs_embeds is None:
            ids = ids.masked_fill(~mask, 0).gather(1, order)
        else:
            inputs_embeds = in_order(inputs_embeds, order, 1)
        features, hidden_states, attentions = self.encode(ids, mask.gather(1, order), inputs_embeds, **types, **asked)
        if asked.get("output_attentions") and (not attentions or attentions[0] is None):
            remedy = "load the model with `attn_implementation='eager'`; a GRU has no attention"
            raise ValueError(f"`output_attentions` must be False where there are none to give, got True; {remedy}.")
        back = order.argsort(dim=1)
        layers: Any = tuple(None if states is None else in_order(states, back, 1) for states in hidden_states)
        weights = tuple(in_order(in_order(layer, back, 2), back, 3) for layer in attentions)
        return BaseModelOutputWithPooling(
            pooler_output=features, hidden_states=layers or None, attentions=weights or None
        )

    @abstractmethod
    def get_word_embeddings(self) -> nn.Embedding:
        """The word embeddings."""

    @abstractmethod
    def set_word_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings."""

    @abstractmethod
    def encode(self, ids: Tensor, mask: Tensor, inputs_embeds: Tensor | None, **asked: object) -> Encoded:
        """Features of a right-padded batch, from `inputs_embeds` where they are given, else from `ids`.

        And what `asked` names: hidden states and attentions, one per layer, or no such.
        """


class GRUEncoder(TextEncoder):
    """Word embeddings and a GRU; the features are its state after the last real token (end of sentence)."""

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.gru = nn.GRU(config.embedding_size, config.hidden_size, batch_first=True)

    def get_word_embeddings(self) -> nn.Embedding:
        """The word embeddings, shared with the decoder if `tie_word_embeddings` is set."""
        return self.embed_tokens

    def set_word_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings."""
        self.embed_tokens = value

    def encode(self, ids: Tensor, mask: Tensor, inputs_embeds: Tensor | None, **asked: object) -> Encoded:
        """The state after each row's last real token, `(batch, hidden_size)`."""
        words = self.embed_tokens(ids) if inputs_embeds is None else inputs_embeds
        # Not a PackedSequence: its backward pass fills a gradient of the whole batch at every step, quadratic in steps.
        unrolled = exporting() and isinstance(self.gru, nn.GRU)  # for ONNX another module is in its place
        states = exported_gru(self.gru, words) if unrolled else self.gru(words)[0]
        return pool(states, mask, "last"), (words, states) if asked.get("output_hidden_states") else (), ()


class TransformerEncoder(TextEncoder):
    """Any text encoder of transformers; the features are its last layer, pooled over the real tokens."""

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__(config)
        self.adopt(AutoModel.from_config(config.encoder_config))

    def adopt(self, transformer: PreTrainedModel) -> None:
        """Use this model; its own pooler, which nothing here reads, is dropped."""
        if getattr(transformer, "pooler", None) is not None:
            setattr(transformer, "pooler", None)  # noqa: B010
        self.transformer = transformer.requires_grad_(not self.config.freeze_text_encoder)

    def train(self, mode: bool = True) -> "TransformerEncoder":
        """Training mode, except for a frozen encoder, which keeps its dropout off unless an adapter in it learns."""
        return super().train(mode and (not self.config.freeze_text_encoder or learns(self)))

    def get_word_embeddings(self) -> nn.Embedding:
        """The transformer's word embeddings."""
        return cast(nn.Embedding, self.transformer.get_input_embeddings())

    def set_word_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings."""
        self.transformer.set_input_embeddings(value)

    def encode(self, ids: Tensor, mask: Tensor, inputs_embeds: Tensor | None, **asked: object) -> Encoded:
        """The pooled vector of each row, `(batch, feature_size)`."""
        if not traced():
            check_positions(ids.shape[1], self.positions)
        inputs: dict[str, Any] = {"input_ids": ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        output = self.transformer(attention_mask=mask.long(), return_dict=True, **inputs, **asked)
        features = pool(output.last_hidden_state, mask, self.config.pooling)
        if self.config.normalize_vectors:
            features = F.normalize(features, dim=-1)
        return features, output.get("hidden_states") or (), output.get("attentions") or ()

    @property
    def positions(self) -> int | None:
        """How many tokens it can read; None without a limit."""
        table = getattr(getattr(self.transformer, "embeddings", None), "position_embeddings", None)
        if table is not None and table.padding_idx is not None:  # RoBERTa counts from the padding id on
            return int(table.num_embeddings - table.padding_idx - 1)
        limit = getattr(self.transformer.config, "max_position_embeddings", None)
        return None if limit == -1 else limit  # how XLNet says that there is none


class NoEncoder(TextEncoder):
    """In the place of an encoder, where sentence vectors come from elsewhere: it refuses text."""

    def forward(self, *args: object, **kwargs: object) -> BaseModelOutputWithPooling:
        """Refuse text.

        Raises:
            ValueError: always.
        """
        raise ValueError("`vectors` must be given: this model holds no text encoder. Make them with the one it is for.")

    def encode(self, ids: Tensor, mask: Tensor, inputs_embeds: Tensor | None, **asked: object) -> Encoded:
        """Refuse likewise."""
        return cast(Encoded, self.forward())

    def get_word_embeddings(self) -> NoReturn:
        """Refuse, in the way in which the library expects it of models without words.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("This model takes `vectors`: it holds no text encoder, so no word embeddings.")

    def set_word_embeddings(self, value: nn.Embedding) -> None:
        """Refuse likewise."""
        self.get_word_embeddings()


ENCODERS: dict[str, type[TextEncoder]] = {"gru": GRUEncoder, "transformer": TransformerEncoder, "vector": NoEncoder}


class Standardizer(nn.Module):
    """Vectors to zero mean and unit variance per dimension, by statistics that are saved with the model."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def init_parameters(self) -> None:
        """Change nothing, until `fit`: a checkpoint may be without statistics."""
        init.zeros_(self.mean)
        init.ones_(self.std)

    def fit(self, vectors: Tensor) -> None:
        """Take the statistics of `vectors` `(rows, size)`."""
        self.set_statistics(vectors.double().mean(0), vectors.double().std(0, correction=0))

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Take `mean` and `std`, `(size,)` each; a dimension that never varies keeps its scale."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-8, std, 1.0))

    def forward(self, vectors: Tensor) -> Tensor:
        """`(batch, size)` to the same."""
        return (vectors - self.mean) / self.std

    def undo(self, vectors: Tensor) -> Tensor:
        """Back to the encoder's own units."""
        return vectors * self.std + self.mean
