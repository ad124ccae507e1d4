"""Sentences to sparse codes: a saved model in, rows of a `scipy.sparse.csr_matrix` or of a file out."""

import json
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy import sparse
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.files import staged_file
from hsvae_hf.inputs import check_model, check_positive, check_sentences, check_strings, check_tokenizer, check_vectors
from hsvae_hf.models.modeling_text_vae import keep_largest
from hsvae_hf.tokens import check_limit, length_batches, pad_batch, token_limit, tokenize

CODE_FILES = (".npz", ".parquet", ".jsonl")
_WINDOW = 8192  # sentences sorted by length together
_TOKENIZER_BATCH = 1024  # the tokenizer's own objects are large: never a window of them at once
_MODES = threading.Lock()
_IN_USE: dict[nn.Module, tuple[int, list[tuple[nn.Module, bool]]]] = {}  # calls that run, and the modes before them


def encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[str],
    batch_size: int | None = None,
    show_progress_bar: bool = False,
    max_active_dims: int | None = None,
    max_length: int | None = None,
    prompt_name: str | None = None,
) -> sparse.csr_matrix:
    """Encode sentences to sparse codes, one row per sentence, in the order given.

    Runs on the model's device and leaves the model's training modes as they were. Threads may share the model and the
    tokenizer, on which nothing is set. What it reads besides the result is bounded, so `sentences` may be a generator;
    for more codes than memory holds see `encode_stream`.

    The same call gives the same codes, bit for bit. Among other sentences a sentence may fall into a batch of another
    shape, which changes the rounding: in float32 by a millionth of the largest value or less, in half precision by a
    thousandth. A gate that is so near to the threshold may then change sides.

    Args:
        model: any model of this package; the base model of one with a decoder or a classifier is used.
        tokenizer: the model's tokenizer.
        sentences: strings, such as a list or a column. The empty string has a code too. A single string and a table
            are refused: pass `[sentence]`, or one column.
        batch_size: sentences per forward pass (>= 1). None takes sentences of similar length up to a number of tokens,
            which is the fastest on a CPU, or within some percent of it (`scripts/experiments/benchmark.py batches`).
        show_progress_bar: whether to show one.
        max_active_dims: keep at most this many non-zero dimensions per code, the largest magnitudes (>= 1), on top of
            the model's own limit.
        max_length: truncate to this many tokens, more than the tokenizer's special tokens of a sentence; None takes
            the tokenizer's `model_max_length`.
        prompt_name: which of the model's `prompts` goes before every sentence; None takes its default, if it has one.

    Returns:
        Codes, `(len(sentences), latent_size)`, float32, zeros not stored; `(0, latent_size)` for no sentences.

    Raises:
        ValueError: if `sentences` is one string or a table, or holds something else than text; if the tokenizer is not
            the model's; if a number is too small; if the model gives no sparse codes.
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
        vectors: of the encoder that the model is for, `(rows, feature_size)`. Those of another scale than it was
            trained on are warned of.
        batch_size: rows per forward pass (>= 1).
        max_active_dims: as in `encode`.

    Returns:
        Codes, `(rows, latent_size)`, float32, zeros not stored.

    Raises:
        ValueError: if the vectors have another width or are not finite, a number is below 1, or the model reads words
            alone.
    """
    check_model(model)
    check_positive(batch_size=batch_size, max_active_dims=max_active_dims)
    if model.config.decodes_words:
        raise ValueError("`model` must be one of `decoder_type='vector'`, got one that reads words; use `encode`.")
    array = check_vectors(model, vectors)
    parts = (array[start : start + batch_size] for start in range(0, len(array), batch_size))
    with evaluation_mode(model.base_model):
        blocks = [
            _encode_batch(model.base_model, {"vectors": np.asarray(part, dtype=np.float32)}, max_active_dims)
            for part in parts
        ]
    return _stack(model, blocks)


def sentence_vectors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    batch_size: int | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> np.ndarray:
    """The text encoder's own vectors: what comes before the latent head.

    Args:
        model: with a text encoder.
        tokenizer: the model's.
        sentences: strings, all of which are tokenised at once.
        batch_size: sentences per forward pass; None as in `encode`.
        progress: is told the number of rows of every batch that is done.

    Returns:
        `(len(sentences), feature_size)`, float32.

    Raises:
        ValueError: as `encode`.
    """
    check_text_model(model, tokenizer)
    check_sentences(sentences)
    check_positive(batch_size=batch_size)
    base: Any = model.base_model
    ids = tokenize(tokenizer, sentences, token_limit(tokenizer), find_prompt(model.config, None))
    vectors = np.empty((len(ids), model.config.feature_size), dtype=np.float32)
    with evaluation_mode(base):
        for rows in length_batches([len(row) for row in ids], batch_size):
            batch = pad_batch([ids[row] for row in rows], tokenizer.pad_token_id or 0)
            tensors = (torch.from_numpy(value).to(model.device) for value in batch.values())
            vectors[rows] = base.encoder(*tensors).pooler_output.float().cpu().numpy()
            progress(len(rows))
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


