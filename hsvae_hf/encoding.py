"""Sentences to sparse codes: a saved model in, rows of a `scipy.sparse.csr_matrix` or of a file out."""

import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sized
from contextlib import ExitStack, contextmanager
from itertools import chain, islice, pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from scipy import sparse
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hsvae_hf.configuration_text_vae import TextVAEConfig
from hsvae_hf.files import staged_file
from hsvae_hf.modeling_text_vae import keep_largest

CODE_FILES = (".npz", ".parquet", ".jsonl")
_WINDOW = 8192  # sentences sorted by length together
_TOKENIZER_BATCH = 1024  # the tokenizer's own objects are large: never a window of them at once


def load_for_inference(
    model_name_or_path: str | Path, auto_class: type[Any] = AutoModel, new_classifier: bool = False, **overrides: Any
) -> tuple[PreTrainedModel, Any]:
    """Load a model of this package and its tokenizer, or say in one line why that is impossible.

    Args:
        model_name_or_path: folder of a saved model, or a Hub id.
        auto_class: the Auto class to load with, such as `AutoModelForPreTraining`. `AutoModel` takes every checkpoint
            of this package; another class needs one that holds its weights.
        new_classifier: whether the classifier may be missing, to be trained from its initialisation.
        overrides: fields of the configuration to change.

    Returns:
        The model, in evaluation mode, on the CPU, in the checkpoint's dtype; and its tokenizer, None if it takes
        vectors alone.

    Raises:
        ValueError: if there is no such model, its files are damaged or incomplete, it is not a text VAE of this
            package, or the tokenizer is missing or knows more words than the model.
    """
    source = str(model_name_or_path)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what the library's load report warns of is an error here
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **overrides)
        if not isinstance(config, TextVAEConfig):
            raise ValueError(f"it is of type {config.model_type!r}, which is no text VAE of hsvae_hf")
        model, report = auto_class.from_pretrained(
            source, config=config, trust_remote_code=False, output_loading_info=True
        )
        missing = [key for key in report["missing_keys"] if not (new_classifier and key.startswith("classifier."))]
        missing = [key for key in missing if key != "gamma_kl_scale"]  # what a controller of training starts with
        if not all(weight.isfinite().all() for weight in model.state_dict().values()):
            raise ValueError("its weights hold NaN or infinity: the training that made them diverged")
        if missing:
            raise ValueError(f"it has no weights for {len(missing)} parameters such as {min(missing)!r}")
        tokenizer = None if config.encoder_type == "vector" else load_tokenizer(source)
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(
            "`model_name_or_path` must be the folder or the Hub id of a model saved by hsvae_hf, with its tokenizer, "
            f"got {source!r}: {_reason(error)}; {_remedy(source)}."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"`model_name_or_path` must hold the tokenizer that the model was trained with, got {source!r}: "
            f"{len(tokenizer)} words, but the model knows {config.vocab_size}; save both together again."
        )
    return model, tokenizer


