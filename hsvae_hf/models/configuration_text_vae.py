"""Configuration that every text VAE of this package shares: encoder, decoder, vocabulary, latent size, weights."""

import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal, NoReturn, cast

from huggingface_hub.dataclasses import as_validated_field, strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .saving import write_sentence_transformers_files

Validated = Callable[..., Any]  # takes `default` and gives a field of a strict dataclass that is checked when it is set


def validated(holds: Callable[[Any], bool], rule: str, remedy: str) -> Validated:
    """A field whose value must satisfy `holds`; None always may pass, where the type of the field allows it.

    The error is "must be RULE, got VALUE; REMEDY.". The library puts the name of the field before it; see `refusal`.
    """

    @as_validated_field
    def field(value: object) -> None:
        if value is not None and not holds(value):
            raise ValueError(f"must be {rule}, got {value!r}; {remedy}.")

    return cast(Validated, field)


def between(low: float, high: float) -> Validated:
    """A field from `low` to `high`, both included.

    In these ranges the mathematics is right in fp32. Beyond them, draws or gradients overflow or lose all digits.
    """
    return validated(lambda value: low <= value <= high, f"from {low:g} to {high:g}", "choose a value in between")


def inside(low: float, high: float, remedy: str) -> Validated:
    """A field between `low` and `high`, both excluded."""
    return validated(lambda value: low < value < high, f"inside ({low:g}, {high:g})", remedy)


def at_least(low: int, remedy: str) -> Validated:
    """A field of `low` or more."""
    return validated(lambda value: value >= low, f"at least {low}", remedy)


positive = at_least(1, "choose a positive number")
nonnegative = validated(
    lambda value: 0 <= value < float("inf"), "at least 0 and finite", "use 0 to switch the term off"
)  # of a term of the objective
checksum = validated(
    lambda value: re.fullmatch(r"[0-9]+-[0-9a-f]{16}", value) is not None,
    "a number of words, a dash and sixteen hexadecimal digits",
    "set it to None to compare nothing",
)


def refusal(error: Exception) -> str:
    """The error of a configuration in one line that begins with the field.

    >>> try:
    ...     TextVAEConfig(latent_size=0)
    ... except Exception as error:
    ...     refusal(error)
    '`latent_size` must be at least 1, got 0; choose a positive number.'
    """
    lines = " ".join(str(error).split())
    named = re.match(r"Validation error for field '(\w+)': ValueError: (.*)", lines)
    return f"`{named[1]}` {named[2]}" if named else lines.rpartition("ValueError: ")[2]


