"""Codes by ONNX Runtime: the folder of `export_onnx` in, rows of a `scipy.sparse.csr_matrix` out, without weights."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from scipy import sparse
from torch import Tensor
from transformers import AutoConfig

from hsvae_hf.dimension_names import DimensionNames
from hsvae_hf.encoding import Reading, as_csr, find_prompt, stack
from hsvae_hf.extras import require
from hsvae_hf.input_checks import (
    as_vectors,
    check_positive,
    check_sentences,
    check_switch,
    check_tokenizer,
    warn_of_scale,
)
from hsvae_hf.loading import load_tokenizer
from hsvae_hf.models.configuration_text_vae import TextVAEConfig
from hsvae_hf.models.modeling_encoders import check_ids, check_positions
from hsvae_hf.models.saving import DIMENSIONS_FILE
from hsvae_hf.tokens import check_limit, token_limit

GRAPH = "model.onnx"
SETTINGS = "onnx_settings.json"


class OnnxEncoder:
    """A model that `export_onnx` wrote: sentences, or vectors, to codes.

    Args:
        folder: that `export_onnx` wrote.
        num_threads: threads of ONNX Runtime (>= 1); None leaves it to it. With `session_options`, set it there.
        session_options: an `onnxruntime.SessionOptions`, in place of the one that is made here.
        providers: of ONNX Runtime, the one to prefer first.

    Attributes:
        config: the model's configuration.
        tokenizer: the model's tokenizer, None where it takes vectors.
        names: of the dimensions, None where the model had none.
        settings: what `export_onnx` wrote about the graph and what was measured of it.
        session: the `onnxruntime.InferenceSession`.

    Raises:
        ValueError: if the folder is no such folder, or a number is out of range.
        ImportError: without the extra `onnx`.

    Example:
        >>> encoder = OnnxEncoder("runs/minilm-onnx")  # doctest: +SKIP
        >>> codes = encoder.encode(["How do I reset my password?", "I forgot my login."])  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | Path,
        num_threads: int | None = None,
        session_options: Any = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        require("onnxruntime", extra="onnx")
        import onnxruntime

        check_positive(num_threads=num_threads)
        if num_threads is not None and session_options is not None:
            raise ValueError("`num_threads` must be None with `session_options`, got both; set it in the options.")
        folder = Path(folder)
        missing = [name for name in (GRAPH, SETTINGS, "config.json") if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"`folder` must be one that `export_onnx` wrote, got {str(folder)!r} without {missing[0]}; export the "
                "model, or check the path."
            )
        try:
            self.settings, self.config = _read_settings(folder)
        except (OSError, ValueError, StrictDataclassError) as error:
            raise self._refusal(folder, error) from error
        self.tokenizer: Any = load_tokenizer(str(folder)) if self.config.reads_text else None
        if self.tokenizer is not None:
            check_tokenizer(self.tokenizer, self.config)
        self.names = DimensionNames.load(folder) if (folder / DIMENSIONS_FILE).is_file() else None
        if session_options is None:
            session_options = onnxruntime.SessionOptions()
            session_options.intra_op_num_threads = num_threads or 0
            session_options.add_session_config_entry("session.set_denormal_as_zero", "1")  # they are slow
        asked = [providers] if isinstance(providers, str) else list(providers)
        try:
            self.session = onnxruntime.InferenceSession(str(folder / GRAPH), session_options, asked)
        except Exception as error:  # of ONNX Runtime, whose kinds have no base of their own
            raise ValueError(
                f"`folder` must hold a graph that ONNX Runtime reads, got {str(folder)!r}: {error}; export it again."
            ) from error
        self._check_graph(folder)

    def encode(
        self,
        sentences: Iterable[str],
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        max_active_dims: int | None = None,
        max_length: int | None = None,
        prompt_name: str | None = None,
        normalize: bool = False,
    ) -> sparse.csr_matrix:
        """Encode sentences, as `hsvae_hf.encode` does; the number of non-zeros is that of the export.

        The arguments, and what is raised, are those of `hsvae_hf.encode`.

        Returns:
            Codes, `(len(sentences), latent_size)`, float32, zeros not stored.
        """
        options = (batch_size, show_progress_bar, max_active_dims, max_length, prompt_name, normalize)
        return stack(list(self.encode_stream(sentences, *options)), self.config.latent_size)

    def encode_stream(
        self,
        sentences: Iterable[str],
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        max_active_dims: int | None = None,
        max_length: int | None = None,
        prompt_name: str | None = None,
        normalize: bool = False,
    ) -> Iterator[sparse.csr_matrix]:
        """Encode sentences block by block, as `hsvae_hf.encode_stream` does.

        Returns:
            An iterator over codes of the next sentences, `(at most max(8192, batch_size), latent_size)` each.
        """
        if self.tokenizer is None:
            raise ValueError(
                "`sentences` must be left to their encoder, got them for codes of vectors; use `encode_vectors`."
            )
        check_sentences(sentences)
        check_positive(batch_size=batch_size, max_active_dims=max_active_dims)
        check_switch(normalize=normalize)
        tokenizer, prompt = self.tokenizer, find_prompt(self.config, prompt_name)
        limit = token_limit(tokenizer) if max_length is None else check_limit(max_length, "`max_length`", tokenizer)
        read = Reading(tokenizer, batch_size, limit, prompt, show_progress_bar)
        return read.codes(
            nullcontext, sentences, partial(self._run, max_active_dims=max_active_dims, normalize=normalize)
        )

    def encode_vectors(
        self,
        vectors: np.ndarray,
        batch_size: int = 1024,
        max_active_dims: int | None = None,
        normalize: bool = False,
    ) -> sparse.csr_matrix:
        """Encode vectors, as `hsvae_hf.encode_vectors` does; the number of non-zeros is that of the export.

        The arguments, and what is raised, are those of `hsvae_hf.encode_vectors`.

        Returns:
            Codes, `(rows, latent_size)`, float32, zeros not stored.
        """
        if self.tokenizer is not None:
            raise ValueError("`vectors` must be left out for an export that reads text, got them; use `encode`.")
        check_positive(batch_size=batch_size, max_active_dims=max_active_dims)
        check_switch(normalize=normalize)
        array = as_vectors(vectors, self.config.feature_size).astype(np.float32)
        warn_of_scale(self.settings["vector_length"], array)
        batches = (torch.from_numpy(array[start : start + batch_size]) for start in range(0, len(array), batch_size))
        return stack(
            [self._run({"vectors": batch}, max_active_dims, normalize) for batch in batches], self.config.latent_size
        )

    def run(self, **inputs: np.ndarray) -> np.ndarray:
        """The graph's codes of one batch, dense `(batch, latent_size)`, float32.

        Args:
            inputs: by their names: `input_ids` and `attention_mask`, whole numbers, `(batch, length)`; or `vectors`,
                `(batch, feature_size)`. They may be of any precision.

        Raises:
            ValueError: for other inputs: of another name or shape, without a token in a row, with ids that are not the
                tokenizer's, longer than the encoder's positions, or not finite.
        """
        if set(inputs) != set(self._names()):
            given = ", ".join(inputs) or "none"
            raise ValueError(f"`inputs` must be {' and '.join(self._names())}, got {given}; pass these by name.")
        if self.tokenizer is None:
            checked = {"vectors": as_vectors(inputs["vectors"], self.config.feature_size).astype(np.float32)}
        else:
            checked = self._tokens(*(np.asarray(inputs[name]) for name in self._names()))
        (codes,) = self.session.run(None, checked)
        return np.asarray(codes)

    def _tokens(self, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        if ids.dtype.kind not in "iu" or mask.dtype.kind not in "iub" or ids.ndim != 2 or ids.shape != mask.shape:
            got = f"{ids.dtype} of {ids.shape} and {mask.dtype} of {mask.shape}"
            raise ValueError(
                f"`input_ids` and `attention_mask` must be whole numbers, (batch, length) both, got {got}; take what "
                "the tokenizer gives."
            )
        checked = [torch.from_numpy(array.astype(np.int64)) for array in (ids, mask)]
        check_ids(checked[0], checked[1].bool(), self.config.encoder_vocab_size, "input_ids")
        check_positions(ids.shape[1], self.settings.get("positions"))
        return {name: tensor.numpy() for name, tensor in zip(self._names(), checked, strict=True)}

    def _names(self) -> tuple[str, ...]:
        return ("vectors",) if self.tokenizer is None else ("input_ids", "attention_mask")

    def _check_graph(self, folder: Path) -> None:
        """Refuse a graph that is not of the configuration beside it."""
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        names = {given.name for given in inputs}
        sizes = [output.shape[-1] for output in outputs]
        wanted = [self.config.latent_size]
        if self.tokenizer is None:
            sizes += [given.shape[-1] for given in inputs]
            wanted.append(self.config.feature_size)
        if names != set(self._names()) or sizes != wanted:
            raise self._refusal(folder, f"the graph has the inputs {', '.join(sorted(names))} and the widths {sizes}")

    def _refusal(self, folder: Path, what: object) -> ValueError:
        return ValueError(
            f"`folder` must be as `export_onnx` wrote it, got {str(folder)!r} with files that do not fit each other or "
            f"are damaged: {what}; export the model again."
        )

    def _run(self, batch: dict[str, Tensor], max_active_dims: int | None, normalize: bool) -> sparse.csr_matrix:
        codes = self.run(**{name: tensor.numpy() for name, tensor in batch.items()})
        return as_csr(torch.from_numpy(codes), max_active_dims, normalize)


def _read_settings(folder: Path) -> tuple[dict[str, Any], Any]:
    """What was written about the graph, and the model's configuration.

    Raises:
        ValueError: if they are damaged.
        OSError: likewise.
    """
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    if not isinstance(settings, dict) or "vector_length" not in settings:
        raise ValueError(f"{SETTINGS} says nothing of an export")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(config, TextVAEConfig):
        raise ValueError(f"config.json is of type {config.model_type!r}")
    return settings, config
