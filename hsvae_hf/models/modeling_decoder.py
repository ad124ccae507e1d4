"""Decoders of words and of vectors, and a vocabulary loss that never holds the logits of a whole batch."""

import math
from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import Cache
from transformers import initialization as init

from .configuration_text_vae import TextVAEConfig
from .modeling_encoders import at_hand, check_ids, exporting, real_tokens_first
from .modeling_latent import Float32Linear
from .outputs import TextVAEModelOutput


def vocabulary_loss(states: Tensor, head: nn.Module, targets: Tensor, chunk_size: int = 1024) -> Tensor:
    """Sum of `-log softmax(head(states))[target]` without the `(tokens, vocabulary)` matrix of all tokens.

    A bare linear layer in full precision takes `torch.nn.functional.linear_cross_entropy` in its chunked form, where
    torch has it (2.13). Any other head is called, one checkpointed chunk at a time: an adapter, quantised weights, or
    weights that are loaded for the call then have their say.

    Args:
        states: decoder states, `(tokens, hidden_size)`.
        head: the vocabulary projection, from `(tokens, hidden_size)` to `(tokens, vocab_size)`.
        targets: ids, `(tokens,)`; -100 is left out.
        chunk_size: tokens per chunk; the default is within 5% of the fastest from 3,000 tokens up.

    Returns:
        Nats, scalar, fp32 unless the inputs are fp64.
    """
    autocast = torch.is_autocast_enabled(states.device.type)
    exact = states.dtype in (torch.float32, torch.float64) and not autocast
    if exact and hasattr(nn, "LinearCrossEntropyOptions") and is_bare_linear(head):
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=chunk_size, chunking_method=None)
        weight, bias = cast(nn.Linear, head).weight, cast(nn.Linear, head).bias
        return F.linear_cross_entropy(states, weight, targets, linear_bias=bias, reduction="sum", options=options)
    return sum(
        checkpoint(_plain_vocabulary_loss, head, chunk, ids, use_reentrant=False)
        for chunk, ids in zip(states.split(chunk_size), targets.split(chunk_size), strict=True)
    )


def is_bare_linear(module: nn.Module) -> bool:
    """Whether a call of `module` multiplies by its own weight and no more: no subclass, hook or other `forward`."""
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter:
        return False
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return not any(hooks) and "forward" not in vars(module)


def _plain_vocabulary_loss(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    logits = head(states)
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets, reduction="sum")


