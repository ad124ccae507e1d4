"""Outputs of the models."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.utils import ModelOutput

_ABSENT: Any = None  # ModelOutput wants defaults; a field that a model does not set is not in its output


@dataclass
class TextVAEModelOutput(ModelOutput):
    """Deterministic representation of a batch of sentences.

    Args:
        sparse_embedding: the code that users get, `(batch, latent_size)`, with exact zeros for inactive dimensions.
        latent: point estimate of `z` that the decoder reads in generation, `(batch, latent_size)`; 0 for inactive
            dimensions.
        features: the encoder's features, `(batch, hidden_size)`, as the latent head reads them (see `feature_std`).
        hidden_states: only if asked for: the text encoder's embeddings and states per layer, `(batch, steps, width)`.
        attentions: only if asked for: the text encoder's attention weights per layer, `(batch, heads, steps, steps)`.
    """

    sparse_embedding: Tensor = _ABSENT
    latent: Tensor = _ABSENT
    features: Tensor = _ABSENT
    hidden_states: tuple[Tensor, ...] = _ABSENT
    attentions: tuple[Tensor, ...] = _ABSENT


@dataclass
class HSVAEModelOutput(TextVAEModelOutput):
    """Posterior of HSVAE.

    Args:
        gate_mean: `E[gamma|x]`, `(batch, latent_size)` in (0, 1); near 1 = dimension off.
        slab_mean: mean of the slab, `(batch, latent_size)`.
        slab_std: standard deviation of the slab, `(batch, latent_size)`, positive.
        gate_alpha: first parameter of the posterior `Beta(a, b)` of gamma, `(batch, latent_size)`.
        gate_beta: second parameter of the same, `(batch, latent_size)`.
    """

    gate_mean: Tensor = _ABSENT
    slab_mean: Tensor = _ABSENT
    slab_std: Tensor = _ABSENT
    gate_alpha: Tensor = _ABSENT
    gate_beta: Tensor = _ABSENT


@dataclass
class GaussianModelOutput(TextVAEModelOutput):
    """A Gaussian posterior.

    Args:
        mean: `E[z|x]`, `(batch, latent_size)`.
        std: its standard deviation, `(batch, latent_size)`, positive.
    """

    mean: Tensor = _ABSENT
    std: Tensor = _ABSENT


@dataclass
class VSCModelOutput(TextVAEModelOutput):
    """Posterior of variational sparse coding.

    Args:
        log_active: log probability of a dimension being on, `(batch, latent_size)`, negative.
        slab_mean: mean of the slab, `(batch, latent_size)`.
        slab_std: standard deviation of the slab, `(batch, latent_size)`, positive.
    """

    log_active: Tensor = _ABSENT
    slab_mean: Tensor = _ABSENT
    slab_std: Tensor = _ABSENT


@dataclass
class SDLGMModelOutput(TextVAEModelOutput):
    """Posterior of the sparse deep latent Gaussian model.

    Args:
        count_logits: of the number of non-zeros, 1 to the cap, `(batch, sparsity_cap)`.
        selection_logits: of the dimensions, `(batch, latent_size)`.
        slab_mean: mean of a selected dimension, `(batch, latent_size)`.
        slab_std: standard deviation of the same, `(batch, latent_size)`, positive.
    """

    count_logits: Tensor = _ABSENT
    selection_logits: Tensor = _ABSENT
    slab_mean: Tensor = _ABSENT
    slab_std: Tensor = _ABSENT


@dataclass
class TextVAEForPreTrainingOutput(ModelOutput):
    """Loss and its terms, or the logits of a generation step.

    Args:
        loss: negative weighted ELBO in nats, scalar: reconstruction_loss + weighted KLs, penalty and similarity.
        reconstruction_loss: `-E log p(x|z)`, summed over tokens or a vector's dimensions, mean over the batch, scalar.
        z_kl: KL of z, unweighted, summed over latent dimensions, mean over the batch, scalar.
        gamma_kl: KL of the gate, likewise.
        penalty: the latent head's penalty, unweighted, scalar.
        similarity: how far neighbours by code are from those by vector, unweighted, in nats, scalar.
        code_reconstruction: `-log p(x|code)` of vectors, unweighted, mean over the batch, scalar.
        num_tokens: number of predicted tokens in the batch, scalar; `exp(reconstruction_loss * batch / num_tokens)`
            is the perplexity per token.
        squared_error: of vectors, standardised, per dimension, in place of `num_tokens`: with one draw of z, scalar.
        logits: only where `decoder_input_ids` are given: next-token logits, `(batch, steps, vocab_size)`.
        cache: only in generation: the GRU state (`past_key_values` in transformers before 5.24).
        decoder_hidden_states: only with `logits`: the decoder's states, a tuple of one `(batch, steps, hidden_size)`.
        decoder_attentions: never there, as a GRU has none; generation looks for it.
        cross_attentions: likewise.
        encoder_hidden_states: only if asked for: `hidden_states` of the text encoder.
        encoder_attentions: only if asked for: `attentions` of the text encoder.
    """

    loss: Tensor = _ABSENT
    reconstruction_loss: Tensor = _ABSENT
    z_kl: Tensor = _ABSENT
    gamma_kl: Tensor = _ABSENT
    penalty: Tensor = _ABSENT
    similarity: Tensor = _ABSENT
    code_reconstruction: Tensor = _ABSENT
    revival: Tensor = _ABSENT
    num_tokens: Tensor = _ABSENT
    squared_error: Tensor = _ABSENT
    logits: Tensor = _ABSENT
    cache: Cache = _ABSENT
    decoder_hidden_states: tuple[Tensor, ...] = _ABSENT
    decoder_attentions: tuple[Tensor, ...] = _ABSENT
    cross_attentions: tuple[Tensor, ...] = _ABSENT
    encoder_hidden_states: tuple[Tensor, ...] = _ABSENT
    encoder_attentions: tuple[Tensor, ...] = _ABSENT
