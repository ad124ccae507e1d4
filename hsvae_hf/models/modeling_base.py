"""Base class of all models: initialisation, dtypes, saving and loading, and models around a pretrained encoder."""

import copy
import os
import warnings
from itertools import chain
from typing import Any, Self, cast

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init

from .configuration_text_vae import TextVAEConfig
from .modeling_encoders import TransformerEncoder
from .pooling import read_pooling
from .saving import auto_map, read_dimensions, write_dimensions
from .sources import check_source
from .vocabulary import tokenizer_checksum, tokenizer_fields

# Parts that half precision would spoil: small heads, statistics, a weight that moves by fractions of a percent.
FLOAT32 = {"latent_head", "standardizer", "feature_norm", "classifier", "code_scale", "gamma_kl_scale"}

_CONVERT = (
    "Weights are read from model.safetensors alone. To convert a .bin checkpoint that you trust, run in its folder: "
    "import torch, safetensors.torch as s; weights = torch.load('pytorch_model.bin', weights_only=True); "
    "s.save_file({name: w.clone() for name, w in weights.items()}, 'model.safetensors', {'format': 'pt'})"
)


# Fields that a text encoder sets, and notes of a file, which a model does not take on with an encoder.
_OF_THE_ENCODER = {"encoder_type", "encoder_config", "vector_size", "freeze_text_encoder", "tie_word_embeddings"}
_OF_THE_ENCODER |= {"pooling", "normalize_vectors", "prompts", "default_prompt_name", "vocab_size", "pad_token_id"}
_OF_THE_ENCODER |= {"tokenizer_checksum", "model_type", "transformers_version", "architectures", "auto_map", "dtype"}