def load_tokenizer(name_or_path: str, subfolder: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a Hub id.

    Raises:
        ValueError: if there is none, or its files are damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(name_or_path, subfolder=subfolder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare exceptions for files that it cannot read
        damaged = not isinstance(error, OSError | ValueError)
        reason = f"its tokenizer files are damaged ({error})" if damaged else _reason(error)
        raise ValueError(
            f"`tokenizer` must be that of a folder or a Hub id, got {name_or_path!r}: {reason}."
        ) from error


def _reason(error: Exception) -> str:
    """The cause in one line, in the words of a reader who knows no internals where those are cryptic."""
    text = str(error).strip()
    if isinstance(error, SafetensorError):
        return f"its weights are damaged or incomplete ({text})"
    if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in text:
        return "the shapes of its weights are not those of its config.json"
    if "recognize this architecture" in text or "trust_remote_code" in text:
        return "its type is unknown to this version of hsvae_hf"
    if "backend tokenizer" in text:
        return "it has no tokenizer files"
    lines = text.splitlines() or [type(error).__name__]
    return lines[-1 if isinstance(error, StrictDataclassError) else 0].strip().rstrip(".")


def _remedy(source: str) -> str:
    if not Path(source).exists():
        return "no such folder is here: check the path, or the id and the network"
    return "save the model again, or download it again, or choose another"


def encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[str],
    batch_size: int = 256,
    show_progress_bar: bool = False,
    max_active_dims: int | None = None,
    max_length: int | None = None,
    prompt_name: str | None = None,
) -> sparse.csr_matrix:
    """Encode sentences to sparse codes, one row per sentence, in the order given.

    Deterministic; runs on the model's device and leaves the model's training modes as they were. What it reads besides
    the result is bounded, so `sentences` may be a generator; for more codes than memory holds see `encode_stream`.

    Args:
        model: any model of this package; the base model of one with a decoder or a classifier is used.
        tokenizer: the model's tokenizer.
        sentences: strings. The empty string has a code too. A single string is refused: pass `[sentence]`.
        batch_size: sentences per forward pass (>= 1).
        show_progress_bar: whether to show one.
        max_active_dims: keep at most this many non-zero dimensions per code, the largest magnitudes (>= 1), on top of
            the model's own limit.
        max_length: truncate to this many tokens (>= 1); None takes the tokenizer's `model_max_length`.
        prompt_name: which of the model's `prompts` goes before every sentence; None takes its default, if it has one.

    Returns:
        Codes, `(len(sentences), latent_size)`, float32, zeros not stored; `(0, latent_size)` for no sentences.

    Raises:
        ValueError: if `sentences` is one string or holds something else than text, a number is below 1, or the model
            gives no sparse codes.
    """
    options = (batch_size, show_progress_bar, max_active_dims, max_length, prompt_name)
    return _stack(model, list(encode_stream(model, tokenizer, sentences, *options)))


def _stack(model: PreTrainedModel, blocks: list[sparse.csr_matrix]) -> sparse.csr_matrix:
    if not blocks:
        return sparse.csr_matrix((0, model.config.latent_size), dtype=np.float32)
    return sparse.vstack(blocks, format="csr") if len(blocks) > 1 else blocks[0]


def encode_vectors(
    model: PreTrainedModel, vectors: np.ndarray, batch_size: int = 1024, max_active_dims: int | None = None
) -> sparse.csr_matrix:
    """Encode sentence vectors to sparse codes: the light form of `encode`, for vectors that are there already.

    Args:
        model: of `decoder_type="vector"`, with or without its encoder.
        vectors: of the encoder that the model is for, `(rows, feature_size)`.
        batch_size: rows per forward pass (>= 1).
        max_active_dims: as in `encode`.

    Returns:
        Codes, `(rows, latent_size)`, float32, zeros not stored.

    Raises:
        ValueError: if the vectors have another width, a number is below 1, or the model reads words alone.
    """
    _check_positive(batch_size=batch_size, max_active_dims=max_active_dims)
    if getattr(model.config, "decoder_type", None) != "vector":
        raise ValueError("`model` must be one of `decoder_type='vector'`, got one that reads words; use `encode`.")
    vectors = np.asarray(vectors)
    check_finite(vectors)
    rows = range(0, len(vectors), batch_size)
    batches = ({"vectors": np.asarray(vectors[start : start + batch_size], dtype=np.float32)} for start in rows)
    return _stack(model, [_encode_batch(model.base_model, batch, max_active_dims) for batch in batches])


def check_finite(vectors: np.ndarray) -> None:
    """Refuse vectors that hold NaN or infinity.

    Raises:
        ValueError: naming the first such row.
    """
    if len(vectors) and not np.isfinite(vectors.sum(dtype=np.float64)):
        row = next(row for row, vector in enumerate(vectors) if not np.isfinite(vector).all())
        raise ValueError(f"`vectors` must be finite, got NaN or infinity in row {row}; drop or repair it.")


def sentence_vectors(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str], batch_size: int = 64
) -> np.ndarray:
    """The text encoder's own vectors, `(len(sentences), feature_size)` float32: what comes before the latent head."""
    base: Any = model.base_model
    parts = []
    limit = tokenizer.model_max_length if tokenizer.model_max_length < 10**9 else None
    ids = _tokenize(tokenizer, sentences, 0, limit, find_prompt(model.config, None))
    order = np.argsort([-len(row) for row in ids], kind="stable")
    with _evaluation(base):
        for start in range(0, len(order), batch_size):
            batch = _pad([ids[row] for row in order[start : start + batch_size]], tokenizer.pad_token_id or 0)
            tensors = (torch.from_numpy(value).to(model.device) for value in batch.values())
            parts.append(base.encoder(*tensors).float().cpu().numpy())
    vectors = np.concatenate(parts)[np.argsort(order)]
    if not np.isfinite(vectors).all():
        raise ValueError("`model` must give finite vectors, got NaN or infinity; its encoder is damaged.")
    return vectors