def encode_stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[str],
    batch_size: int | None = None,
    show_progress_bar: bool = False,
    max_active_dims: int | None = None,
    max_length: int | None = None,
    prompt_name: str | None = None,
) -> Iterator[sparse.csr_matrix]:
    """Encode sentences block by block, in memory that does not grow with their number.

    Args:
        model: as for `encode`, like all others.
        tokenizer: the model's tokenizer.
        sentences: strings; an iterator is read one block ahead of what is yielded, never further.
        batch_size: sentences per forward pass.
        show_progress_bar: whether to show one.
        max_active_dims: most non-zero dimensions per code.
        max_length: most tokens per sentence.
        prompt_name: of the text before every sentence.

    Returns:
        An iterator over codes of the next sentences, `(at most max(8192, batch_size), latent_size)` each, in order.

    Raises:
        ValueError: as `encode`; at once, but for the elements of an iterator, which are checked as they are read.
    """
    check_text_model(model, tokenizer)
    check_sentences(sentences)
    check_positive(batch_size=batch_size, max_active_dims=max_active_dims)
    prompt = find_prompt(model.config, prompt_name)
    limit = token_limit(tokenizer) if max_length is None else check_limit(max_length, "`max_length`", tokenizer)
    options = (batch_size, show_progress_bar, max_active_dims, limit, prompt)
    return _blocks(model.base_model, tokenizer, sentences, *options)


def check_text_model(model: Any, tokenizer: Any) -> None:
    """Refuse what can't read text: no loaded model with a text encoder, no loaded tokenizer, or that of another model.

    Raises:
        ValueError: saying what to pass.
    """
    check_model(model)
    if not model.config.reads_text:
        raise ValueError("`model` must have a text encoder, got one that takes vectors; use `encode_vectors`.")
    check_tokenizer(tokenizer, model.config)


def _blocks(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[str],
    batch_size: int | None,
    show_progress_bar: bool,
    max_active_dims: int | None,
    limit: int | None,
    prompt: str,
) -> Iterator[sparse.csr_matrix]:
    total = len(sentences) if isinstance(sentences, Sized) else None
    stream = iter(sentences)
    done = 0
    with tqdm(total=total, desc="encode", unit=" sentences", disable=not show_progress_bar) as progress:
        while window := list(islice(stream, max(batch_size or 1, _WINDOW))):
            check_strings(window, first=done)
            ids = []
            for start in range(0, len(window), _TOKENIZER_BATCH):
                ids += tokenize(tokenizer, window[start : start + _TOKENIZER_BATCH], limit, prompt, done + start)
            order, parts = [], []
            with evaluation_mode(model):
                for rows in length_batches([len(row) for row in ids], batch_size):
                    batch = pad_batch([ids[row] for row in rows], tokenizer.pad_token_id or 0)
                    parts.append(_encode_batch(model, batch, max_active_dims))
                    order.append(rows)
                    progress.update(len(rows))
            yield sparse.vstack(parts, format="csr")[np.argsort(np.concatenate(order))]
            done += len(window)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, for as long as some thread needs it.

    The last thread to leave gives each module its own mode back (a frozen part may differ from the rest).
    """
    with _MODES:
        users, modes = _IN_USE.get(model, (0, []))
        if not users:
            modes = [(module, module.training) for module in model.modules()]
            model.eval()
        _IN_USE[model] = (users + 1, modes)
    try:
        with torch.inference_mode():
            yield
    finally:
        with _MODES:
            users, modes = _IN_USE.pop(model)
            if users > 1:
                _IN_USE[model] = (users - 1, modes)
            else:
                for module, training in modes:
                    module.training = training


def _encode_batch(model: nn.Module, inputs: dict[str, np.ndarray], max_active_dims: int | None) -> sparse.csr_matrix:
    device = cast(PreTrainedModel, model).device
    output = model(**{name: torch.from_numpy(value).to(device) for name, value in inputs.items()}, return_dict=True)
    codes = getattr(output, "sparse_embedding", None)
    if codes is None:
        raise ValueError(
            f"`model` must give a `sparse_embedding`, got a {type(model).__name__} that does not; "
            "use a model of this package."
        )
    codes = keep_largest(codes.float(), max_active_dims)  # (batch, latent_size)
    if not (codes.isfinite().all() and output.features.isfinite().all()):
        raise ValueError("`model` must give finite codes, got NaN or infinity; its weights are damaged: train again.")
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
