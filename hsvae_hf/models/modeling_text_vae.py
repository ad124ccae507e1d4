"""Text VAE: encoder -> latent head -> decoder.

Nothing here knows a particular latent; `modeling_latent.py` says what a latent head answers. Nothing here knows what is
reconstructed, words or vectors, but for the code; `modeling_decoder.py` says what a decoder answers.
"""

import math
import random
from collections.abc import Sequence
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .configuration_text_vae import TextVAEConfig
from .distributions import neighbour_kl, only_at, straight_through
from .modeling_base import TextVAEPreTrainedModel
from .modeling_decoder import Decoder, GRUCache, GRUDecoder, VectorDecoder
from .modeling_encoders import ENCODERS, Standardizer
from .modeling_generation import CanGenerate, TextVAEGenerationMixin
from .modeling_latent import LatentHead
from .normalization import BatchNorm
from .outputs import TextVAEForPreTrainingOutput, TextVAEModelOutput
from .processes import gather_rows, mean_over_processes

CANDIDATES = 1.5  # dimensions that compete for each place in a code
REVIVED = 32  # idle dimensions of a sentence that learn from what its code leaves
REVIVAL_ROWS = 64  # of a batch whose idle dimensions learn
REACH = 4  # times as many dimensions as a code has learn from what it loses


