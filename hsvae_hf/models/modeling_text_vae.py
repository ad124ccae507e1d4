"""Text VAE: encoder -> latent head -> decoder.

Nothing here knows a particular latent; `modeling_latent.py` says what a latent head answers. Nothing here knows what is
reconstructed, words or vectors, but for the code; `modeling_decoder.py` says what a decoder answers.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .configuration_text_vae import TextVAEConfig
from .distributions import neighbour_kl, straight_through
from .modeling_base import TextVAEPreTrainedModel
from .modeling_decoder import DECODERS, GRUCache, GRUDecoder
from .modeling_encoders import ENCODERS, Standardizer
from .modeling_generation import CanGenerate, TextVAEGenerationMixin
from .modeling_latent import LatentHead
from .outputs import TextVAEForPreTrainingOutput, TextVAEModelOutput


def keep_largest(code: Tensor, max_active_dims: int | None) -> Tensor:
    """Zero all but the `max_active_dims` largest magnitudes of each row of `code` `(batch, latent_size)`."""
    if max_active_dims is None or max_active_dims >= code.shape[-1]:
        return code
    kept = code.abs().topk(max_active_dims, dim=-1).indices
    return torch.zeros_like(code).scatter(-1, kept, code.gather(-1, kept))


class TextVAEModel(TextVAEPreTrainedModel):
    """Encoder and latent head: sentences in, sparse codes out.

    A model family sets `latent_head_class`. Models that reconstruct vectors hold two more things: the statistics that
    standardise the features, and a scale of the code's dimensions.
    """

    latent_head_class: type[LatentHead[Any]]
    standardizer: Standardizer
    code_scale: Tensor
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^classifier\.", "gamma_kl_scale"]

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__(config)
        self.encoder = ENCODERS[config.encoder_type](config)
        if not config.decodes_words:
            self.standardizer = Standardizer(config.feature_size)
            self.register_buffer("code_scale", torch.ones(config.latent_size))
        self.latent_head = self.latent_head_class(config)
        self.post_init()

    def init_parameters(self) -> None:
        """Set the scale of codes, which a checkpoint may be without."""
        if not self.config.decodes_words:
            init.ones_(self.code_scale)

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings."""
        return self.encoder.get_word_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.encoder.set_word_embeddings(cast(nn.Embedding, value))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        vectors: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> TextVAEModelOutput:
        """Encode sentences; nothing is drawn, in training mode too.

        Args:
            input_ids: `(batch, steps)`, each sentence ended by the end-of-sentence token.
            attention_mask: `(batch, steps)`, 1 for real tokens, padding on either side; without it, `pad_token_id` is
                padding.
            inputs_embeds: `(batch, steps, embedding_size)` instead of `input_ids`.
            vectors: `(batch, feature_size)`, the encoder's features instead of text, where they are there already.
            output_hidden_states: whether to return the text encoder's states; None asks the configuration.
            output_attentions: likewise, its attention weights.
            token_type_ids: `(batch, steps)`, for a transformer that tells the two parts of a pair apart.
            kwargs: ignored, as pipelines and generation pass more than this model needs.

        Returns:
            The latent head's output; first field `sparse_embedding`, `(batch, latent_size)`. Where vectors are
            reconstructed, its values are those the decoder reads, scaled so that dot products of codes are near those
            of the vectors (`hsvae_hf.active_dims.fit_code_scale`).

        Raises:
            ValueError: if `vectors` have another shape, or come with text; if the encoder has not what is asked for.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        if vectors is None:
            if attention_mask is None and input_ids is not None:
                attention_mask = input_ids != self.config.pad_token_id
            encoded = self.encoder(input_ids, attention_mask, inputs_embeds, token_type_ids, **asked)
        else:
            self._check_vectors(vectors, input_ids if input_ids is not None else inputs_embeds, asked)
            encoded = BaseModelOutputWithPooling(pooler_output=vectors)
        posterior = self._posterior(encoded.pooler_output)
        posterior.hidden_states, posterior.attentions = encoded.hidden_states, encoded.attentions
        return posterior

    def _posterior(self, features: Tensor) -> TextVAEModelOutput:
        """The latent head's output, in fp32, with the code that users get."""
        with torch.autocast(features.device.type, enabled=False):
            if self.config.decodes_words:
                posterior = self.latent_head(features.float())
                code = self.unscaled_code(posterior)
            else:
                posterior = self.latent_head(self.standardizer(features.float()))
                code = self.code_scale * self.unscaled_code(posterior)
            return type(posterior)(sparse_embedding=code, **posterior)

    def unscaled_code(self, posterior: TextVAEModelOutput) -> Tensor:
        """The code on the scale of the draws, `(batch, latent_size)`: its `max_active_dims` largest values.

        Where words are reconstructed, what is on is at `E[z|x]`. Where vectors are, it is at what the decoder reads.
        """
        values = posterior.latent
        if self.config.decodes_words:
            values = torch.where(values != 0, self.latent_head.mean(posterior), 0.0)
        return keep_largest(values, self.config.max_active_dims)

    def _check_vectors(self, vectors: Tensor, text: Tensor | None, asked: dict[str, Any]) -> None:
        if text is not None:
            raise ValueError("`vectors` must come without text, got both; they are what the encoder makes of it.")
        if vectors.dim() != 2 or vectors.shape[1] != self.config.feature_size or vectors.shape[0] == 0:
            rule = f"(batch, {self.config.feature_size})"
            raise ValueError(f"`vectors` must be {rule}, got {tuple(vectors.shape)}; use the encoder of this model.")
        for name in asked:
            if asked[name]:
                raise ValueError(f"`{name}` must be False with `vectors`, got True; no text encoder is run for them.")

    def sample(self, posterior: TextVAEModelOutput) -> dict[str, Tensor]:
        """Draw from the posterior, in fp32; the entry `z` is `(batch, latent_size)`."""
        with torch.autocast(posterior.features.device.type, enabled=False):
            return self.latent_head.sample(posterior)

    def costs(self, posterior: TextVAEModelOutput, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named, unweighted costs of a draw, in fp32; see `LatentHead.costs`."""
        with torch.autocast(posterior.features.device.type, enabled=False):
            return self.latent_head.costs(posterior, sample)

    def neighbour_cost(self, posterior: TextVAEModelOutput) -> Tensor:
        """`neighbour_kl` of vectors and codes, scalar; gates learn through `E[z|x]` (straight-through)."""
        with torch.autocast(posterior.features.device.type, enabled=False):
            soft = self.code_scale * self.latent_head.mean(posterior)
            codes = straight_through(posterior.sparse_embedding, soft)
            vectors = self.standardizer.undo(posterior.features)
            return neighbour_kl(vectors, codes, self.config.similarity_temperature)


class TextVAEForPreTraining(TextVAEPreTrainedModel, TextVAEGenerationMixin):
    """Encoder, latent head and decoder: the sampled ELBO, and text out of latents."""

    _auto_class = "AutoModelForPreTraining"
    _tied_weights_keys = {"decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight"}  # GRU encoders
    model_class: type[TextVAEModel]
    gamma_kl_scale: Tensor
    can_generate = CanGenerate()

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__(config)
        if not config.tie_word_embeddings:
            self._tied_weights_keys = {}
        self.model = self.model_class(config)
        self.decoder = DECODERS[config.decoder_type](config)
        self.kl_scale = 1.0  # set by KL annealing; training only, so that evaluation losses stay comparable
        if self.model.latent_head.target_active_dims is not None:
            self.register_buffer("gamma_kl_scale", torch.ones(()))  # a buffer, so that a resumed run goes on with it
        self.post_init()

    def init_parameters(self) -> None:
        """Set the factor of the gate's KL, which a checkpoint may be without."""
        if self.model.latent_head.target_active_dims is not None:
            init.ones_(self.gamma_kl_scale)

    def get_encoder(self, modality: str | None = None) -> TextVAEModel:
        """What generation encodes with."""
        return self.model

    def get_output_embeddings(self) -> nn.Linear | None:
        """The vocabulary projection, where words are decoded."""
        return getattr(self.decoder, "lm_head", None)

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the vocabulary projection."""
        self.decoder.lm_head = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        vectors: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: TextVAEModelOutput | None = None,
        cache: GRUCache | None = None,
        use_cache: bool | None = None,
        return_loss: bool = True,
        **kwargs: Any,
    ) -> TextVAEForPreTrainingOutput:
        """The sampled objective of a batch, or, where `decoder_input_ids` are given, next-token logits.

        Args:
            input_ids: `(batch, steps)`.
            attention_mask: `(batch, steps)`, 1 for real tokens, padding on either side.
            labels: sentences to reconstruct, `(batch, target_steps)`, padded with -100 or the padding token; without
                them the input is its own target.
            inputs_embeds: `(batch, steps, embedding_size)` instead of `input_ids`; `labels` are needed then.
            vectors: `(batch, feature_size)`, the encoder's features instead of text; words need `labels` then.
            decoder_input_ids: words so far, `(batch, decoder_steps)`, for generation.
            encoder_outputs: posterior to decode from instead of `input_ids`.
            cache: the GRU state of the words so far.
            use_cache: whether to return the GRU state.
            return_loss: present so that a Trainer with `label_names=[]` evaluates without labels; the loss is always
                returned.
            kwargs: of `TextVAEModel.forward`.

        Returns:
            Loss and terms, averaged over the batch; one Monte-Carlo sample of z per sentence, in evaluation too.

        Raises:
            ValueError: if there is no sentence to reconstruct, or `labels` come with `decoder_input_ids`.
        """
        posterior = encoder_outputs
        if posterior is None:
            posterior = self.model(input_ids, attention_mask, inputs_embeds, vectors, return_dict=True, **kwargs)
        if decoder_input_ids is not None:
            if labels is not None:
                raise ValueError(
                    "`labels` must come without `decoder_input_ids`, got both; the loss makes the decoder's input of "
                    "`labels`, logits are for given words."
                )
            cache = kwargs.get("past_key_values") if cache is None else cache  # its name before transformers 5.24
            return self._next_words(posterior, decoder_input_ids, cache, use_cache)
        ids_are_checked = encoder_outputs is None
        targets = self.decoder.targets(posterior, input_ids, attention_mask, labels, ids_are_checked)
        sample = self.model.sample(posterior)
        nats, terms = self.decoder(sample["z"], *targets)
        reconstruction_loss = nats / len(sample["z"])
        costs = self.model.costs(posterior, sample)
        if self.config.similarity_weight > 0:
            costs["similarity"] = self.model.neighbour_cost(posterior)
        for name, cost in costs.items():
            terms[name] = cost.mean(0).sum() if cost.dim() else cost
        return TextVAEForPreTrainingOutput(
            loss=reconstruction_loss.float() + self._weighted(costs),
            reconstruction_loss=reconstruction_loss,
            encoder_hidden_states=posterior.hidden_states,
            encoder_attentions=posterior.attentions,
            **terms,
        )

    def _next_words(
        self,
        posterior: TextVAEModelOutput,
        decoder_input_ids: Tensor,
        cache: GRUCache | None,
        use_cache: bool | None,
    ) -> TextVAEForPreTrainingOutput:
        """Logits after each of `decoder_input_ids`, `(batch, decoder_steps)`."""
        logits, states, cache = self.decoder.step(posterior.latent, decoder_input_ids, cache)
        keep = self.config.use_cache if use_cache is None else use_cache
        return TextVAEForPreTrainingOutput(
            logits=logits, cache=cast(Any, cache if keep else None), decoder_hidden_states=(states,)
        )

    def _weighted(self, costs: dict[str, Tensor]) -> Tensor | float:
        """The sum of all costs, each by its weight, scalar."""
        total: Tensor | float = 0.0
        for name, cost in costs.items():
            if name.endswith("_kl"):
                per_dimension = cost.mean(0)  # (latent_size,)
                if self.config.free_bits > 0:
                    per_dimension = per_dimension.clamp_min(self.config.free_bits)
                cost = per_dimension.sum() * (self.kl_scale if self.training else 1.0)
                if name == "gamma_kl" and self.model.latent_head.target_active_dims is not None:
                    cost = cost * self.gamma_kl_scale
            field = self.model.latent_head.penalty_field if name == "penalty" else f"{name}_weight"
            total = total + getattr(self.config, field) * cost
        return total

    def _resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """The library resizes the encoder's embeddings and the projection; the decoder's own embeddings follow here."""
        embeddings = super()._resize_token_embeddings(*args, **kwargs)
        if isinstance(self.decoder, GRUDecoder) and not self.config.tie_word_embeddings:
            own = self.decoder.embed_tokens
            self.decoder.embed_tokens = self._get_resized_embeddings(own, embeddings.num_embeddings)
        return embeddings