# Fields of version 0.1.0 that are gone, and the one value that a saved configuration may still have for them.
RETIRED: dict[str, Any] = {
    "learn_decoder_std": False,
    "code_snr_min": 0.0,
    "pseudo_inputs": "features",
    "pseudo_length": 8,
}

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
        feature_std: where words are reconstructed, the standard deviation over sentences and dimensions that the
            encoder's features get before the latent head reads them (batch normalisation with one deviation for all
            dimensions), 0.001 to 1000; batches need two rows. 0 takes features as they are. Left out, it is 0.3 for
            HSVAE and VSC, 0 for the others and for a file without it, as of version 0.1.0.
        prompts: texts that go before a sentence, by name, where the transformer was trained with such; None for none.
        default_prompt_name: the prompt of a sentence that comes with no name; None for none.
        vector_size: width of the vectors, for `encoder_type="vector"` alone.
        decoder_type: `"gru"` reconstructs the words; it gets `[embedding(x_{t-1}); z]` at every step. `"vector"`
            reconstructs the frozen encoder's vector, standardised over the training text: `N(W z + b, decoder_std^2)`.
        decoder_std: scale of the vector decoder, in standard deviations of the vectors (0.001 to 1000).
        similarity_weight: where vectors are reconstructed, weight of the term that asks that a sentence's neighbours
            in the batch are the same by its code as by its vector (`distributions.neighbour_kl`, >= 0); 0 is the ELBO.
        similarity_temperature: of the cosines in it; the smaller, the nearer the neighbours that count (0.001 to 1000).
        tie_word_embeddings: share the word embeddings between encoder and decoder (GRU encoders only).
        z_kl_weight: psi, the weight of KL_z in the objective (>= 0).
        gamma_kl_weight: lambda, the weight of the gate's KL in the objective (>= 0).
        penalty_weight: weight of the latent head's penalty, if it has one (>= 0).
        free_bits: nats per latent dimension (batch mean) below which a KL costs nothing extra; 0 is off.
        word_dropout: probability that a decoder input word is replaced by the unknown word in training; 0 is off.
        min_active_dims: fewest non-zeros of a code: the strongest of the dimensions that are off fill it up (at least
            0; for models with gates).
        max_active_dims: most non-zeros of a code, the strongest stay; None keeps all. See `LatentHead.strength`.
        code_ridge: where vectors are reconstructed, how the values of a code are found. None takes the encoder's. A
            number r > 0 takes the posterior mean given which dimensions are on, for an observation of variance r
            (`VectorDecoder.posterior_mean`); it needs `max_active_dims`.
        code_budgets: where vectors are reconstructed, numbers of non-zeros that codes are trained for, each step one of
            them; None trains codes as the gates make them.
        code_reconstruction_weight: where vectors are reconstructed, weight of their reconstruction by such codes,
            beside that by draws (>= 0).
        revival_weight: where vectors are reconstructed, weight of what idle dimensions could explain of that which
            codes leave (>= 0; `TextVAEModel.revival`).
        nonnegative_codes: whether codes have no negative value, for search engines that refuse those. It is chosen
            before training, for HSVAE where vectors are reconstructed. With `code_ridge`, a dimension whose best value
            is not positive is left out, so a code may have fewer non-zeros than it should.
        similarity_fn_name: how codes are compared, by `"cosine"` or by their dot product (`"dot"`). Training codes of
            vectors ends by setting it to what keeps more of the neighbours of held-out vectors; where words are
            reconstructed there are no vectors to measure it by, and it stays the cosine.
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
    default_feature_std = 0.0  # of words
    gives_nonnegative_codes = False  # whether the latent head of this family knows `nonnegative_codes`
    attribute_map = {"projection_dim": "latent_size"}  # where sentence-transformers looks for a code's width
    keys_to_ignore_at_inference = [
        "reconstruction_loss",
        "z_kl",
        "gamma_kl",
        "penalty",
        "similarity",
        "code_reconstruction",
        "revival",
        "num_tokens",
        "squared_error",
    ]

    vocab_size: int = positive(default=20_000)
    embedding_size: int = positive(default=256)
    hidden_size: int = positive(default=512)
    latent_size: int = positive(default=768)
    encoder_type: Literal["gru", "transformer", "vector"] = "gru"
    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    freeze_text_encoder: bool = False
    pooling: Literal["mean", "cls", "last"] = "mean"
    normalize_vectors: bool = False
    feature_std: float | int | None = validated(
        lambda value: value == 0 or 1e-3 <= value <= 1e3, "0 or from 0.001 to 1000", "leave it out"
    )(default=None)
    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None
    vector_size: int | None = positive(default=None)
    decoder_type: Literal["gru", "vector"] = "gru"
    decoder_std: float | int = between(1e-3, 1e3)(default=0.5)
    similarity_weight: float | int = nonnegative(default=0.0)
    similarity_temperature: float | int = between(1e-3, 1e3)(default=0.03)
    code_ridge: float | int | None = validated(
        lambda value: value is None or 1e-6 <= value <= 1e3, "from 0.000001 to 1000", "None takes the encoder's values"
    )(default=None)
    code_budgets: list[int] | None = None
    code_reconstruction_weight: float | int = nonnegative(default=0.0)
    revival_weight: float | int = nonnegative(default=0.0)
    nonnegative_codes: bool = False
    tie_word_embeddings: bool = True
    z_kl_weight: float | int = nonnegative(default=0.01)
    gamma_kl_weight: float | int = nonnegative(default=0.01)
    penalty_weight: float | int = nonnegative(default=1.0)
    free_bits: float | int = nonnegative(default=0.0)
    word_dropout: float | int = validated(lambda value: 0 <= value < 1, "in [0, 1)", "use 0 to switch it off")(
        default=0.5
    )
    min_active_dims: int = at_least(0, "0 lets the gates decide alone")(default=0)
    max_active_dims: int | None = at_least(1, "choose a positive number, or None to keep all")(default=None)
    similarity_fn_name: Literal["cosine", "dot"] = "cosine"
    num_samples: int = at_least(0, "0 uses the deterministic code")(default=5)
    classifier_hidden_size: int = positive(default=32)
    freeze_encoder: bool = True
    initializer_range: float | int = between(1e-6, 10)(default=0.05)
    is_encoder_decoder: bool = True
    pad_token_id: int = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 1
    unk_token_id: int = 2
    decoder_start_token_id: int = 1
    use_cache: bool = True
    tokenizer_checksum: str | None = checksum(default=None)

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse unknown names; turn the encoder's fields, as read from config.json, into its configuration."""
        if "model_type" not in kwargs:  # given by hand; a file may hold what another version knows
            self._refuse_unknown(kwargs)
        for name in RETIRED.keys() & kwargs.keys():
            value = kwargs.pop(name)
            if value != RETIRED[name]:
                raise ValueError(
                    f"`{name}` must be {RETIRED[name]!r}, got {value!r}; for this model use version 0.1.0 of hsvae_hf, "
                    "the last that had other values."
                )
        if isinstance(self.encoder_config, dict):
            kind = str(self.encoder_config.get("model_type"))
            if kind not in CONFIG_MAPPING:
                raise ValueError(
                    f"`encoder_config` must be a dict with a known `model_type`, got {kind!r}; give the configuration "
                    "of a text encoder of transformers."
                )
            self.encoder_config = CONFIG_MAPPING[kind](**self.encoder_config)
        if self.feature_std is None:
            of_file = "model_type" in kwargs  # of version 0.1.0, which had no such field
            self.feature_std = 0.0 if of_file or not self.decodes_words else self.default_feature_std
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

    def refuse(self, field: str, rule: str, remedy: str) -> NoReturn:
        """Raise the error of a rule that ties fields together: "`FIELD` must be RULE, got VALUE; REMEDY."."""
        value = getattr(self, field)
        shown = type(value).__name__ if isinstance(value, PreTrainedConfig) else repr(value)
        raise ValueError(f"`{field}` must be {rule}, got {shown}; {remedy}.")

    def validate_encoder(self) -> None:
        """A transformer has a configuration and word embeddings of its own; a GRU and vectors have neither."""
        transformer = self.encoder_type == "transformer"
        if transformer != (self.encoder_config is not None):
            rule = "given if and only if `encoder_type` is 'transformer'"
            self.refuse("encoder_config", rule, "use `from_encoder_pretrained`")
        if getattr(self.encoder_config, "is_encoder_decoder", False):
            self.refuse("encoder_config", "that of a text encoder, without a decoder", "choose one such as BERT")
        if self.vocab_size > self.encoder_vocab_size:
            rule = f"at most that of `encoder_config` ({self.encoder_vocab_size})"
            self.refuse("vocab_size", rule, "the encoder reads no others")
        if self.tie_word_embeddings and self.encoder_type != "gru":
            remedy = "its word embeddings are not those of the decoder"
            self.refuse("tie_word_embeddings", "False without a GRU encoder", remedy)
        if self.freeze_text_encoder and not transformer:
            self.refuse("freeze_text_encoder", "False without a transformer", "there is nothing pretrained to keep")
        prompts = [None, *(self.prompts or {})]
        if self.default_prompt_name not in prompts:
            self.refuse("default_prompt_name", f"one of {', '.join(map(str, prompts))}", "name one of `prompts`")

    def validate_vectors(self) -> None:
        """A vector decoder reconstructs what does not move: vectors as they come, or of a frozen transformer."""
        if self.reads_text != (self.vector_size is None):
            rule = "given if and only if `encoder_type` is 'vector'"
            self.refuse("vector_size", rule, "give the width of the vectors")
        if self.decodes_words:
            if not self.reads_text:
                self.refuse("decoder_type", "'vector' where `encoder_type` is", "there are no words to reconstruct")
            if self.similarity_weight > 0:
                rule = "0 where words are reconstructed"
                self.refuse("similarity_weight", rule, "there is no vector to be similar by")
        elif self.feature_std:
            self.refuse("feature_std", "0 with a vector decoder", "its vectors are standardised anyway")
        elif self.encoder_type == "gru":
            self.refuse("encoder_type", "'vector' or 'transformer' with a vector decoder", "use a pretrained encoder")
        elif self.reads_text and not self.freeze_text_encoder:
            remedy = "the vector that is reconstructed must not move"
            self.refuse("freeze_text_encoder", "True with a vector decoder", remedy)

    def validate_codes(self) -> None:
        """A floor below the ceiling; what needs vectors comes with them."""
        most = min(self.latent_size, self.max_active_dims or self.latent_size)
        if self.min_active_dims > most:
            remedy = "choose no more than `latent_size` and `max_active_dims` allow"
            self.refuse("min_active_dims", f"at most {most}", remedy)
        of_vectors: dict[str, Any] = {"code_ridge": None, "code_budgets": None, "code_reconstruction_weight": 0}
        for field, unset in (of_vectors | {"revival_weight": 0, "nonnegative_codes": False}).items():
            if self.decodes_words and getattr(self, field) != unset:
                self.refuse(field, f"{unset} where words are reconstructed", "it is for `decoder_type='vector'`")
        if self.nonnegative_codes and not self.gives_nonnegative_codes:
            remedy = "use hsvae, or give each dimension two, for positive and for negative values"
            self.refuse("nonnegative_codes", f"False for {self.model_type}", remedy)
        if self.code_ridge is not None and self.max_active_dims is None:
            self.refuse("max_active_dims", "given with `code_ridge`", "twice the wanted number is a start")
        budgets = self.code_budgets
        if budgets is not None and not (budgets and all(1 <= budget <= self.latent_size for budget in budgets)):
            rule = f"numbers from 1 to `latent_size` ({self.latent_size})"
            self.refuse("code_budgets", rule, "[2, 4, 8, 16, 32, 64] is a start")

    def validate_special_tokens(self) -> None:
        """The special tokens are words of the vocabulary, and padding is none of the others."""
        ids = {
            "pad_token_id": [self.pad_token_id],
            "unk_token_id": [self.unk_token_id],
            "decoder_start_token_id": [self.decoder_start_token_id],
            "eos_token_id": self.eos_token_ids,
            "bos_token_id": [] if self.bos_token_id is None else [self.bos_token_id],
        }
        for name, values in ids.items():
            if not all(0 <= value < self.vocab_size for value in values):
                rule = f"an id below `vocab_size` ({self.vocab_size})"
                self.refuse(name, rule, "take it and `vocab_size` from the tokenizer")
        if self.decodes_words and self.pad_token_id in self.eos_token_ids:
            self.refuse("pad_token_id", "not `eos_token_id`", "padding must be a token of its own")
