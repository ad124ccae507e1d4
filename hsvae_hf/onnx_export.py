"""Models as ONNX graphs: tokens or vectors in, codes out, in float32 or with an encoder of int8 weights."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.active_dims import is_fixed, most_active_dims, threshold_of
from hsvae_hf.encoding import check_text_model, encode, encode_vectors
from hsvae_hf.extras import require
from hsvae_hf.files import UNFINISHED, staged_folder, write_json
from hsvae_hf.input_checks import (
    check_active_dims,
    check_model,
    check_sentences,
    check_strings,
    check_vectors,
    trained_length,
)
from hsvae_hf.models.modeling_text_vae import TextVAEModel
from hsvae_hf.models.saving import DIMENSIONS_FILE
from hsvae_hf.onnx_encoder import GRAPH, SETTINGS, OnnxEncoder
from hsvae_hf.statistics import neighbours_kept

QUANTIZE = ("int8",)
_ROWS = 2000  # whose neighbours are compared, each with each
_NEIGHBOURS = 10

torch.library.define("hsvae_hf::gru", "(Tensor words, Tensor of_inputs, Tensor of_state, Tensor bias) -> Tensor")


@torch.library.register_fake("hsvae_hf::gru")
def _states(words: Tensor, of_inputs: Tensor, of_state: Tensor, bias: Tensor) -> Tensor:
    return words.new_empty(*words.shape[:2], of_state.shape[-1])


def export_onnx(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    quantize: str | None = None,
    active_dims: int | None = None,
    calibration: Any = None,
) -> dict[str, Any]:
    """Write a folder that `hsvae_hf.OnnxEncoder` reads, and any server that runs ONNX: the model's codes, no decoder.

    The graph has the inputs `input_ids` and `attention_mask`, int64, `(batch, length)`, or `vectors`, float32,
    `(batch, feature_size)`, and the output `sparse_embedding`, float32, `(batch, latent_size)`. Batch and length are
    free, from 1 on: without a row or a token, the operator GRU of ONNX Runtime ends the whole process. It computes in
    float32, whatever the dtype of the model's weights. `OnnxEncoder.run` checks what it is given, the graph does not.

    With `quantize="int8"` the matrices and the word embeddings of the encoder have weights of 8 bits; what follows the
    encoder stays in float32. Where a threshold decides how many dimensions are on, it is set again, so that codes of
    `calibration` have as many non-zeros as before, on average.

    Args:
        model: any model of this package; the base model of one with a decoder or a classifier is used.
        tokenizer: the model's; None for one that takes vectors alone.
        folder: is created; what it holds must not be another model.
        quantize: None, or "int8" for a model that reads text.
        active_dims: number of non-zeros of every code, as of `encode`; None leaves it to the model's own rule.
        calibration: some hundred sentences at least, which `quantize` needs, or vectors `(rows, feature_size)`, of the
            kind that is to be encoded. With them, codes of the graph are compared with those of the model.

    Returns:
        What the file `onnx_settings.json` holds; with `calibration`, `measured` is among it: `rows`, `equal_supports`
        (the share of rows whose codes have the same dimensions on as those of the model in float32), `neighbours_kept`
        (the share of a row's ten nearest rows by these codes that are nearest by the graph's), and the non-zeros per
        code, `nonzeros` of the graph and `model_nonzeros`.

    Raises:
        ValueError: if the model gives no codes, the tokenizer is not its own, or an option is out of range.
        ImportError: without the extra `onnx`.

    Example:
        >>> import hsvae_hf
        >>> model, tokenizer = hsvae_hf.load_for_inference("runs/minilm-16")  # doctest: +SKIP
        >>> hsvae_hf.export_onnx(model, tokenizer, "runs/minilm-16-onnx")  # doctest: +SKIP
        >>> hsvae_hf.OnnxEncoder("runs/minilm-16-onnx").encode(["A good film."])  # doctest: +SKIP
    """
    require("onnx", "onnxruntime", "onnxscript", extra="onnx")
    rows = _check(model, tokenizer, Path(folder), quantize, active_dims, calibration)
    body = copy.deepcopy(cast(TextVAEModel, model.base_model)).cpu().float().eval()
    settings: dict[str, Any] = {
        "quantize": quantize,
        "active_dims": active_dims,
        "vector_length": None if body.config.decodes_words else trained_length(body),
        "positions": getattr(body.encoder, "positions", None),
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime", "transformers")},
    }
    expected = None if rows is None else _codes_of(body, tokenizer, rows, active_dims)
    with staged_folder(folder, "folder") as unfinished:
        write_json(unfinished / SETTINGS, settings)
        _write_config(unfinished, body)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        if body.dimensions_json is not None:
            (unfinished / DIMENSIONS_FILE).write_text(body.dimensions_json, encoding="utf-8")
        if quantize is not None and expected is not None and _has_threshold(body, active_dims):
            _calibrate(body, unfinished, rows, expected)
            _write_config(unfinished, body)
        _write_graph(body, unfinished / GRAPH, active_dims, quantize)
        if expected is not None:
            settings["measured"] = _compare(_codes_by_onnx(OnnxEncoder(unfinished), rows), expected)
            write_json(unfinished / SETTINGS, settings)
    return settings


def _write_config(folder: Path, body: TextVAEModel) -> None:
    """The configuration without the model's code, which the graph does not need."""
    fields = {name: value for name, value in body.config.to_diff_dict().items() if name != "auto_map"}
    write_json(folder / "config.json", fields)


