"""Sparse codes of sentences and of vectors: a saved model in, rows of a `scipy.sparse.csr_matrix` out."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.batching import length_batches, padded_batches
from hsvae_hf.input_checks import (
    as_tensor,
    check_active_dims,
    check_model,
    check_positive,
    check_sentences,
    check_strings,
    check_switch,
    check_tokenizer,
    check_vectors,
)
from hsvae_hf.models.modeling_text_vae import TextVAEModel
from hsvae_hf.tokens import check_limit, token_limit

_WINDOW = 8192  # sentences that `encode` sorts by length together
_VECTOR_WINDOW = 1024  # the same of `sentence_vectors`
_MODES = threading.Lock()
_IN_USE: dict[nn.Module, tuple[int, list[tuple[nn.Module, bool]]]] = {}  # calls that run, and the modes before them
Result = TypeVar("Result")


def encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[str],
    batch_size: int | None = None,
    show_progress_bar: bool = False,
    max_active_dims: int | None = None,
    max_length: int | None = None,
    prompt_name: str | None = None,
    active_dims: int | None = None,
    normalize: bool = False,
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
        active_dims: exactly this many non-zeros per code, the strongest dimensions (1 to `latent_size`), whatever the
            gates and the model's limits say; None leaves it to them. Models whose code is not ranked by gates give at
            most as many.
        normalize: whether codes are divided by their length, so that a dot product of two is their cosine; a code of
            zeros alone stays as it is.

    Returns:
        Codes, `(len(sentences), latent_size)`, float32, zeros not stored; `(0, latent_size)` for no sentences.

    Raises:
        ValueError: if `sentences` is one string or a table, or holds something else than text; if the tokenizer is not
            the model's; if a number is too small; if the model gives no sparse codes.

    >>> from hsvae_hf import HSVAEConfig, HSVAEModel
    >>> from hsvae_hf.tokenization import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sees a dog"])
    >>> encode(HSVAEModel(HSVAEConfig(vocab_size=len(tokenizer), latent_size=16)), tokenizer, ["a dog", "a cat"]).shape
    (2, 16)
    """
    options = (batch_size, show_progress_bar, max_active_dims, max_length, prompt_name, active_dims, normalize)
    return stack(list(encode_stream(model, tokenizer, sentences, *options)), model.config.latent_size)


def stack(blocks: list[sparse.csr_matrix], latent_size: int) -> sparse.csr_matrix:
    """Codes one below the other, `(rows, latent_size)`; `(0, latent_size)` of no blocks."""
    if not blocks:
        return sparse.csr_matrix((0, latent_size), dtype=np.float32)
    return sparse.vstack(blocks, format="csr") if len(blocks) > 1 else blocks[0]


def encode_vectors(
    model: PreTrainedModel,
    vectors: np.ndarray,
    batch_size: int = 1024,
    max_active_dims: int | None = None,
    active_dims: int | None = None,
    normalize: bool = False,
) -> sparse.csr_matrix:
    """Encode sentence vectors to sparse codes: the light form of `encode`, for vectors that are there already.

    Args:
        model: of `decoder_type="vector"`, with or without its encoder.
        vectors: of the encoder that the model is for, `(rows, feature_size)`. Those of another scale than it was
            trained on are warned of.
        batch_size: rows per forward pass (>= 1).
        max_active_dims: as in `encode`.
        active_dims: as in `encode`.
        normalize: as in `encode`.

    Returns:
        Codes, `(rows, latent_size)`, float32, zeros not stored.

    Raises:
        ValueError: if the vectors have another width or are not finite, a number is out of range, or the model reads
            words alone.

    >>> from hsvae_hf import HSVAEConfig, HSVAEModel
    >>> sizes = {"encoder_type": "vector", "vector_size": 5, "decoder_type": "vector", "latent_size": 6}
    >>> encode_vectors(HSVAEModel(HSVAEConfig(**sizes, tie_word_embeddings=False)), np.ones((2, 5))).shape
    (2, 6)
    """
    check_model(model)
    check_positive(batch_size=batch_size, max_active_dims=max_active_dims)
    check_active_dims(model, active_dims=active_dims)
    check_switch(normalize=normalize)
    if model.config.decodes_words:
        raise ValueError("`model` must be one of `decoder_type='vector'`, got one that reads words; use `encode`.")
    array = check_vectors(model, vectors)
    blocks = []
    with evaluation_mode(model.base_model):
        for start in range(0, len(array), batch_size):
            batch = {"vectors": as_tensor(array[start : start + batch_size])}
            blocks.append(_encode_batch(model.base_model, batch, max_active_dims, active_dims, normalize))
    return stack(blocks, model.config.latent_size)


