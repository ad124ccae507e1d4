"""Sparse sentence encoders learned without labels, as ordinary Hugging Face models.

Importing this package registers its models with the Auto classes of transformers. The functions below are imported when
they are first used.
"""

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hsvae_hf import models
from hsvae_hf.models import *  # noqa: F403 - its `__all__` is the list of model classes

if TYPE_CHECKING:
    from hsvae_hf.active_dims import calibrate_threshold
    from hsvae_hf.approximate import ApproximateIndex
    from hsvae_hf.code_shards import load_codes
    from hsvae_hf.corpora import encode_corpus
    from hsvae_hf.data import load_text_dataset
    from hsvae_hf.decoding import code_lengths, decode_codes, encode_queries
    from hsvae_hf.dimension_names import DimensionNames, decode, name_dimensions
    from hsvae_hf.encoding import encode, encode_stream, encode_vectors
    from hsvae_hf.evaluation import evaluate_codes
    from hsvae_hf.explanation import explain
    from hsvae_hf.hybrid import HybridIndex
    from hsvae_hf.index import Index
    from hsvae_hf.loading import load_for_inference
    from hsvae_hf.onnx_encoder import OnnxEncoder  # noqa: F401 - see `__all__`
    from hsvae_hf.onnx_export import export_onnx  # noqa: F401 - likewise
    from hsvae_hf.sentence_transformers import SparseCodes, add_codes, fit_sentence_encoder  # noqa: F401 - see `__all__`
    from hsvae_hf.store_codings import nonnegative_loss
    from hsvae_hf.stores import export, export_query
    from hsvae_hf.training import fit, train

__version__ = "0.1.0"

_HOMES = {  # functions and classes, and the modules that they are in
    "DimensionNames": "dimension_names",
    "ApproximateIndex": "approximate",
    "HybridIndex": "hybrid",
    "Index": "index",
    "OnnxEncoder": "onnx_encoder",
    "SparseCodes": "sentence_transformers",
    "add_codes": "sentence_transformers",
    "calibrate_threshold": "active_dims",
    "code_lengths": "decoding",
    "decode": "dimension_names",
    "decode_codes": "decoding",
    "encode": "encoding",
    "encode_corpus": "corpora",
    "encode_queries": "decoding",
    "encode_stream": "encoding",
    "encode_vectors": "encoding",
    "evaluate_codes": "evaluation",
    "explain": "explanation",
    "export": "stores",
    "export_onnx": "onnx_export",
    "export_query": "stores",
    "fit": "training",
    "fit_sentence_encoder": "sentence_transformers",
    "load_codes": "code_shards",
    "load_for_inference": "loading",
    "load_text_dataset": "data",
    "name_dimensions": "dimension_names",
    "nonnegative_loss": "store_codings",
    "train": "training",
}
__all__ = [  # what needs an extra is not of `from hsvae_hf import *`
    "DimensionNames",
    "ApproximateIndex",
    "HybridIndex",
    "Index",
    "calibrate_threshold",
    "code_lengths",
    "decode",
    "decode_codes",
    "encode",
    "encode_corpus",
    "encode_queries",
    "encode_stream",
    "encode_vectors",
    "evaluate_codes",
    "explain",
    "export",
    "export_query",
    "fit",
    "load_codes",
    "load_for_inference",
    "load_text_dataset",
    "name_dimensions",
    "nonnegative_loss",
    "train",
    *models.__all__,
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
