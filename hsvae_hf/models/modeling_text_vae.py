"""The body every text VAE shares: encoder -> latent head -> decoder, and a classification head.

Nothing here knows a particular latent; `modeling_latent.py` says what a latent head answers.
"""

import copy
import hashlib
import json
import math
import warnings
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_text_vae import TextVAEConfig
from .distributions import neighbour_kl, straight_through
from .modeling_decoder import GRUCache, GRUDecoder, VectorDecoder
from .modeling_encoders import GRUEncoder, NoEncoder, Standardizer, TransformerEncoder, check_ids, learns, traced
from .modeling_generation import CanGenerate, TextVAEGenerationMixin
from .modeling_latent import Float32Linear, LatentHead
from .outputs import TextVAEForPreTrainingOutput, TextVAEModelOutput
from .pooling import read_pooling
from .saving import auto_map
from .sources import check_source

# Parts that half precision would spoil: small heads, statistics, a weight that moves by fractions of a percent.
FLOAT32 = {"latent_head", "standardizer", "classifier", "code_scale", "gamma_kl_scale"}

_CONVERT = (
    "Weights are read from model.safetensors alone. To convert a .bin checkpoint that you trust, run in its folder: "
    "import torch, safetensors.torch as s; weights = torch.load('pytorch_model.bin', weights_only=True); "
    "s.save_file({name: w.clone() for name, w in weights.items()}, 'model.safetensors', {'format': 'pt'})"
)


def keep_largest(code: Tensor, max_active_dims: int | None) -> Tensor:
    """Zero all but the `max_active_dims` largest magnitudes of each row of `code` `(batch, latent_size)`."""
    if max_active_dims is None or max_active_dims >= code.shape[-1]:
        return code
    kept = code.abs().topk(max_active_dims, dim=-1).indices
    return torch.zeros_like(code).scatter(-1, kept, code.gather(-1, kept))


def tokenizer_checksum(tokenizer: PreTrainedTokenizerBase, size: int | None = None) -> str:
    """A checksum of which word has which id, alike for the fast and the slow form of a tokenizer.

    Args:
        tokenizer: any.
        size: of the vocabulary: words with larger ids, added later, do not count; None takes all.
    """
    size = len(tokenizer) if size is None else size
    words = sorted((index, word) for word, index in tokenizer.get_vocab().items() if index < size)
    return f"{size}-{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]}"