def sentence_vectors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    batch_size: int | None = None,
    show_progress_bar: bool = False,
) -> np.ndarray:
    """The vectors of the text encoder: what the latent head reads.

    Args:
        model: a model with a text encoder.
        tokenizer: the model's tokenizer.
        sentences: strings.
        batch_size: sentences per forward pass; None as in `encode`.
        show_progress_bar: whether to show one.

    Returns:
        `(len(sentences), feature_size)`, float32.

    Raises:
        ValueError: as `encode`.
    """
    check_text_model(model, tokenizer)
    check_sentences(sentences)
    check_positive(batch_size=batch_size)
    encoder = cast(TextVAEModel, model.base_model).encoder

    def vectors_of(batch: dict[str, Tensor]) -> np.ndarray:
        output = encoder(*(batch[name].to(model.device) for name in ("input_ids", "attention_mask")))
        return np.asarray(output.pooler_output.float().cpu())

    read = Reading(tokenizer, batch_size, token_limit(tokenizer), find_prompt(model.config, None), show_progress_bar)
    vectors, done = np.empty((len(sentences), model.config.feature_size), dtype=np.float32), 0
    within = partial(evaluation_mode, model.base_model)
    for parts, order in read.windows(within, sentences, vectors_of, _VECTOR_WINDOW):
        vectors[done : done + len(order)] = np.concatenate(parts)[order]
        done += len(order)
    if not np.isfinite(vectors).all():
        raise ValueError("`model` must give finite vectors, got NaN or infinity; its encoder is damaged.")
    return vectors


def find_prompt(config: PreTrainedConfig, name: str | None) -> str:
    """The text that goes before a sentence.

    Raises:
        ValueError: if the model has no prompt of this name.
    """
    name = getattr(config, "default_prompt_name", None) if name is None else name
    prompts: dict[str, str] = getattr(config, "prompts", None) or {}
    if name is not None and name not in prompts:
        raise ValueError(f"`prompt_name` must be one of {sorted(prompts)}, got {name!r}; leave it out for none.")
    return prompts.get(name or "", "")


def encode_stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[str],
    batch_size: int | None = None,
    show_progress_bar: bool = False,
    max_active_dims: int | None = None,
    max_length: int | None = None,
    prompt_name: str | None = None,
    active_dims: int | None = None,
    normalize: bool = False,
) -> Iterator[sparse.csr_matrix]:
    """Encode sentences block by block, in memory that does not grow with their number.

    The arguments are those of `encode`. An iterator is read one block ahead of the codes, never further.

    Returns:
        An iterator over codes of the next sentences, `(at most max(8192, batch_size), latent_size)` each, in order.

    Raises:
        ValueError: as `encode`, at once. Elements of an iterator are checked as they are read.
    """
    check_text_model(model, tokenizer)
    check_sentences(sentences)
    check_positive(batch_size=batch_size, max_active_dims=max_active_dims)
    check_active_dims(model, active_dims=active_dims)
    check_switch(normalize=normalize)
    prompt = find_prompt(model.config, prompt_name)
    limit = token_limit(tokenizer) if max_length is None else check_limit(max_length, "`max_length`", tokenizer)
    read = Reading(tokenizer, batch_size, limit, prompt, show_progress_bar)
    codes_of = partial(
        _encode_batch,
        model.base_model,
        max_active_dims=max_active_dims,
        active_dims=active_dims,
        normalize=normalize,
    )
    return read.codes(partial(evaluation_mode, model.base_model), sentences, codes_of)


def check_text_model(model: Any, tokenizer: object) -> None:
    """Refuse what can't read text: no loaded model with a text encoder, no loaded tokenizer, or that of another model.

    Raises:
        ValueError: saying what to pass.
    """
    check_model(model)
    if not model.config.reads_text:
        raise ValueError("`model` must have a text encoder, got one that takes vectors; use `encode_vectors`.")
    check_tokenizer(tokenizer, model.config)


