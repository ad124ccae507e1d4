"""Encoders of an index: of sentence-transformers, models of words, or coders of vectors, in one form."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from scipy import sparse
from transformers import PreTrainedModel
from transformers.utils import cached_file

from hsvae_hf.argument_names import known_as
from hsvae_hf.decoding import code_lengths, encode_queries
from hsvae_hf.dimension_names import DimensionNames, names_of_model
from hsvae_hf.encoding import encode
from hsvae_hf.extras import require
from hsvae_hf.loading import load_for_inference
from hsvae_hf.models.sources import check_source
from hsvae_hf.onnx_encoder import SETTINGS, OnnxEncoder

Task = Literal["query", "document"]


def load_index_encoder(name: str, codes: str | None = None) -> Any:
    """An encoder by its name, in the form that `Index` takes.

    Args:
        name: folder or Hub id of a `SparseEncoder`, of a model of words of this package, or, with `codes`, of any
            model of sentence-transformers; or a folder that `export_onnx` wrote.
        codes: folder or Hub id of a model of `hsvae_hf.fit` for the vectors of that encoder.

    Raises:
        ValueError: if it cannot be loaded, or takes vectors alone.
        ImportError: without sentence-transformers or ONNX Runtime, where it is needed.
    """
    if (Path(name) / SETTINGS).is_file():
        if codes is not None:
            raise ValueError(f"`codes` must be left out for an ONNX export, got {codes!r}; {name!r} gives codes.")
        return OnnxEncoder(name)
    check_source(name, "encoder")
    if codes is None and cached_file(name, "modules.json", _raise_exceptions_for_missing_entries=False) is None:
        with known_as(model_name_or_path="encoder"):
            model, tokenizer = load_for_inference(name)
        if tokenizer is None:
            raise ValueError(f"`encoder` must read sentences, got {name!r} of vectors; pass it as `codes` instead.")
        return model, tokenizer
    require("sentence_transformers", extra="sentence-transformers")
    from sentence_transformers import SentenceTransformer, SparseEncoder

    from hsvae_hf.sentence_transformers import add_codes

    if codes is not None:
        with known_as(model_name_or_path="codes", coder="codes"):
            return add_codes(SentenceTransformer(name), codes)
    modules, settings = (_json_of(name, file) for file in ("modules.json", "config_sentence_transformers.json"))
    if settings.get("model_type") != "SparseEncoder":
        raise ValueError(
            f"`encoder` must give sparse codes, got {name!r}, a SentenceTransformer; name codes for its vectors "
            "besides, as `codes`."
        )
    own = all(module["type"].startswith(("sentence_transformers.", "hsvae_hf.")) for module in modules)
    return SparseEncoder(name, trust_remote_code=own)  # of modules that are installed already


def _json_of(name: str, file: str) -> Any:
    path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class IndexEncoder:
    """One form for all encoders.

    Attributes:
        encoder: as it was given: a `SparseEncoder`; a model of words and its tokenizer, as a pair; an `OnnxEncoder`
            that reads text; a model of `hsvae_hf.fit`, which takes vectors alone; or None.
    """

    encoder: Any = None

    def __post_init__(self) -> None:
        pair = isinstance(self.encoder, tuple) and len(self.encoder) == 2 and hasattr(self.encoder[0], "config")
        sparse_encoder = self._is_sentence_encoder and type(self.encoder).__name__ != "SentenceTransformer"
        if self._is_onnx and self.encoder.tokenizer is None:
            raise ValueError(
                "`encoder` must read sentences, got an ONNX export for vectors; export the model with its encoder "
                "(`encoder_name_or_path`), or leave it out and pass codes."
            )
        if not (self.encoder is None or pair or sparse_encoder or self._is_coder or self._is_onnx):
            raise ValueError(
                f"`encoder` must be a SparseEncoder, a model of words with its tokenizer, as a pair, an OnnxEncoder, "
                f"or a model of `hsvae_hf.fit`, got a {type(self.encoder).__name__}; load one."
            )

    @property
    def _is_sentence_encoder(self) -> bool:
        return hasattr(self.encoder, "encode_document")

    @property
    def _is_onnx(self) -> bool:
        return isinstance(self.encoder, OnnxEncoder)

    @property
    def _is_coder(self) -> bool:
        return isinstance(self.encoder, PreTrainedModel) and not getattr(self.encoder.config, "decodes_words", True)

    @property
    def similarity(self) -> str | None:
        """How codes are compared, where the encoder says it."""
        owner = self.encoder if self._model is None else self._model.config
        owner = self.encoder.config if self._is_onnx else owner
        name = getattr(owner, "similarity_fn_name", None)
        return name if name in ("cosine", "dot") else None

    @property
    def _model(self) -> PreTrainedModel | None:
        """The model of this package that was given, alone or with its tokenizer."""
        if isinstance(self.encoder, tuple):
            return cast(PreTrainedModel, self.encoder[0])
        return cast(PreTrainedModel, self.encoder) if self._is_coder else None

    @property
    def names(self) -> DimensionNames | None:
        """Names of dimensions, where the model has them."""
        if self._is_onnx:
            return cast(OnnxEncoder, self.encoder).names
        model = self.coder if self._model is None else self._model
        return None if model is None else names_of_model(model)

    @property
    def coder(self) -> PreTrainedModel | None:
        """The model that decodes codes, where there is one."""
        if self._is_coder:
            return self._model
        if not self._is_sentence_encoder:
            return None
        from hsvae_hf.sentence_transformers import SparseCodes

        found: Any = next((module for module in self.encoder.modules() if isinstance(module, SparseCodes)), None)
        return None if found is None else found.coder

    def encode(self, sentences: Sequence[str], task: Task) -> tuple[sparse.csr_matrix, np.ndarray | None]:
        """Codes `(sentences, latent_size)`, and where the encoder has them vectors `(sentences, size)`.

        Raises:
            ValueError: if this encoder takes no sentences.
        """
        if isinstance(self.encoder, tuple):
            model, tokenizer = self.encoder
            return encode(model, tokenizer, list(sentences)), None
        if self._is_onnx:
            return self.encoder.encode(list(sentences)), None
        if not self._is_sentence_encoder:
            raise ValueError(
                "`encoder` must take sentences, to index or ask with them: a SparseEncoder, an OnnxEncoder, or a model "
                "of words with its tokenizer as a pair; or pass codes."
            )
        if self.coder is not None:
            from hsvae_hf.sentence_transformers import encode_with_vectors

            return encode_with_vectors(self.encoder, sentences, task=task)
        ask = self.encoder.encode_query if task == "query" else self.encoder.encode_document
        codes = ask(list(sentences), convert_to_tensor=True, show_progress_bar=False).cpu().to_sparse_csr()
        parts = codes.values().numpy(), codes.col_indices().numpy(), codes.crow_indices().numpy()
        return sparse.csr_matrix(parts, shape=tuple(codes.shape)), None

    def decodable(self, codes: sparse.csr_matrix) -> sparse.csr_matrix:
        """Codes whose dot product with `dense_queries` is that of a vector and the decoded code at length 1."""
        model = self._decoder()
        return sparse.csr_matrix(codes.multiply(1 / code_lengths(model, codes)[:, None]), dtype=np.float32)

    def dense_queries(self, vectors: np.ndarray) -> np.ndarray:
        """`D^T x` of query vectors, `(queries, latent_size)`; see `hsvae_hf.encode_queries`."""
        return encode_queries(self._decoder(), vectors)

    def _decoder(self) -> PreTrainedModel:
        if self.coder is None:
            raise ValueError('`encoder` must decode codes for "codes": one with `SparseCodes`, or a model of `fit`.')
        return self.coder