def tokenizer_fields(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The fields of a configuration that are the tokenizer's: its special tokens and the checksum of its words.

    Raises:
        ValueError: if a special token is missing.
    """
    return {**special_token_ids(tokenizer), "tokenizer_checksum": tokenizer_checksum(tokenizer)}


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The fields of a configuration that name the special tokens of `tokenizer`.

    Raises:
        ValueError: if one is missing.
    """
    ends = tokenizer("")["input_ids"] or [tokenizer.eos_token_id]  # what begins and ends a sentence, in that order
    unknown = tokenizer.mask_token_id if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    found = {"pad_token_id": tokenizer.pad_token_id, "unk_token_id": unknown}
    found |= {"bos_token_id": ends[0], "eos_token_id": ends[-1]}
    for name, value in found.items():
        if value is None:
            raise ValueError(f"`{name}` must be known, got a tokenizer without it; add that token to the tokenizer.")
    return found | {"decoder_start_token_id": found["bos_token_id"]}


class TextVAEPreTrainedModel(PreTrainedModel):
    """Initialisation and loading shared by all models; a model family sets `config_class` and `latent_head_class`."""

    config_class = TextVAEConfig
    latent_head_class: type[LatentHead]
    _auto_class = "AutoModel"  # the code of the model is saved with it
    base_model_prefix = "model"
    main_input_name = "input_ids"
    accepts_loss_kwargs = False
    _no_split_modules = ["GRUEncoder", "TransformerEncoder", "GRUDecoder"]
    # Which of these a transformer has is for it to say; a GRU has no attention, so any will do.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        config.validate()  # loading with overrides changes fields after the configuration has checked itself
        super().__init__(config)

    def post_init(self) -> None:
        """As in transformers; what is kept in fp32 is so in whatever dtype the model is built."""
        kept = set()
        for name, value in (*self.named_parameters(), *self.named_buffers()):
            part = name.partition(".")[0]
            if part in FLOAT32:
                kept.add(part)
                value.data = value.data.to(torch.promote_types(value.dtype, torch.float32))
        self._keep_in_fp32_modules_strict = kept
        transformer = getattr(self.base_model.encoder, "transformer", None)
        self.supports_gradient_checkpointing = getattr(transformer, "supports_gradient_checkpointing", False)
        super().post_init()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; fp32 where there are none: the features of given vectors are those vectors."""
        return next((weight.dtype for weight in self.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Of the weights, or the statistics of given vectors; where weights are loaded call by call, of the call."""
        found = next(chain(self.parameters(), self.buffers())).device
        hook = getattr(self, "_hf_hook", None)  # of accelerate
        return torch.device(hook.execution_device) if found.type == "meta" and hook is not None else found

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.GRU | nn.Linear):
            for name, parameter in module.named_parameters(recurse=False):
                (init.zeros_ if "bias" in name else init.lecun_normal_)(parameter)
        # A module with more to set than its layers brings `init_parameters`. It must hold parameters itself: in custom
        # code transformers passes over those that do not.
        own: Any = getattr(module, "init_parameters", None)
        if own is not None:
            own()
        if isinstance(module, VectorDecoder):
            init.constant_(module.log_std, module.initial_log_std)
        if isinstance(module, Standardizer):
            init.zeros_(module.mean)
            init.ones_(module.std)
        for name in ("code_scale", "gamma_kl_scale"):  # a checkpoint may be without them
            if isinstance(getattr(module, name, None), Tensor):
                init.ones_(getattr(module, name))

    def train(self, mode: bool = True) -> Any:
        """As in transformers; a warning where weights in fp16 would learn, as they do of a checkpoint in fp16."""
        if mode and any(value.requires_grad and value.dtype == torch.float16 for value in self.parameters()):
            warnings.warn(
                "Weights in float16 are to learn, which diverges or rounds to nothing; load the model with "
                "`dtype=torch.float32`, and train with `fp16=True` or `bf16=True` for speed.",
                stacklevel=2,
            )
        return super().train(mode)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers; the folder also holds the code of the model and what sentence-transformers reads.

        It then loads with `trust_remote_code=True` where this package is not installed, by every Auto class and by
        sentence-transformers' `SparseEncoder`.
        """
        self.config.auto_map = auto_map(self.config, type(self).__module__)
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, from safetensors alone; what the configuration freezes is frozen.

        Raises:
            OSError: if there are no such weights; a `.bin` checkpoint is a pickle, which can run code when it is read.
        """
        try:
            found = super().from_pretrained(*args, **(kwargs | {"use_safetensors": True}))
        except OSError as error:
            if "safetensors" in str(error):
                raise OSError(f"{error} {_CONVERT}") from error
            raise
        (found[0] if isinstance(found, tuple) else found).freeze()
        return found

    def freeze(self) -> None:
        """Stop gradients of what `freeze_text_encoder` and, in a classifier, `freeze_encoder` name."""
        if self.config.freeze_text_encoder:
            self.base_model.encoder.requires_grad_(False)

    def without_encoder(self) -> Any:
        """The light form: this model without its frozen text encoder; it takes `vectors` of that encoder alone.

        Raises:
            ValueError: if words are what this model reconstructs.
        """
        if self.config.decodes_words:
            raise ValueError("`decoder_type` must be 'vector' for a model without a text encoder, got 'gru'.")
        config = copy.deepcopy(self.config)
        config.encoder_type, config.encoder_config, config.freeze_text_encoder = "vector", None, False
        config.vector_size = self.config.feature_size
        light = type(self)(config)
        kept = light.state_dict().keys()
        light.load_state_dict({name: value for name, value in self.state_dict().items() if name in kept})
        return light.train(self.training)

    def _resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """The library resizes the encoder's embeddings and the projection; the rest follows here."""
        embeddings = super()._resize_token_embeddings(*args, **kwargs)
        words = embeddings.num_embeddings
        decoder: Any = getattr(self, "decoder", None)
        if self.config.encoder_config is not None:
            self.config.encoder_config.vocab_size = words
        if hasattr(decoder, "embed_tokens") and not self.config.tie_word_embeddings:
            decoder.embed_tokens = self._get_resized_embeddings(decoder.embed_tokens, words)
        return embeddings

    @classmethod
    def from_encoder_pretrained(cls, encoder_name_or_path: str, **config: Any) -> Any:
        """A new model around a pretrained text encoder (paper, B-VAE and B-HSVAE), the rest of it untrained.

        Use the encoder's own tokenizer with it. A saved model holds everything, the encoder included. With
        `decoder_type="vector"` the encoder is frozen, and where it is a sentence-transformers model, its pooling,
        normalisation and prompts are its own; elsewhere the paper's mean over the tokens is the default.

        Args:
            encoder_name_or_path: a Hub id or a folder that `AutoModel` and `AutoTokenizer` load.
            config: fields of the model's configuration, such as `latent_size` or `freeze_text_encoder`.

        Raises:
            ValueError: if there is no such encoder, its tokenizer lacks a special token that the decoder needs, or a
                sentence-transformers model does what this package does not.
        """
        encoder_name_or_path, folder = check_source(encoder_name_or_path, "encoder_name_or_path"), ""
        if config.get("decoder_type") == "vector":
            own, place = read_pooling(encoder_name_or_path)
            config, folder = {"freeze_text_encoder": True, **own, **config}, place.get("subfolder", "")
        try:
            encoder, report = AutoModel.from_pretrained(
                encoder_name_or_path, subfolder=folder, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(encoder_name_or_path, subfolder=folder)
        except OSError as error:
            raise ValueError(
                "`encoder_name_or_path` must be the folder or the Hub id of a text encoder with its tokenizer, got "
                f"{str(encoder_name_or_path)!r}; check the path, or the id and the network."
            ) from error
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise ValueError(
                f"`encoder_name_or_path` must hold all weights of its encoder, got {str(encoder_name_or_path)!r} "
                f"without {missing[0]!r} and {len(missing) - 1} more; download it again."
            )
        words = encoder.get_input_embeddings().num_embeddings
        fields: dict[str, Any] = {"encoder_type": "transformer", "encoder_config": encoder.config, "vocab_size": words}
        if config.get("decoder_type") == "vector":  # no word is predicted: only padding has to be known
            ids = {"pad_token_id": tokenizer.pad_token_id or 0, "tokenizer_checksum": tokenizer_checksum(tokenizer)}
        else:
            ids = tokenizer_fields(tokenizer)
        fields |= {"tie_word_embeddings": False, **ids, **config}
        model = cls(cls.config_class(**fields))
        cast(TransformerEncoder, model.base_model.encoder).adopt(encoder)
        model.freeze()
        return model


class TextVAEModel(TextVAEPreTrainedModel):
    """Encoder and latent head: sentences in, sparse codes out."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^classifier\.", "gamma_kl_scale"]

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__(config)
        encoders = {"gru": GRUEncoder, "transformer": TransformerEncoder, "vector": NoEncoder}
        self.encoder = encoders[config.encoder_type](config)
        if not config.decodes_words:
            self.standardizer = Standardizer(config.feature_size)
            self.register_buffer("code_scale", torch.ones(config.latent_size))
        self.latent_head = self.latent_head_class(config)
        self.post_init()

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
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        asked = {name: getattr(self.config, name) if value is None else value for name, value in asked.items()}
        if vectors is None:
            if attention_mask is None and input_ids is not None:
                attention_mask = input_ids != self.config.pad_token_id
            encoded = self.encoder(input_ids, attention_mask, inputs_embeds, token_type_ids, **asked)
        else:
            self._check_vectors(vectors, input_ids if input_ids is not None else inputs_embeds, asked)
            encoded = BaseModelOutputWithPooling(pooler_output=vectors)
        output = self._code(encoded.pooler_output)
        output.hidden_states, output.attentions = encoded.hidden_states, encoded.attentions
        return output

    def _code(self, features: Tensor) -> TextVAEModelOutput:
        """The latent head's output, in fp32, with the code that users get."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if not self.config.decodes_words:
                features = self.standardizer(features)
            output = self.latent_head(features)
            code, vector = output.sparse_embedding, not self.config.decodes_words
            code = keep_largest(
                torch.where(code != 0, output.latent, 0.0) if vector else code, self.config.max_active_dims
            )
            output.sparse_embedding = cast(Tensor, self.code_scale) * code if vector else code
        return output

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
            return self.latent_head.costs(posterior, sample, self._encode)

    def neighbour_cost(self, posterior: TextVAEModelOutput) -> Tensor:
        """`neighbour_kl` of vectors and codes; gates learn through `E[z|x]` (straight-through)."""
        with torch.autocast(posterior.features.device.type, enabled=False):
            soft = cast(Tensor, self.code_scale) * self.latent_head.diagnostics(posterior)["posterior_mean"]
            codes = straight_through(posterior.sparse_embedding, soft)
            return neighbour_kl(self.standardizer.undo(posterior.features), codes, self.config.similarity_temperature)

    def _encode(self, inputs_embeds: Tensor) -> Tensor:
        features = self.encoder(inputs_embeds=inputs_embeds.to(self.dtype)).pooler_output.float()
        return self.standardizer(features) if not self.config.decodes_words else features


class TextVAEForPreTraining(TextVAEPreTrainedModel, TextVAEGenerationMixin):
    """Encoder, latent head and decoder: the sampled ELBO, and text out of latents."""

    _auto_class = "AutoModelForPreTraining"
    _tied_weights_keys = {"decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight"}  # GRU encoders
    model_class: type[TextVAEModel]
    can_generate = CanGenerate()

    def __init__(self, config: TextVAEConfig) -> None:
        super().__init__(config)
        if config.encoder_type != "gru":
            self._tied_weights_keys = {}
        self.model = self.model_class(config)
        self.decoder: Any = (GRUDecoder if config.decodes_words else VectorDecoder)(config)
        self.kl_scale = 1.0  # set by KL annealing; training only, so that evaluation losses stay comparable
        if self.model.latent_head.target_active_dims is not None:
            self.register_buffer("gamma_kl_scale", torch.ones(()))  # a buffer, so that a resumed run goes on with it
        self.post_init()

    def freeze(self) -> None:
        """Stop gradients of what `freeze_text_encoder` names, and of a vector decoder's scale that is not learned."""
        super().freeze()
        if not self.config.decodes_words:
            self.decoder.log_std.requires_grad_(self.config.learn_decoder_std)

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
            logits, states, cache = self.decoder.step(posterior.latent, decoder_input_ids, cache)
            keep = self.config.use_cache if use_cache is None else use_cache
            state = cache if keep else cast(Any, None)
            return TextVAEForPreTrainingOutput(logits=logits, cache=state, decoder_hidden_states=(states,))
        if not self.config.decodes_words:
            sample = self.model.sample(posterior)
            nats, squared_error = self.decoder(sample["z"], posterior.features)
            terms = {"squared_error": squared_error}
        else:
            targets = self._targets(input_ids, attention_mask, labels, encoded=encoder_outputs is None)
            sample = self.model.sample(posterior)
            nats, num_tokens = self.decoder(sample["z"], *targets)
            terms = {"num_tokens": num_tokens}
        reconstruction_loss = nats / sample["z"].shape[0]
        costs = self.model.costs(posterior, sample)
        if self.config.similarity_weight > 0:
            costs["similarity"] = self.model.neighbour_cost(posterior)
        loss = reconstruction_loss.float() + self._weighted(costs)
        terms |= {name: cost.mean(0).sum() if cost.dim() else cost for name, cost in costs.items()}
        states = {"encoder_hidden_states": posterior.hidden_states, "encoder_attentions": posterior.attentions}
        return TextVAEForPreTrainingOutput(loss=loss, reconstruction_loss=reconstruction_loss, **terms, **states)

    def _targets(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, labels: Tensor | None, encoded: bool
    ) -> tuple[Tensor, Tensor]:
        """The words to reconstruct, `(batch, steps)`, and which of them are padding; `encoded`: ids are checked."""
        if labels is not None:
            ignore = labels == -100
            if self.config.pad_token_id not in self.config.eos_token_ids:  # else the end of a sentence looks like it
                ignore = ignore | (labels == self.config.pad_token_id)
        elif input_ids is not None:
            words = self.config.encoder_vocab_size
            if words != self.config.vocab_size:
                raise ValueError(
                    f"`labels` must be given, of the decoder's {self.config.vocab_size} words: the encoder reads "
                    f"{words} others; set `vocab_size={words}` to reconstruct its own."
                )
            labels = input_ids
            ignore = ~attention_mask.bool() if attention_mask is not None else labels == self.config.pad_token_id
        else:
            raise ValueError("`labels` must be given where `input_ids` are not: they are the sentences to reconstruct.")
        if self.config.decoder_start_token_id not in self.config.eos_token_ids:  # [CLS] and the like: not predicted
            ignore = ignore | (labels == self.config.decoder_start_token_id)
        if labels is not input_ids or not encoded:
            check_ids(labels, ~ignore, self.config.vocab_size, "labels")
        return labels, ignore

    def _weighted(self, costs: dict[str, Tensor]) -> Tensor | float:
        total: Tensor | float = 0.0
        for name, cost in costs.items():
            if name.endswith("_kl"):
                per_dimension = cost.mean(0)  # (latent_size,)
                if self.config.free_bits > 0:
                    per_dimension = per_dimension.clamp_min(self.config.free_bits)
                cost = per_dimension.sum() * (self.kl_scale if self.training else 1.0)
                if name == "gamma_kl" and self.model.latent_head.target_active_dims is not None:
                    cost = cost * cast(Tensor, self.gamma_kl_scale)
            total = total + getattr(self.config, f"{name}_weight") * cost
        return total


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

    def train(self, mode: bool = True) -> "TextVAEForSequenceClassification":
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
        **kwargs: Any,
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
            vectors: `(batch, feature_size)`, the encoder's features instead of text, where they are there already.
            kwargs: of `TextVAEModel.forward`.

        Returns:
            Loss, and logits `(batch, num_labels)`: log marginal probabilities (single label), log odds of the marginal
            probabilities (multi-label) or the mean prediction (regression).

        Raises:
            ValueError: if `labels` are outside the range.
        """
        posterior = self.model(input_ids, attention_mask, inputs_embeds, vectors, return_dict=True, **kwargs)
        samples = max(self.config.num_samples, 1)
        z = posterior.sparse_embedding
        if not self.config.decodes_words:  # on the scale of the draws, whatever the code's
            z = torch.where(z != 0, posterior.latent, 0.0)
        if self.config.num_samples > 0:
            tensors = {name: value for name, value in posterior.items() if isinstance(value, Tensor)}
            fields = {name: value.repeat_interleave(samples, dim=0) for name, value in tensors.items()}
            z = self.model.sample(type(posterior)(**fields))["z"]
        scores = self.classifier(z).unflatten(0, (-1, samples))  # (batch, samples, num_labels)
        problem = self._problem_type(labels)
        if labels is not None and self.config.problem_type is None and not traced():
            self.config.problem_type = cast(
                Any, problem
            )  # as in transformers: what is saved must know how to read the logits
        if problem == "regression":
            logits = scores.mean(1)
        elif problem == "multi_label_classification":
            log_yes, log_no = F.logsigmoid(scores).logsumexp(1), F.logsigmoid(-scores).logsumexp(1)
            logits = log_yes - log_no
        else:
            logits = scores.log_softmax(-1).logsumexp(1) - math.log(samples)
        loss = None if labels is None else self._loss(problem, logits, labels)
        states = {"hidden_states": posterior.hidden_states, "attentions": posterior.attentions}
        return SequenceClassifierOutput(loss=loss, logits=logits, **states)

    def _problem_type(self, labels: Tensor | None) -> str:
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