class TextVAEPreTrainedModel(PreTrainedModel):
    """What all models share. A model family names its configuration class by the annotation of `config`."""

    config: TextVAEConfig
    _auto_class = "AutoModel"  # the code of the model is saved with it
    base_model_prefix = "model"
    main_input_name = "input_ids"
    accepts_loss_kwargs = False
    _no_split_modules = ["GRUEncoder", "TransformerEncoder", "GRUDecoder"]
    # Which of these a transformer has is for it to say; a GRU has no attention, so any will do.
    dimensions_json: str | None = None  # of the body: the names of dimensions, as they were saved with it
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: TextVAEConfig) -> None:
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
        device = next(chain(self.parameters(), self.buffers())).device
        hook = getattr(self, "_hf_hook", None)  # of accelerate
        return torch.device(hook.execution_device) if device.type == "meta" and hook is not None else device

    def _init_weights(self, module: nn.Module) -> None:
        """As in transformers; a module with more to set than its layers brings `init_parameters`.

        Such a module must hold parameters or buffers itself: in custom code transformers passes over those that do not.
        """
        super()._init_weights(module)
        if isinstance(module, nn.GRU | nn.Linear):
            for name, parameter in module.named_parameters(recurse=False):
                (init.zeros_ if "bias" in name else init.lecun_normal_)(parameter)
        init_parameters: Any = getattr(module, "init_parameters", None)
        if init_parameters is not None:
            init_parameters()

    def train(self, mode: bool = True) -> Self:
        """As in transformers; a warning where weights in fp16 would learn, as they do of a checkpoint in fp16."""
        if mode and any(value.requires_grad and value.dtype == torch.float16 for value in self.parameters()):
            warnings.warn(
                "Weights in float16 are to learn, which diverges or rounds to nothing; load the model with "
                "`dtype=torch.float32`, and train with `fp16=True` or `bf16=True` for speed.",
                stacklevel=2,
            )
        return super().train(mode)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in transformers; the folder also holds the code of the model and what sentence-transformers reads.

        It then loads with `trust_remote_code=True` where this package is not installed, by every Auto class and by
        sentence-transformers' `SparseEncoder`.
        """
        self.config.auto_map = auto_map(self.config, type(self).__module__)
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_dimensions(save_directory, self.base_model)

    def _upload_modified_files(self, working_dir: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        # Of `save_pretrained(push_to_hub=True)`, which uploads before it returns.
        write_dimensions(working_dir, self.base_model)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, from safetensors alone; what the configuration freezes is frozen.

        Raises:
            OSError: if there are no such weights; a `.bin` checkpoint is a pickle, which can run code when it is read.
        """
        options = kwargs | {"use_safetensors": True}
        if hasattr(cls, "model_class"):  # of a vector decoder: version 0.1.0 kept it outside the body
            options["key_mapping"] = {r"^decoder\.(?=output\.|log_std$)": "model.decoder."} | kwargs.get(
                "key_mapping", {}
            )
        try:
            loaded = super().from_pretrained(*args, **options)
        except OSError as error:
            if "safetensors" in str(error):
                raise OSError(f"{error} {_CONVERT}") from error
            raise
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze()
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        if source is not None:
            commit = getattr(model.config, "_commit_hash", None)  # of the weights, where they are from the Hub
            place = kwargs if commit is None else kwargs | {"revision": commit}
            model.base_model.dimensions_json = read_dimensions(source, **place)
        return loaded

    def _resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; a transformer's configuration follows."""
        embeddings = cast(nn.Embedding, super()._resize_token_embeddings(*args, **kwargs))
        if isinstance(self.config.encoder_config, PreTrainedConfig):
            self.config.encoder_config.vocab_size = embeddings.num_embeddings
        return embeddings

    def freeze(self) -> None:
        """Stop gradients of what `freeze_text_encoder` and, in a classifier, `freeze_encoder` name."""
        if self.config.freeze_text_encoder:
            self.base_model.encoder.requires_grad_(False)

    def without_encoder(self) -> Self:
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
        light.base_model.dimensions_json = self.base_model.dimensions_json
        return light.train(self.training)

    def with_encoder(self, encoder_name_or_path: str) -> Self:
        """The opposite of `without_encoder`: this model with the text encoder whose vectors it takes.

        Use the encoder's own tokenizer with it.

        Args:
            encoder_name_or_path: as of `from_encoder_pretrained`.

        Raises:
            ValueError: if this model has an encoder, or this one gives vectors of another width.
        """
        if self.config.encoder_type != "vector":
            raise ValueError(
                "`encoder_name_or_path` must be left out for a model with an encoder of its own, got "
                f"{encoder_name_or_path!r}; leave it out."
            )
        own = {name: value for name, value in self.config.to_diff_dict().items() if name not in _OF_THE_ENCODER}
        model = type(self).from_encoder_pretrained(encoder_name_or_path, **own)
        width = model.config.feature_size
        if width != self.config.feature_size:
            raise ValueError(
                f"`encoder_name_or_path` must give vectors of {self.config.feature_size} numbers, got "
                f"{encoder_name_or_path!r} of {width}; use the encoder that this model was trained for."
            )
        model.load_state_dict(self.state_dict(), strict=False)
        model.base_model.dimensions_json = self.base_model.dimensions_json
        return model.train(self.training)

    @classmethod
    def from_encoder_pretrained(cls, encoder_name_or_path: str, **config: Any) -> Self:
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
        source, subfolder = check_source(encoder_name_or_path, "encoder_name_or_path"), ""
        fields: dict[str, Any] = {"encoder_type": "transformer", "tie_word_embeddings": False}
        vectors = config.get("decoder_type") == "vector"
        if vectors:
            pooling, place = read_pooling(source)
            subfolder = place.get("subfolder", "")
            fields |= {"freeze_text_encoder": True, **pooling}
        encoder, tokenizer = _load_encoder(source, subfolder)
        fields |= {"encoder_config": encoder.config, "vocab_size": encoder.get_input_embeddings().num_embeddings}
        if vectors:  # no word is predicted: only padding has to be known
            fields["pad_token_id"] = tokenizer.pad_token_id or 0
            fields["tokenizer_checksum"] = tokenizer_checksum(tokenizer)
        else:
            fields |= tokenizer_fields(tokenizer)
        config_class = cast(type[TextVAEConfig], cls.config_class)
        model = cls(config_class(**(fields | config)))
        cast(TransformerEncoder, model.base_model.encoder).adopt(encoder)
        model.freeze()
        return model


def _load_encoder(source: str, subfolder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        encoder, report = AutoModel.from_pretrained(
            source, subfolder=subfolder, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source, subfolder=subfolder)
    except OSError as error:
        raise ValueError(
            "`encoder_name_or_path` must be the folder or the Hub id of a text encoder with its tokenizer, got "
            f"{source!r}; check the path, or the id and the network."
        ) from error
    except ValueError as error:
        raise ValueError(
            "`encoder_name_or_path` must be a text encoder with its tokenizer that transformers can load, got "
            f"{source!r} ({str(error).strip().partition(chr(10))[0]}); check its files."
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(
            f"`encoder_name_or_path` must hold all weights of its encoder, got {source!r} without {missing[0]!r} and "
            f"{len(missing) - 1} more; download it again."
        )
    return encoder, tokenizer
