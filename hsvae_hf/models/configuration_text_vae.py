"""What every text VAE of this package shares: encoder, decoder, vocabulary, latent size."""

import re
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal, cast

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .saving import write_sentence_transformers_files


def require(valid: bool, argument: str, rule: str, value: Any, remedy: str) -> None:
    """Raise the package's one kind of configuration error unless `valid`.

    Raises:
        ValueError: naming `argument`, the rule, the value and the remedy.
    """
    if not valid:
        raise ValueError(f"`{argument}` must be {rule}, got {value!r}; {remedy}.")


def require_range(config: Any, low: float, high: float, *names: str) -> None:
    """Raise that error unless the fields `names` of `config` are from `low` to `high`, both included.

    The ranges are where the mathematics is right in fp32: beyond them, draws or gradients overflow or lose all digits.
    """
    for name in names:
        value = getattr(config, name)
        require(low <= value <= high, name, f"from {low:g} to {high:g}", value, "choose a value in between")


# What the library takes besides fields: see `PreTrainedConfig.__post_init__`.
_LIBRARY_OPTIONS = {"num_labels", "torch_dtype", "name_or_path", "output_attentions", "attn_implementation"}
_LIBRARY_OPTIONS |= {"experts_implementation", "auto_map"}


@strict
class TextVAEConfig(PreTrainedConfig):
    """Configuration of the body: text encoder, latent size, decoder, classification head.

    Args:
        vocab_size: number of word types, special tokens included. With a transformer, that of its configuration; fewer
            where the decoder has words of its own, which come as `labels`.
        embedding_size: width of the word embeddings, shared by encoder and decoder.
        hidden_size: width of the GRU state, of encoder and decoder.
        latent_size: number of latent dimensions.
        encoder_type: `"gru"` reads the last hidden state after the end-of-sentence token; `"transformer"` pools the
            last layer of a text encoder of transformers (see `from_encoder_pretrained`); `"vector"` is no encoder at
            all: the model takes sentence vectors made elsewhere.
        encoder_config: configuration of the transformer, or its fields as a dict with `model_type`; None for a GRU.
        freeze_text_encoder: keep the transformer as it is, dropout off, in training too.
        pooling: of a transformer's token states: their `"mean"`, the first (`"cls"`) or the `"last"`.
        normalize_vectors: whether a transformer's pooled vector is scaled to length 1.
        prompts: texts that go before a sentence, by name, where the transformer was trained with such; None for none.
        default_prompt_name: the prompt of a sentence that comes with no name; None for none.
        vector_size: width of the vectors, for `encoder_type="vector"` alone.
        decoder_type: `"gru"` reconstructs the words; it gets `[embedding(x_{t-1}); z]` at every step. `"vector"`
            reconstructs the frozen encoder's vector, standardised over the training text: `N(W z + b, decoder_std^2)`.
        decoder_std: scale of the vector decoder, in standard deviations of the vectors (0.001 to 1000).
        learn_decoder_std: whether that scale is trained.
        similarity_weight: where vectors are reconstructed, weight of the term that asks that a sentence's neighbours
            in the batch are the same by its code as by its vector (`distributions.neighbour_kl`, >= 0); 0 is the ELBO.
        similarity_temperature: of the cosines in it; the smaller, the nearer the neighbours that count (0.001 to 1000).
        tie_word_embeddings: share the word embeddings between encoder and decoder (GRU encoders only).
        z_kl_weight: psi, the weight of KL_z in the objective (>= 0).
        gamma_kl_weight: lambda, the weight of the gate's KL in the objective (>= 0).
        penalty_weight: weight of the latent head's penalty, if it has one (>= 0).
        free_bits: nats per latent dimension (batch mean) below which a KL costs nothing extra; 0 is off.
        word_dropout: probability that a decoder input word is replaced by the unknown word in training; 0 is off.
        max_active_dims: keep at most this many non-zero dimensions of a code, largest magnitudes first; None keeps all.
        num_samples: K, the Monte-Carlo samples of the classification head; 0 classifies the deterministic code.
        classifier_hidden_size: width of the classifier's two dense layers.
        freeze_encoder: train the classifier alone, on a frozen encoder and latent head.
        initializer_range: standard deviation of the word embeddings at initialisation.
        pad_token_id: padding id, never read by the model.
        bos_token_id: first decoder input; the end-of-sentence token, as in the released code. None, which
            some versions of the Trainer write, changes nothing: `decoder_start_token_id` is what is read.
        eos_token_id: end-of-sentence id; the encoder reads it, the decoder predicts it. Generation stops at it; at any
            of them where it is a list, at none where it is None.
        unk_token_id: unknown-word id, the replacement of word dropout.
        decoder_start_token_id: what generation starts from, the same as `bos_token_id`.
        use_cache: keep the decoder's state between the steps of generation.
        tokenizer_checksum: of the words that the model was trained with, so that another tokenizer is refused; None
            compares nothing. Words may be added; who changes others sets it to None.
    """

    model_type = "text-vae"
    _auto_class = "AutoConfig"  # its code is saved with it
    sub_configs = {"encoder_config": AutoConfig}
    attribute_map = {"projection_dim": "latent_size"}  # where sentence-transformers looks for a code's width
    keys_to_ignore_at_inference = [
        "reconstruction_loss",
        "z_kl",
        "gamma_kl",
        "penalty",
        "similarity",
        "num_tokens",
        "squared_error",
    ]

    vocab_size: int = 20_000
    embedding_size: int = 256
    hidden_size: int = 512
    latent_size: int = 768
    encoder_type: Literal["gru", "transformer", "vector"] = "gru"
    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    freeze_text_encoder: bool = False
    pooling: Literal["mean", "cls", "last"] = "mean"
    normalize_vectors: bool = False
    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None
    vector_size: int | None = None
    decoder_type: Literal["gru", "vector"] = "gru"
    decoder_std: float | int = 0.5
    learn_decoder_std: bool = False
    similarity_weight: float | int = 0.0
    similarity_temperature: float | int = 0.03
    tie_word_embeddings: bool = True
    z_kl_weight: float | int = 0.01
    gamma_kl_weight: float | int = 0.01
    penalty_weight: float | int = 1.0
    free_bits: float | int = 0.0
    word_dropout: float | int = 0.5
    max_active_dims: int | None = None
    num_samples: int = 5
    classifier_hidden_size: int = 32
    freeze_encoder: bool = True
    initializer_range: float | int = 0.05
    is_encoder_decoder: bool = True
    pad_token_id: int = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 1
    unk_token_id: int = 2
    decoder_start_token_id: int = 1
    use_cache: bool = True
    tokenizer_checksum: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse unknown names; turn the encoder's fields, as read from config.json, into its configuration."""
        if "model_type" not in kwargs:  # given by hand; a file may hold what another version knows
            self._refuse_unknown(kwargs)
        if isinstance(self.encoder_config, dict):
            kind = str(self.encoder_config.get("model_type"))
            remedy = "give the configuration of a text encoder of transformers"
            require(kind in CONFIG_MAPPING, "encoder_config", "a dict with a known `model_type`", kind, remedy)
            self.encoder_config = CONFIG_MAPPING[kind](**self.encoder_config)
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers; with what sentence-transformers reads beside it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        write_sentence_transformers_files(save_directory, self)

    def _refuse_unknown(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in _LIBRARY_OPTIONS and name not in self.attribute_map and not name.startswith("_"):
                near = get_close_matches(name, [item.name for item in fields(self)], 1)
                remedy = f"the nearest is `{near[0]}`" if near else f"`help({type(self).__name__})` lists them"
                raise ValueError(f"`{name}` must be a field of {type(self).__name__}, got an unknown name; {remedy}.")

    @property
    def reads_text(self) -> bool:
        """Whether there is a text encoder; without one the model takes sentence vectors."""
        return self.encoder_type != "vector"

    @property
    def decodes_words(self) -> bool:
        """Whether words are what is reconstructed; else it is the frozen encoder's vector."""
        return self.decoder_type != "vector"

    @property
    def eos_token_ids(self) -> list[int]:
        """All ids that end a sentence."""
        ids = self.eos_token_id
        return ids if isinstance(ids, list) else [] if ids is None else [ids]

    @property
    def encoder_vocab_size(self) -> int:
        """Number of word types that the encoder reads."""
        return getattr(self.encoder_config, "vocab_size", None) or self.vocab_size

    @property
    def feature_size(self) -> int:
        """Width of the encoder's features."""
        if not self.reads_text:
            return cast(int, self.vector_size)
        return cast(int, getattr(self.encoder_config, "hidden_size", self.hidden_size))

    @property
    def word_embedding_size(self) -> int:
        """Width of the encoder's word embeddings."""
        if self.encoder_config is None:
            return self.embedding_size
        return cast(int, getattr(self.encoder_config, "embedding_size", self.feature_size))

    def validate_encoder(self) -> None:
        """A transformer has a configuration and word embeddings of its own; a GRU and vectors have neither."""
        transformer = self.encoder_type == "transformer"
        found = type(self.encoder_config).__name__
        rule, remedy = "given if and only if `encoder_type` is 'transformer'", "use `from_encoder_pretrained`"
        require(transformer == (self.encoder_config is not None), "encoder_config", rule, found, remedy)
        both = getattr(self.encoder_config, "is_encoder_decoder", False)
        rule, remedy = "that of a text encoder, without a decoder", "choose one such as BERT"
        require(not both, "encoder_config", rule, found, remedy)
        words = self.encoder_vocab_size
        rule, remedy = f"at most that of `encoder_config` ({words})", "the encoder reads no others"
        require(not transformer or self.vocab_size <= words, "vocab_size", rule, self.vocab_size, remedy)
        rule, remedy = "False without a GRU encoder", "its word embeddings are not those of the decoder"
        tied = self.encoder_type != "gru" and self.tie_word_embeddings
        require(not tied, "tie_word_embeddings", rule, True, remedy)
        rule, remedy = "False without a transformer", "there is nothing pretrained to keep"
        require(transformer or not self.freeze_text_encoder, "freeze_text_encoder", rule, True, remedy)
        names = (None, *(self.prompts or {}))
        rule, remedy = f"one of {', '.join(map(str, names))}", "name one of `prompts`"
        require(self.default_prompt_name in names, "default_prompt_name", rule, self.default_prompt_name, remedy)

    def validate_vectors(self) -> None:
        """A vector decoder reconstructs what does not move: vectors as they come, or of a frozen transformer."""
        vectors = self.encoder_type == "vector"
        rule, remedy = "given if and only if `encoder_type` is 'vector'", "give the width of the vectors"
        require(vectors == (self.vector_size is not None), "vector_size", rule, self.vector_size, remedy)
        require((self.vector_size or 1) >= 1, "vector_size", "at least 1", self.vector_size, remedy)
        rule, remedy = "'vector' where `encoder_type` is", "there are no words to reconstruct"
        require(not vectors or self.decoder_type == "vector", "decoder_type", rule, self.decoder_type, remedy)
        rule, remedy = "'vector' or 'transformer' with a vector decoder", "use a pretrained encoder"
        words = self.decoder_type == "vector" and self.encoder_type == "gru"
        require(not words, "encoder_type", rule, self.encoder_type, remedy)
        moves = self.decoder_type == "vector" and self.encoder_type == "transformer" and not self.freeze_text_encoder
        rule, remedy = "True with a vector decoder", "the vector that is reconstructed must not move"
        require(not moves, "freeze_text_encoder", rule, False, remedy)
        require_range(self, 1e-3, 1e3, "decoder_std", "similarity_temperature")
        rule, remedy = "0 where words are reconstructed", "there is no vector to be similar by"
        words = self.decoder_type == "gru" and self.similarity_weight > 0
        require(not words, "similarity_weight", rule, self.similarity_weight, remedy)

    def validate_sizes(self) -> None:
        """Sizes are positive, counts are not negative."""
        for name in ("vocab_size", "embedding_size", "hidden_size", "latent_size", "classifier_hidden_size"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name), "choose a positive size")
        require(self.num_samples >= 0, "num_samples", "at least 0", self.num_samples, "0 uses the deterministic code")
        if self.max_active_dims is not None:
            remedy = "choose a positive number, or None to keep all"
            require(self.max_active_dims >= 1, "max_active_dims", "at least 1", self.max_active_dims, remedy)

    def validate_weights(self) -> None:
        """Weights are not negative; word dropout is a probability below 1."""
        for name in ("z_kl_weight", "gamma_kl_weight", "penalty_weight", "similarity_weight", "free_bits"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), name, "at least 0 and finite", value, "use 0 to switch the term off")
        require_range(self, 1e-6, 10, "initializer_range")
        remedy = "use 0 to switch it off"
        require(0 <= self.word_dropout < 1, "word_dropout", "in [0, 1)", self.word_dropout, remedy)

    def validate_special_tokens(self) -> None:
        """The special tokens are words of the vocabulary, and padding is none of the others."""
        names = ("pad_token_id", "unk_token_id", "decoder_start_token_id")
        ids = [(name, getattr(self, name)) for name in names] + [("eos_token_id", id) for id in self.eos_token_ids]
        ids += [] if self.bos_token_id is None else [("bos_token_id", self.bos_token_id)]
        for name, value in ids:
            remedy = "take it and `vocab_size` from the tokenizer"
            require(0 <= value < self.vocab_size, name, f"an id below `vocab_size` ({self.vocab_size})", value, remedy)
        remedy = "padding must be a token of its own"
        clash = self.decoder_type == "gru" and self.pad_token_id in self.eos_token_ids
        require(not clash, "pad_token_id", "not `eos_token_id`", self.pad_token_id, remedy)
        value, rule = self.tokenizer_checksum, "a number of words, a dash and sixteen hexadecimal digits"
        whole = value is None or re.fullmatch(r"[0-9]+-[0-9a-f]{16}", value) is not None
        require(whole, "tokenizer_checksum", rule, value, "set it to None to compare nothing")