def find_prompt(config: Any, name: str | None) -> str:
    """The text that goes before a sentence.

    Raises:
        ValueError: if the model has no prompt of this name.
    """
    name = getattr(config, "default_prompt_name", None) if name is None else name
    prompts = getattr(config, "prompts", None) or {}
    if name is not None and name not in prompts:
        raise ValueError(f"`prompt_name` must be one of {sorted(prompts)}, got {name!r}; leave it out for none.")
    return prompts.get(name, "")


def _check_positive(**numbers: Any) -> None:
    for name, value in numbers.items():
        if value is not None and (value is True or not isinstance(value, Integral) or value < 1):
            raise ValueError(f"`{name}` must be at least 1, a whole number, got {value}; choose a positive one.")


def encode_stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[str],
    batch_size: int = 256,
    show_progress_bar: bool = False,
    max_active_dims: int | None = None,
    max_length: int | None = None,
    prompt_name: str | None = None,
) -> Iterator[sparse.csr_matrix]:
    """Encode sentences block by block, in memory that does not grow with their number.

    Args:
        model: as for `encode`, like all others.
        tokenizer: the model's tokenizer.
        sentences: strings; read one block ahead of what is yielded, never further.
        batch_size: sentences per forward pass.
        show_progress_bar: whether to show one.
        max_active_dims: most non-zero dimensions per code.
        max_length: most tokens per sentence.
        prompt_name: of the text before every sentence.

    Returns:
        An iterator over codes of the next sentences, `(at most max(8192, batch_size), latent_size)` each, in order.

    Raises:
        ValueError: as `encode`; for the arguments at once, for a sentence when its block is read.
    """
    if isinstance(sentences, str):
        raise ValueError(f"`sentences` must be several strings, got the single string {sentences[:50]!r}; pass a list.")
    _check_positive(batch_size=batch_size, max_active_dims=max_active_dims, max_length=max_length)
    if tokenizer is None:
        raise ValueError("`tokenizer` must be the model's, got None; for a model without one use `encode_vectors`.")
    prompt = find_prompt(model.config, prompt_name)
    if max_length is None and tokenizer.model_max_length < 10**9:  # the library's mark for no limit is about 1e30
        max_length = tokenizer.model_max_length
    options = (batch_size, show_progress_bar, max_active_dims, max_length, prompt)
    return _blocks(model.base_model, tokenizer, sentences, *options)