@dataclass(frozen=True)
class Reading:
    """The way from sentences to padded batches.

    Args:
        tokenizer: the model's tokenizer.
        batch_size: sentences per batch; None for `length_batches` to choose.
        limit: tokens per sentence; None for no limit.
        prompt: goes before every sentence.
        show_progress_bar: whether to show one.
    """

    tokenizer: PreTrainedTokenizerBase
    batch_size: int | None
    limit: int | None
    prompt: str
    show_progress_bar: bool

    def codes(
        self,
        within: Callable[[], AbstractContextManager[None]],
        sentences: Iterable[str],
        run: Callable[[dict[str, Tensor]], sparse.csr_matrix],
    ) -> Iterator[sparse.csr_matrix]:
        """Codes of the next sentences, in order, `(at most max(8192, batch_size), latent_size)` each.

        The arguments are those of `windows`.
        """
        windows = self.windows(within, sentences, run, max(self.batch_size or 1, _WINDOW))
        return (sparse.vstack(parts, format="csr")[order] for parts, order in windows)

    def windows(
        self,
        within: Callable[[], AbstractContextManager[None]],
        sentences: Iterable[str],
        run: Callable[[dict[str, Tensor]], Result],
        size: int,
    ) -> Iterator[tuple[list[Result], np.ndarray]]:
        """Run every batch of every `size` sentences.

        Args:
            within: what a window runs in, such as the model's evaluation mode.
            sentences: strings.
            run: from a padded batch, on the CPU, to its result, a row for each sentence.
            size: sentences that are sorted by length together.

        Yields:
            For each window the results of its batches, and the order that puts their rows as the sentences are.
        """
        total = len(sentences) if isinstance(sentences, Sized) else None
        stream, done = iter(sentences), 0
        group = partial(length_batches, batch_size=self.batch_size)
        with tqdm(total=total, desc="encode", unit=" sentences", disable=not self.show_progress_bar) as progress:
            while window := list(islice(stream, size)):
                check_strings(window, first=done)
                results, rows = [], []
                with within():
                    for numbers, batch in padded_batches(
                        self.tokenizer, window, group, self.limit, self.prompt, first=done
                    ):
                        results.append(run(batch))
                        rows.append(numbers)
                        progress.update(len(numbers))
                yield results, np.argsort(np.concatenate(rows))
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


def keep_largest(code: Tensor, max_active_dims: int | None) -> Tensor:
    """Zero all but the `max_active_dims` largest magnitudes of each row of `code` `(batch, latent_size)`."""
    if max_active_dims is None or max_active_dims >= code.shape[-1]:
        return code
    kept = code.abs().topk(max_active_dims, dim=-1).indices
    return torch.zeros_like(code).scatter(-1, kept, code.gather(-1, kept))


def at_length_one(codes: sparse.csr_matrix) -> sparse.csr_matrix:
    """Codes `(rows, latent_size)` divided by their lengths; a row of zeros stays as it is."""
    divided = codes.tocsr(copy=True)
    lengths = np.sqrt(np.asarray(divided.astype(np.float64).power(2).sum(axis=1)).ravel())
    lengths[lengths == 0] = 1.0
    divided.data = (divided.data / np.repeat(lengths, np.diff(divided.indptr))).astype(codes.dtype)
    return divided


def _encode_batch(
    model: nn.Module,
    inputs: dict[str, Tensor],
    max_active_dims: int | None,
    active_dims: int | None,
    normalize: bool = False,
) -> sparse.csr_matrix:
    asked = {} if active_dims is None else {"active_dims": active_dims}
    device = cast(PreTrainedModel, model).device
    output = model(**{name: tensor.to(device) for name, tensor in inputs.items()}, **asked, return_dict=True)
    codes = getattr(output, "sparse_embedding", None)
    if codes is None:
        raise ValueError(
            f"`model` must give a `sparse_embedding`, got a {type(model).__name__} that does not; "
            "use a model of this package."
        )
    _check_finite(output.features)
    return as_csr(codes.float(), max_active_dims, normalize)


def _check_finite(values: Tensor) -> None:
    if not values.isfinite().all():
        raise ValueError("`model` must give finite codes, got NaN or infinity; its weights are damaged: train again.")


def as_csr(codes: Tensor, max_active_dims: int | None, normalize: bool) -> sparse.csr_matrix:
    """What a model gives, `(batch, latent_size)`, as sparse rows on the CPU; the options are those of `encode`.

    Raises:
        ValueError: if they are not finite.
    """
    codes = keep_largest(codes, max_active_dims)
    _check_finite(codes)
    rows, columns = codes.nonzero(as_tuple=True)
    starts = torch.searchsorted(rows, torch.arange(len(codes) + 1, device=rows.device))  # where each row begins
    arrays = codes[rows, columns].cpu().numpy(), columns.int().cpu().numpy(), starts.int().cpu().numpy()
    found = sparse.csr_matrix(arrays, shape=tuple(codes.shape))
    return at_length_one(found) if normalize else found
