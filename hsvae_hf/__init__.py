"""Sparse sentence encoders learned without labels, as ordinary Hugging Face models.

Importing this package registers its models with the Auto classes of transformers.
"""

from hsvae_hf import models
from hsvae_hf.encoding import encode, encode_vectors
from hsvae_hf.explanation import explain
from hsvae_hf.models import *  # noqa: F403 - its `__all__` is the list of model classes
from hsvae_hf.training import fit, train

__version__ = "0.1.0"

__all__ = ["encode", "encode_vectors", "explain", "fit", "train", *models.__all__]