def _blocks(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[str],
    batch_size: int,
    show_progress_bar: bool,
    max_active_dims: int | None,
    max_length: int | None,
    prompt: str,
) -> Iterator[sparse.csr_matrix]:
    total = len(sentences) if isinstance(sentences, Sized) else None
    stream = iter(sentences)
    pad = tokenizer.pad_token_id or 0
    done = 0
    with tqdm(total=total, desc="encode", unit=" sentences", disable=not show_progress_bar) as progress:
        while window := list(islice(stream, max(batch_size, _WINDOW))):
            ids = []
            for start in range(0, len(window), _TOKENIZER_BATCH):
                chunk = window[start : start + _TOKENIZER_BATCH]
                ids += _tokenize(tokenizer, chunk, done + start, max_length, prompt)
            # Longest first, so that too large a batch fails at once; stable, so that equal inputs give equal batches.
            order = np.argsort([-len(row) for row in ids], kind="stable")
            parts = []
            for start in range(0, len(order), batch_size):
                batch = [ids[row] for row in order[start : start + batch_size]]
                parts.append(_encode_batch(model, _pad(batch, pad), max_active_dims))
                progress.update(len(batch))
            yield sparse.vstack(parts, format="csr")[np.argsort(order)]
            done += len(window)


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, sentences: list[str], first: int, max_length: int | None, prompt: str
) -> list[np.ndarray]:
    for row, sentence in enumerate(sentences, first):
        if not isinstance(sentence, str):  # the tokenizer would take a tuple for a pair of sentences
            raise ValueError(
                f"`sentences` must be strings, got {type(sentence).__name__} {str(sentence)[:50]!r} at index {row}; "
                "convert or drop it."
            )
    try:
        encoded = tokenizer(
            [prompt + sentence for sentence in sentences] if prompt else sentences,
            truncation=max_length is not None,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
    except TypeError:  # what the tokenizer raises for text that UTF-8 cannot express
        for row, sentence in enumerate(sentences, first):
            if any("\ud800" <= character <= "\udfff" for character in sentence):
                raise ValueError(
                    f"`sentences` must be valid Unicode, got half a surrogate pair at index {row}: {sentence[:50]!r}; "
                    "decode the text again, or replace the character."
                ) from None
        raise
    return [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module gets its own mode back (a frozen part may differ)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _pad(ids: list[np.ndarray], pad: int) -> dict[str, np.ndarray]:
    lengths = np.array([len(row) for row in ids])
    mask = np.arange(lengths.max()) < lengths[:, None]  # (batch, steps)
    padded = np.full(mask.shape, pad, dtype=np.int64)
    padded[mask] = np.concatenate(ids)
    return {"input_ids": padded, "attention_mask": mask.astype(np.int64)}


def _encode_batch(model: nn.Module, inputs: dict[str, np.ndarray], max_active_dims: int | None) -> sparse.csr_matrix:
    device = next(chain(model.parameters(), model.buffers())).device
    with _evaluation(model):
        output = model(**{name: torch.from_numpy(value).to(device) for name, value in inputs.items()})
        codes = getattr(output, "sparse_embedding", None)
        if codes is None:
            raise ValueError(
                f"`model` must give a `sparse_embedding`, got a {type(model).__name__} that does not; "
                "use a model of this package."
            )
        codes = keep_largest(codes.float(), max_active_dims)  # (batch, latent_size)
        if not (codes.isfinite().all() and output.features.isfinite().all()):
            raise ValueError(
                "`model` must give finite codes, got NaN or infinity; its weights are damaged: train again."
            )
        rows, columns = codes.nonzero(as_tuple=True)
        values, starts = codes[rows, columns], torch.searchsorted(rows, torch.arange(len(codes) + 1, device=device))
    arrays = values.cpu().numpy(), columns.int().cpu().numpy(), starts.int().cpu().numpy()
    return sparse.csr_matrix(arrays, shape=tuple(codes.shape))


def save_codes(path: str | Path, blocks: Iterable[sparse.csr_matrix]) -> int:
    """Write codes to a file as they come; it appears under its name when complete, and replaces what was there.

    Args:
        path: `.npz` for a CSR matrix that `scipy.sparse.load_npz` reads; `.parquet` or `.jsonl` for rows of `indices`
            (int32) and `values` (float32).
        blocks: codes, `(rows, latent_size)` each, float32, as `encode_stream` gives.

    Returns:
        The number of rows written.

    Raises:
        ValueError: for another suffix.
    """
    path = Path(path)
    writers = dict(zip(CODE_FILES, (_write_npz, _write_parquet, _write_jsonl), strict=True))
    if path.suffix not in writers:
        raise ValueError(f"`path` must end in one of {', '.join(CODE_FILES)}, got {str(path)!r}; rename it.")
    with staged_file(path, "path") as unfinished:
        return writers[path.suffix](unfinished, blocks)


def _write_npz(path: Path, blocks: Iterable[sparse.csr_matrix]) -> int:
    """What `scipy.sparse.save_npz` would write, without the matrix in memory."""
    dtypes: dict[str, np.dtype[Any]] = {"indices": np.dtype("<i4"), "indptr": np.dtype("<i8"), "data": np.dtype("<f4")}
    count = latent_size = stored = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(path.with_suffix(f".{name}").open("w+b")) for name in dtypes}
        files["indptr"].write(np.zeros(1, dtypes["indptr"]).tobytes())
        for block in blocks:
            arrays = {"indices": block.indices, "data": block.data, "indptr": block.indptr[1:] + np.int64(stored)}
            for name, array in arrays.items():
                files[name].write(array.astype(dtypes[name], copy=False).tobytes())
            stored, count, latent_size = stored + block.nnz, count + block.shape[0], block.shape[1]
        archive = stack.enter_context(zipfile.ZipFile(path, "w"))
        for name, array in (("format", np.array(b"csr")), ("shape", np.array([count, latent_size]))):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
        for name, file in files.items():
            length = file.tell() // dtypes[name].itemsize
            header = {"descr": dtypes[name].str, "fortran_order": False, "shape": (length,)}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                file.seek(0)
                shutil.copyfileobj(file, member, 2**20)
    return count


def _write_parquet(path: Path, blocks: Iterable[sparse.csr_matrix]) -> int:
    schema = pa.schema({"indices": pa.list_(pa.int32()), "values": pa.list_(pa.float32())})
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        for block in blocks:
            lists = [pa.ListArray.from_arrays(block.indptr, array) for array in (block.indices, block.data)]
            writer.write_table(pa.table(lists, schema=schema))
            count += block.shape[0]
    return count


def _write_jsonl(path: Path, blocks: Iterable[sparse.csr_matrix]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for block in blocks:
            for start, end in pairwise(block.indptr):
                row = {"indices": block.indices[start:end].tolist(), "values": block.data[start:end].tolist()}
                file.write(json.dumps(row) + "\n")
            count += block.shape[0]
    return count