def eliminate(system: Tensor, products: Tensor) -> Tensor:
    """`A^-1 b` by Gauss-Jordan elimination, for several A and b at once: a loop of sums and products in the graph.

    Without a change of rows this is as exact as Cholesky's factors where A is positive definite.

    Args:
        system: A, symmetric, positive definite, `(batch, size, size)`.
        products: b, `(batch, size)`.

    Returns:
        `(batch, size)`.
    """
    from torch._higher_order_ops import scan

    def step(table: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        row = unit @ table  # (batch, size + 1)
        column = table[:, :, :-1] @ unit  # (batch, size)
        pivot = (column * unit).sum(-1, keepdim=True)
        return table - (column - unit).unsqueeze(-1) * (row / pivot).unsqueeze(1), pivot

    table = torch.cat([system, products.unsqueeze(-1)], dim=-1)
    units = torch.eye(products.shape[-1], dtype=system.dtype, device=system.device)
    return cast(Tensor, scan(step, table, units, dim=0)[0])[:, :, -1]


def solve_positive(system: Tensor, products: Tensor) -> Tensor:
    """`A^-1 b` by Cholesky's factors, which ONNX has no operator for: a graph that is exported eliminates.

    The arguments are those of `eliminate`.
    """
    if exporting():
        return eliminate(system, products)
    factor = torch.linalg.cholesky_ex(system).L
    return torch.cholesky_solve(products.unsqueeze(-1), factor).squeeze(-1)


def nonnegative_minimum(system: Tensor, products: Tensor, steps: int = 5) -> Tensor:
    """The `v >= 0` that minimises `v^T A v / 2 - b^T v`, for several A and b at once.

    Block principal pivoting (Portugal, Judice and Vicente 1994) with a fixed number of steps: each solves for the free
    values, the others being 0, fixes those that are negative and frees those of negative gradient. Once none moves, the
    conditions of Karush, Kuhn and Tucker hold. Codes of trained models came to that point in 3 steps with 64 non-zeros
    and in 5 with 256. Where columns depend on each other and A hardly has a ridge, steps may go in a circle, so the
    best one counts.

    Args:
        system: A, symmetric, positive definite, `(batch, size, size)`.
        products: b, `(batch, size)`.
        steps: at least 1.

    Returns:
        v, `(batch, size)`, exactly 0 where it is not positive.

    >>> nonnegative_minimum(torch.eye(2).unsqueeze(0), torch.tensor([[3.0, -1.0]]))
    tensor([[3., 0.]])
    """
    unit = torch.eye(products.shape[-1], dtype=system.dtype, device=system.device)
    rounding = 1e-5
    small = rounding * products.abs().amax(-1, keepdim=True)
    free = torch.ones_like(products, dtype=torch.bool)
    best, lowest = torch.zeros_like(products), torch.zeros_like(products[:, :1])
    for _ in range(steps):
        kept = torch.where(free.unsqueeze(-1) & free.unsqueeze(-2), system, unit)
        solution = solve_positive(kept, torch.where(free, products, 0.0))  # (batch, size)
        values = solution.clamp_min(0)
        height = (values * ((system @ values.unsqueeze(-1)).squeeze(-1) / 2 - products)).sum(-1, keepdim=True)
        best = torch.where(height <= (1 - rounding) * lowest, values, best)  # of equals the last
        lowest = torch.minimum(height, lowest)
        gradient = (system @ solution.unsqueeze(-1)).squeeze(-1) - products
        free = (free & (solution > 0)) | (~free & (gradient < -small))
    return torch.where(lowest.isfinite(), best, lowest)  # NaN must show


class GRUCache(Cache):
    """The decoder's GRU state between generation steps."""

    def __init__(self, state: Tensor, seen: int = 0) -> None:
        super().__init__(layers=[])
        self.state, self.seen = state, seen  # (1, batch, hidden_size)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens the state has read."""
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the beams that survive."""
        self.state = self.state.index_select(1, beam_idx.to(self.state.device))


class Decoder(nn.Module, ABC):
    """`p(x|z)`: what is reconstructed out of a draw, and how well.

    A subclass answers `targets` and `forward`; besides `step`, if it generates words, or `mean`, if it gives vectors.
    """

    @abstractmethod
    def targets(
        self,
        posterior: TextVAEModelOutput,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        ids_are_checked: bool,
    ) -> tuple[Tensor, ...]:
        """What is to be reconstructed: the arguments of `forward` after z.

        Args:
            posterior: of the batch.
            input_ids: `(batch, steps)`, or None.
            attention_mask: `(batch, steps)`, or None.
            labels: `(batch, target_steps)`, or None.
            ids_are_checked: whether the encoder has read `input_ids`.

        Raises:
            ValueError: if there is nothing to reconstruct, or it is not what this decoder knows.
        """

    @abstractmethod
    def forward(self, z: Tensor, *targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The reconstruction loss of a draw.

        Args:
            z: latent codes, `(batch, latent_size)`.
            targets: of the method `targets`.

        Returns:
            `-log p(x|z)` in nats, summed over the batch, scalar; and further terms to report, scalars, by their names
            in the output.
        """

    def step(self, z: Tensor, input_ids: Tensor, cache: GRUCache | None) -> tuple[Tensor, Tensor, GRUCache]:
        """Next-token logits; see `GRUDecoder.step`.

        Raises:
            ValueError: if this decoder gives vectors.
        """
        raise ValueError(
            "`decoder_type` must be 'gru' to generate words, got 'vector'; `decode_vectors` gives vectors."
        )

    def mean(self, z: Tensor) -> Tensor:
        """The vectors that z stands for; see `VectorDecoder.mean`.

        Raises:
            ValueError: if this decoder gives words.
        """
        raise ValueError("`decoder_type` must be 'vector' to decode vectors, got 'gru'; `generate` gives words.")


class GRUDecoder(Decoder):
    """`p(x|z)` of words: a GRU that gets `[embedding(x_{t-1}); z]` at every step, from a zero state."""

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.gru = nn.GRU(config.embedding_size + config.latent_size, config.hidden_size, batch_first=True)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)

    def targets(
        self,
        posterior: TextVAEModelOutput,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        ids_are_checked: bool,
    ) -> tuple[Tensor, Tensor]:
        """The words to reconstruct, `(batch, steps)`, and which of them to leave out, `(batch, steps)`.

        These are `labels`; without them the input is its own target.
        """
        config = self.config
        if labels is not None:
            words = labels
            ignore = labels == -100
            if config.pad_token_id not in config.eos_token_ids:  # else the end of a sentence looks like padding
                ignore = ignore | (labels == config.pad_token_id)
        elif input_ids is not None:
            if config.encoder_vocab_size != config.vocab_size:
                raise ValueError(
                    f"`labels` must be given, of the decoder's {config.vocab_size} words: the encoder reads "
                    f"{config.encoder_vocab_size} others; set `vocab_size={config.encoder_vocab_size}` to reconstruct "
                    "its own."
                )
            words = input_ids
            ignore = input_ids == config.pad_token_id if attention_mask is None else ~attention_mask.bool()
        else:
            raise ValueError("`labels` must be given where `input_ids` are not: they are the sentences to reconstruct.")
        if config.decoder_start_token_id not in config.eos_token_ids:  # [CLS] and the like are not predicted
            ignore = ignore | (words == config.decoder_start_token_id)
        if labels is not None or not ids_are_checked:
            check_ids(words, ~ignore, config.vocab_size, "labels")
        return words, ignore

    def forward(self, z: Tensor, *targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss with teacher forcing, computed at the real tokens alone; and `num_tokens`, their number."""
        labels, ignore = targets
        order = real_tokens_first(~ignore)
        labels, real = labels.masked_fill(ignore, 0).gather(1, order), ~ignore.gather(1, order)
        start = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
        words = torch.cat([start, labels[:, :-1]], dim=1)
        if self.training and self.config.word_dropout > 0:
            drop = torch.rand(words.shape, device=words.device) < self.config.word_dropout
            drop[:, 0] = False  # the start token stays
            words = words.masked_fill(drop, self.config.unk_token_id)
        states, _ = self.gru(self._inputs(z, words))
        if at_hand(real):  # else the loss leaves out padding: the number of real tokens would be waited for
            states, labels = states[real], labels[real]
        else:
            states, labels = states.flatten(0, 1), labels.masked_fill(~real, -100).flatten()
        nats = vocabulary_loss(states, self.lm_head, labels)
        return nats, {"num_tokens": real.sum()}

    def step(self, z: Tensor, input_ids: Tensor, cache: GRUCache | None) -> tuple[Tensor, Tensor, GRUCache]:
        """Read `input_ids` on top of `cache`.

        Args:
            z: latent codes, `(batch, latent_size)`.
            input_ids: the words so far that the cache has not read, `(batch, steps)`.
            cache: the state so far; None starts from zeros.

        Returns:
            Next-token logits, `(batch, steps, vocab_size)`, the states behind them, `(batch, steps, hidden_size)`, and
            the state after the last step.
        """
        states, last = self.gru(self._inputs(z, input_ids), None if cache is None else cache.state)
        return self.lm_head(states), states, GRUCache(last, (0 if cache is None else cache.seen) + input_ids.shape[1])

    def _inputs(self, z: Tensor, words: Tensor) -> Tensor:
        embeds = self.embed_tokens(words)  # (batch, steps, embedding_size)
        return torch.cat([embeds, z.to(embeds.dtype).unsqueeze(1).expand(-1, words.shape[1], -1)], dim=-1)


class VectorDecoder(Decoder):
    """`p(x|z) = N(W z + b, std^2)` of a standardised sentence vector."""

    log_std: Tensor

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__()
        self.output = Float32Linear(config.latent_size, config.feature_size)
        self.config = config
        self.initial_log_std = math.log(config.decoder_std)
        self.register_buffer("log_std", torch.tensor(self.initial_log_std))

    def init_parameters(self) -> None:
        """Set the scale, which a checkpoint may be without."""
        init.constant_(self.log_std, self.initial_log_std)

    def targets(self, posterior: TextVAEModelOutput, *args: object, **kwargs: object) -> tuple[Tensor]:
        """The vectors to reconstruct, standardised, `(batch, feature_size)`."""
        return (posterior.features,)

    def forward(self, z: Tensor, *targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, in fp32; and `squared_error`, its mean per dimension."""
        (vectors,) = targets
        nats, squared_error = self.nats(self.mean(z), vectors)
        return nats, {"squared_error": squared_error}

    def nats(self, mean: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """`-log N(vectors; mean, std^2)`, summed, and the mean squared error per dimension, scalars."""
        squared_error = F.mse_loss(mean, vectors)
        log_std = self.log_std.float()
        nats = 0.5 * squared_error * torch.exp(-2 * log_std) + log_std + 0.5 * math.log(2 * math.pi)
        return nats * vectors.numel(), squared_error

    def mean(self, z: Tensor) -> Tensor:
        """`W z + b`, standardised, `(batch, feature_size)`."""
        return cast(Tensor, self.output(z))

    def posterior_mean(self, vectors: Tensor, chosen: Tensor, used: Tensor, variance: float) -> Tensor:
        """`E[z_S | x, S]`: the best values of the dimensions that are on.

        With prior `z_S ~ N(0, I)` and `x ~ N(W_S z_S + b, variance I)` it is
        `(W_S^T W_S + variance I)^-1 W_S^T (x - b)`, ridge regression of x on the columns of the decoder. With
        `nonnegative_codes` it is the mode instead, given `z_S >= 0` as well: the same regression with no coefficient
        below 0.

        Args:
            vectors: x, standardised, `(batch, feature_size)`.
            chosen: S, indices of dimensions, `(batch, size)`.
            used: which of `chosen` are on, bool, `(batch, size)`.
            variance: positive.

        Returns:
            `(batch, size)`, 0 where not used, and at the mode where a positive value would only do harm.
        """
        return self.solve(*self.normal_equations(vectors, chosen), used, variance)

    def normal_equations(self, vectors: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """`W_S^T W_S`, `(batch, size, size)`, and `W_S^T (x - b)`, `(batch, size)`; the arguments are as above.

        Where all products of two columns are fewer than those that are asked for, they are computed once for the batch.
        """
        weight = self.output.weight.to(vectors.dtype)  # (feature_size, latent_size)
        centred = vectors - cast(Tensor, self.output.bias).to(vectors.dtype)
        if not exporting() and chosen.shape[0] * chosen.shape[1] ** 2 > weight.shape[1] ** 2:
            products = (centred @ weight).gather(1, chosen)
            return (weight.T @ weight)[chosen.unsqueeze(2), chosen.unsqueeze(1)], products
        columns = weight.T[chosen]  # (batch, size, feature_size)
        return columns @ columns.transpose(1, 2), (columns @ centred.unsqueeze(-1)).squeeze(-1)

    def solve(self, system: Tensor, products: Tensor, used: Tensor, variance: float) -> Tensor:
        """The values that solve the normal equations of what is used, `(batch, size)`; see `posterior_mean`."""
        unit = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device)
        system = system * (used.unsqueeze(2) & used.unsqueeze(1)) + variance * unit
        products = products * used
        if self.config.nonnegative_codes:
            return nonnegative_minimum(system, products)
        return solve_positive(system, products)