def _check(
    model: Any, tokenizer: Any, folder: Path, quantize: object, active_dims: int | None, calibration: Any
) -> Any:
    """The rows for calibration, checked like all arguments of `export_onnx`."""
    check_model(model)
    if model.config.reads_text:
        check_text_model(model, tokenizer)
    check_active_dims(model, active_dims=active_dims)
    if quantize is not None and quantize not in QUANTIZE:
        raise ValueError(f"`quantize` must be None or 'int8', got {quantize!r}; choose one.")
    if quantize is not None and not model.config.reads_text:
        raise ValueError(f"`quantize` must be None for a model without an encoder, got {quantize!r}; leave it out.")
    held = {path.name for path in folder.iterdir()} - {UNFINISHED} if folder.is_dir() else set()
    if folder.is_file() or (held and SETTINGS not in held):
        raise ValueError(f"`folder` must be new, empty or an export, got {str(folder)!r}; choose another name.")
    if calibration is None:
        if quantize is not None:
            raise ValueError(
                f"`calibration` must be given with `quantize={quantize!r}`, got None; give some hundred sentences like "
                "those to be encoded."
            )
        return None
    rows: Any = check_vectors(model, calibration, "calibration") if not model.config.reads_text else None
    if rows is None:
        check_sentences(calibration, "calibration")
        rows = list(calibration)
        check_strings(rows, "calibration")
    if len(rows) < 2:
        raise ValueError(f"`calibration` must hold some hundred rows, got {len(rows)}; give more.")
    return rows


class _Codes(nn.Module):
    """A model as a function of tensors that gives codes alone, or the gates, `(batch, latent_size)`."""

    def __init__(self, body: TextVAEModel, names: list[str], active_dims: int | None, gates: bool) -> None:
        super().__init__()
        self.body, self.names, self.active_dims, self.gates = body, names, active_dims, gates

    def forward(self, *inputs: Tensor) -> Tensor:
        named: dict[str, Any] = dict(zip(self.names, inputs, strict=True))
        posterior = self.body(**named, active_dims=self.active_dims, return_dict=True)
        if self.gates:
            return self.body.latent_head.diagnostics(posterior)["spike_probability"]
        return cast(Tensor, posterior.sparse_embedding)