class TextVAEModel(TextVAEPreTrainedModel):
    """Encoder and latent head: sentences in, sparse codes out.

    A model family sets `latent_head_class`. Models that reconstruct vectors hold three more things: the statistics that
    standardise the features, the decoder, by which the values of a code are found, and a scale of its dimensions.
    """

    latent_head_class: type[LatentHead[Any]]
    standardizer: Standardizer
    decoder: VectorDecoder
    code_scale: Tensor
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^classifier\.", "gamma_kl_scale"]

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__(config)
        self.encoder = ENCODERS[config.encoder_type](config)
        if not config.decodes_words:
            self.standardizer = Standardizer(config.feature_size)
            self.decoder = VectorDecoder(config)
            self.register_buffer("code_scale", torch.ones(config.latent_size))
        elif config.feature_std:
            self.feature_norm = BatchNorm(config.feature_size, config.feature_std)
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
        active_dims: int | None = None,
        **kwargs: Any,
    ) -> TextVAEModelOutput:
        """Encode sentences; nothing is drawn, in training mode too.

        Args:
            input_ids: `(batch, steps)`, each sentence ended by the end-of-sentence token.
            attention_mask: `(batch, steps)`, 1 for real tokens, padding on either side; without it, `pad_token_id` is
                padding.
            inputs_embeds: `(batch, steps, embedding_size)` instead of `input_ids`.
            vectors: `(batch, feature_size)`, the encoder's features (before `feature_std`) instead of text.
            output_hidden_states: whether to return the text encoder's states; None asks the configuration.
            output_attentions: likewise, its attention weights.
            token_type_ids: `(batch, steps)`, for a transformer that tells the two parts of a pair apart.
            active_dims: number of non-zeros of each code, in place of the model's own rule: the strongest dimensions
                (1 to `latent_size`).
            kwargs: ignored, as pipelines and generation pass more than this model needs.

        Returns:
            The latent head's output; first field `sparse_embedding`, `(batch, latent_size)`. Where vectors are
            reconstructed, its values are those the decoder reads, scaled so that dot products of codes are near those
            of the vectors (`hsvae_hf.active_dims.fit_code_scale`).

        Raises:
            ValueError: if `vectors` have another shape, or come with text; if the encoder has not what is asked for; if
                codes have no such number of dimensions.
        """
        self._check_active_dims(active_dims)
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
        posterior = self._posterior(encoded.pooler_output, active_dims)
        posterior.hidden_states, posterior.attentions = encoded.hidden_states, encoded.attentions
        return posterior

    def _posterior(self, features: Tensor, active_dims: int | None) -> TextVAEModelOutput:
        """The latent head's output, in fp32, with the code that users get."""
        with torch.autocast(features.device.type, enabled=False):
            if self.config.decodes_words:
                if self.config.feature_std:  # statistics are not saved with an adapter, so they stay if it alone learns
                    whole = all(value.requires_grad for value in self.latent_head.parameters())
                    features = self.feature_norm(features.float(), self.training and whole)
                posterior = self.latent_head(features.float())
                code = self.unscaled_code(posterior, active_dims)
            else:
                posterior = self.latent_head(self.standardizer(features.float()))
                code = self.code_scale * self.unscaled_code(posterior, active_dims)
            return type(posterior)(sparse_embedding=code, **posterior)

    def unscaled_code(self, posterior: TextVAEModelOutput, active_dims: int | None = None) -> Tensor:
        """The code on the scale of the draws, `(batch, latent_size)`.

        Which dimensions are on: those that the gates say, filled up to `min_active_dims` and cut to `max_active_dims`
        by strength. Where these two are equal, or with `active_dims`, that many, by strength alone.

        Their values: where words are reconstructed, `E[z|x]`; where vectors are, the encoder's, or with `code_ridge`
        the posterior mean given what is on, or with `nonnegative_codes` the mode, which switches off what no positive
        value is good for. In training mode they are the encoder's.
        """
        if self.config.code_ridge is None or self.training:
            return self.encoder_code(posterior, active_dims)
        return self._exact_code(posterior, active_dims)

    def encoder_code(self, posterior: TextVAEModelOutput, active_dims: int | None = None) -> Tensor:
        """The same with the encoder's values, which cost nothing."""
        head = self.latent_head
        values = head.mean(posterior) if self.config.decodes_words else head.values(posterior)
        rank, count, most = self._ranking(posterior, active_dims)
        if most == self.config.latent_size and self.config.min_active_dims == 0:
            return values if active_dims is not None else torch.where(posterior.latent != 0, values, 0.0)
        chosen = rank.topk(most, dim=-1).indices
        used = torch.arange(most, device=count.device) < count
        return torch.zeros_like(values).scatter(-1, chosen, values.gather(-1, chosen) * used)

    def _exact_code(self, posterior: TextVAEModelOutput, active_dims: int | None) -> Tensor:
        """The same at the posterior mean given what is on, in two steps.

        First half as many dimensions more as there are places compete; those that contribute most stay. Then the values
        of those that stay are found.
        """
        ridge, decoder = float(cast(float, self.config.code_ridge)), self.decoder
        rank, count, most = self._ranking(posterior, active_dims)
        competing = rank.topk(min(math.ceil(CANDIDATES * most), rank.shape[-1]), dim=-1).indices
        used = torch.arange(competing.shape[-1], device=count.device) < CANDIDATES * count
        system, products = decoder.normal_equations(posterior.features, competing)
        values = decoder.solve(system, products, used, ridge)
        strength = self.latent_head.strength(posterior).gather(-1, competing)
        norms = decoder.output.weight.to(values.dtype).norm(dim=0)[competing]
        places = (values.abs() * norms * strength.sqrt()).topk(most, dim=-1).indices
        used = (torch.arange(most, device=count.device) < count) & used.gather(-1, places)
        system = system.gather(1, places.unsqueeze(2).expand(-1, -1, system.shape[2]))  # (batch, most, competing)
        system = system.gather(2, places.unsqueeze(1).expand(-1, most, -1))  # (batch, most, most)
        values = decoder.solve(system, products.gather(-1, places), used, ridge)
        return torch.zeros_like(rank).scatter(-1, competing.gather(-1, places), values)

    def _ranking(self, posterior: TextVAEModelOutput, active_dims: int | None) -> tuple[Tensor, Tensor, int]:
        """By which dimensions are ranked, `(batch, latent_size)`; how many are on, `(batch, 1)`; how many at most."""
        strength, on = self.latent_head.strength(posterior), posterior.latent != 0
        size, config = strength.shape[-1], self.config
        if active_dims is not None:
            return strength, torch.full_like(on[:, :1], active_dims, dtype=torch.long), active_dims
        most = min(config.max_active_dims or size, size)
        count = on.sum(-1, keepdim=True).clamp(config.min_active_dims, most)
        if config.min_active_dims == most:
            return strength, count, most
        return strength / (1 + strength) + on.to(strength.dtype), count, most  # what is on comes before what is off

    def _check_active_dims(self, active_dims: object) -> None:
        if active_dims is None:
            return
        whole = isinstance(active_dims, Integral) and not isinstance(active_dims, bool)
        if not whole or not 1 <= cast(int, active_dims) <= self.config.latent_size:
            rule = f"a whole number from 1 to `latent_size` ({self.config.latent_size})"
            raise ValueError(f"`active_dims` must be {rule}, got {active_dims!r}; None leaves it to the model.")

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

    def code_costs(self, posterior: TextVAEModelOutput, active_dims: int | None) -> dict[str, Tensor]:
        """What codes of vectors lose, as they are used, scalars: `similarity`, `code_reconstruction` and `revival`.

        The first is `neighbour_kl` of vectors and codes, the second `-log p(x|code)`; each is there if it has a weight.
        Values are the encoder's. Gates learn through `E[z|x]` (straight-through): those of the `REACH` times as many
        strongest dimensions, which are on or might come on next.

        Args:
            posterior: of `forward`.
            active_dims: number of non-zeros; None leaves it to the model's rule, and then all gates learn.
        """
        with torch.autocast(posterior.features.device.type, enabled=False):
            if active_dims is None:
                codes = straight_through(self.encoder_code(posterior), self.latent_head.mean(posterior))
            else:
                codes = self._learning_code(posterior, active_dims)
            costs: dict[str, Tensor] = {}
            if self.config.similarity_weight > 0:
                pair = self.standardizer.undo(posterior.features), self.code_scale * codes
                vectors, scaled = map(gather_rows, pair) if self.training else pair
                costs["similarity"] = neighbour_kl(vectors, scaled, self.config.similarity_temperature)
            if self.config.code_reconstruction_weight > 0 or self.config.revival_weight > 0:
                decoded = self.decoder.mean(codes)
            if self.config.code_reconstruction_weight > 0:
                costs["code_reconstruction"] = self.decoder.nats(decoded, posterior.features)[0] / len(codes)
            if self.config.revival_weight > 0:
                costs["revival"] = self.revival(posterior, decoded)
        return costs

    def _learning_code(self, posterior: TextVAEModelOutput, active_dims: int) -> Tensor:
        """The `active_dims` strongest dimensions at the encoder's values, `(batch, latent_size)`.

        Gates learn by the gradient of `E[z|x]`, at `REACH` times as many dimensions.
        """
        head = self.latent_head
        mean = head.mean(posterior)
        with torch.no_grad():
            places = head.strength(posterior).topk(min(REACH * active_dims, mean.shape[-1]), dim=-1).indices
            hard = head.values(posterior).gather(-1, places)
            hard[:, active_dims:] = 0.0
        return torch.zeros_like(mean).scatter(-1, places, straight_through(hard, mean.gather(-1, places)))

    def revival(self, posterior: TextVAEModelOutput, decoded: Tensor) -> Tensor:
        """How badly idle dimensions explain what codes leave of the vectors: the auxiliary loss of Gao et al. (2024).

        Idle is what is on for no row of the batch, of all processes, by the model's own rule.
        `|x - decode(code) - W z|^2 / (2 std^2)`, z the `REVIVED` strongest of them for each row, on average over
        `REVIVAL_ROWS` rows; scalar, 0 where none is idle.

        Args:
            posterior: of the batch.
            decoded: what the codes stand for, standardised, `(batch, feature_size)`; no gradient reaches it.
        """
        head = self.latent_head
        used = (posterior.sparse_embedding != 0).any(0).float()
        idle = (mean_over_processes(used) if self.training else used) == 0
        strength, mean, values, vectors = (
            part[:REVIVAL_ROWS]
            for part in (head.strength(posterior), head.mean(posterior), head.values(posterior), posterior.features)
        )
        ranked = strength.detach().masked_fill(~idle, -1.0)
        chosen = ranked.topk(min(REVIVED, len(idle)), dim=-1, sorted=False).indices
        z = straight_through(only_at(values, chosen), mean) * idle
        left = vectors - decoded.detach()[:REVIVAL_ROWS]
        error = (left - z @ self.decoder.output.weight.T).square().sum() / len(left)
        return torch.where(idle.any(), 0.5 * error * torch.exp(-2 * self.decoder.log_std), 0.0)


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
        self.decoder: Decoder
        if config.decodes_words:
            self.decoder = GRUDecoder(config)
        else:  # the body's own, by another name, which is not one of the weights
            object.__setattr__(self, "decoder", self.model.decoder)
        self.budget_seed: int | None = None  # set where several processes are to draw the same budget
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
            vectors: `(batch, feature_size)`, as of `TextVAEModel.forward`; words need `labels` then.
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
        if not self.config.decodes_words:
            costs |= self._code_costs(posterior)
        for name, cost in costs.items():
            terms[name] = cost.mean(0).sum() if cost.dim() else cost
        return TextVAEForPreTrainingOutput(
            loss=reconstruction_loss.float() + self._weighted(costs),
            reconstruction_loss=reconstruction_loss,
            encoder_hidden_states=posterior.hidden_states,
            encoder_attentions=posterior.attentions,
            **terms,
        )

    def _code_costs(self, posterior: TextVAEModelOutput) -> dict[str, Tensor]:
        """`TextVAEModel.code_costs` at one of the budgets, or, in evaluation, on average over them."""
        budgets: Sequence[int | None] = self.config.code_budgets or [None]
        if self.training:
            draw = random if self.budget_seed is None else random.Random(self.budget_seed)
            budgets = [draw.choice(budgets)]
        parts = [self.model.code_costs(posterior, budget) for budget in budgets]
        return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}

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
                    per_dimension = mean_over_processes(per_dimension) if self.training else per_dimension
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