class _OnnxGRU(nn.Module):
    """A GRU whose graph is the operator of ONNX: its gates are in another order, update, reset, new."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        of_inputs, of_state, inputs_bias, state_bias = (_update_first(part) for part in gru.all_weights[0])
        self.register_buffer("of_inputs", of_inputs.unsqueeze(0))  # (directions, 3 hidden_size, input_size)
        self.register_buffer("of_state", of_state.unsqueeze(0))
        self.register_buffer("bias", torch.cat([inputs_bias, state_bias]).unsqueeze(0))

    def forward(self, words: Tensor) -> tuple[Tensor, None]:
        return torch.ops.hsvae_hf.gru(words, self.of_inputs, self.of_state, self.bias), None


def _update_first(weights: Tensor) -> Tensor:
    reset, update, new = weights.detach().chunk(3)
    return torch.cat([update, reset, new])


def _gru_operator() -> Callable[..., Any]:
    from onnxscript import opset18 as op

    def gru(words: Any, of_inputs: Any, of_state: Any, bias: Any) -> Any:
        size = of_state.shape[-1]
        steps_first = op.Transpose(words, perm=[1, 0, 2])
        states, _ = op.GRU(steps_first, of_inputs, of_state, bias, hidden_size=size, linear_before_reset=1)
        return op.Transpose(op.Squeeze(states, op.Constant(value_ints=[1])), perm=[1, 0, 2])  # type: ignore[arg-type]

    return gru


def _write_graph(
    body: TextVAEModel, path: Path, active_dims: int | None, quantize: str | None, gates: bool = False
) -> None:
    """Write the graph of a body's codes, or of its gates."""
    body = copy.deepcopy(body)
    if isinstance(getattr(body.encoder, "gru", None), nn.GRU):
        body.encoder.gru = _OnnxGRU(cast(nn.GRU, body.encoder.gru))
    free = torch.export.Dim.DYNAMIC
    ids = torch.ones(2, 3, dtype=torch.long)
    names, dims = ["input_ids", "attention_mask"], {0: free, 1: free}
    inputs: tuple[Tensor, ...] = (ids, torch.ones_like(ids))  # two tensors: one would be one input
    if not body.config.reads_text:
        names, inputs, dims = ["vectors"], (torch.zeros(2, body.config.feature_size),), {0: free}
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _Codes(body, names, active_dims, gates).eval(),
            inputs,
            input_names=names,
            output_names=["sparse_embedding"],
            dynamic_shapes=((dims,) * len(names),),
            dynamo=True,
            verbose=False,
            custom_translation_table={torch.ops.hsvae_hf.gru.default: _gru_operator()},
        )
        cast(Any, program).save(path)
        if quantize is not None:
            _quantize(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on their own packages."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _quantize(path: Path) -> None:
    """Give the encoder's matrices and word embeddings weights of 8 bits, a scale for each column."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = [
        node.name
        for node in onnx.load(path, load_external_data=False).graph.node
        if any("body.encoder" in note.value for note in node.metadata_props if note.key.endswith("name_scopes"))
    ]
    whole = path.with_suffix(".float32")
    path.rename(whole)
    quantize_dynamic(
        whole,
        path,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        nodes_to_quantize=nodes,
        per_channel=True,
        reduce_range=True,  # without it, sums of two products overflow on CPUs that know no VNNI
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    whole.unlink()


def _has_threshold(body: TextVAEModel, active_dims: int | None) -> bool:
    """Whether a threshold decides how many dimensions are on."""
    return active_dims is None and hasattr(body.config, "active_threshold") and not is_fixed(body)


def _calibrate(body: TextVAEModel, folder: Path, rows: Any, expected: sparse.csr_matrix) -> None:
    """Set the threshold for the gates of the int8 graph, so that codes have as many non-zeros as `expected`."""
    wanted = expected.nnz / len(rows)
    least, most = body.config.min_active_dims, most_active_dims(body)
    if not least < wanted < most:
        return
    _write_graph(body, folder / GRAPH, None, "int8", gates=True)
    gates = _codes_by_onnx(OnnxEncoder(folder), rows)
    body.config.active_threshold, _ = threshold_of(gates.toarray(), wanted, least, most)


def _compare(codes: sparse.csr_matrix, expected: sparse.csr_matrix) -> dict[str, float]:
    """How near the graph's codes are to the model's; see `export_onnx`."""
    rows = codes.shape[0]
    changed = (codes != 0).astype(np.int8) != (expected != 0).astype(np.int8)
    return {
        "rows": rows,
        "equal_supports": float((changed.getnnz(axis=1) == 0).mean()),
        "neighbours_kept": neighbours_kept(
            expected[:_ROWS].toarray(), codes[:_ROWS], min(_NEIGHBOURS, rows - 1), "cosine"
        ),
        "nonzeros": codes.nnz / rows,
        "model_nonzeros": expected.nnz / rows,
    }


def _codes_of(model: PreTrainedModel, tokenizer: Any, rows: Any, active_dims: int | None) -> sparse.csr_matrix:
    if model.config.reads_text:
        return encode(model, tokenizer, rows, active_dims=active_dims)
    return encode_vectors(model, rows, active_dims=active_dims)


def _codes_by_onnx(encoder: OnnxEncoder, rows: Any) -> sparse.csr_matrix:
    return encoder.encode(rows) if encoder.config.reads_text else encoder.encode_vectors(rows)
