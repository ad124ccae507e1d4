"""Encoder of a shard: what each process of `encode_corpus` does, on any machine."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from scipy import sparse
from transformers import AutoConfig, PreTrainedModel

from hsvae_hf.argument_names import known_as
from hsvae_hf.corpus_input import Block, rows_checksum
from hsvae_hf.embedding_cache import load_encoder_tokenizer
from hsvae_hf.encoding import encode, encode_vectors, find_prompt, sentence_vectors
from hsvae_hf.fingerprints import digest, encoder_parts, model_parts
from hsvae_hf.input_checks import check_active_dims
from hsvae_hf.loading import load_for_inference
from hsvae_hf.models import MODELS, HSVAEModel
from hsvae_hf.models.modeling_text_vae import TextVAEModel
from hsvae_hf.shard_files import Rows, ShardFolder
from hsvae_hf.shard_manifest import Content, Shard
from hsvae_hf.tokenization import warn_unknown

Task: TypeAlias = tuple[int, int, Block]  # number of the shard, of its first row, and the rows


@dataclass(frozen=True)
class Options:
    """What is made of the rows; see `encode_corpus`."""

    content: Content = "codes"
    batch_size: int | None = None
    max_active_dims: int | None = None
    active_dims: int | None = None
    prompt_name: str | None = None
    normalize: bool = False


@dataclass(frozen=True)
class Job:
    """What a worker needs to know.

    Attributes:
        model_name_or_path: folder or Hub id.
        location: of the output.
        format: of its files.
        options: of the encoding.
        encoder_name_or_path: folder or Hub id of the encoder that goes before a model of its vectors; None for none.
        fingerprint: that the model must have; None for any.
    """

    model_name_or_path: str
    location: str
    format: str
    options: Options
    encoder_name_or_path: str | None = None
    fingerprint: str | None = None


class CorpusEncoder:
    """A model and how it encodes the rows of a corpus.

    Args:
        model_name_or_path: folder or Hub id.
        options: of the encoding.
        encoder_name_or_path: as of `encode_corpus`.
        number: of the process, which chooses among several GPUs.

    Raises:
        ValueError: if there is no such model, or the encoder does not fit it.
    """

    def __init__(
        self, model_name_or_path: str, options: Options, encoder_name_or_path: str | None = None, number: int = 0
    ) -> None:
        self.options, self._warned, self.encoder_name = options, set[str](), encoder_name_or_path
        self.model, self.tokenizer, self.fingerprint = load_encoder(model_name_or_path, options, encoder_name_or_path)
        if torch.cuda.is_available():
            cast(Any, self.model).to(f"cuda:{number % torch.cuda.device_count()}")

    @property
    def width(self) -> int:
        """Numbers of a row of the output."""
        config = self.model.config
        return int(config.latent_size if self.options.content == "codes" else config.feature_size)

    def check(self, rows: Block) -> None:
        """Refuse rows and options that do not fit the model; warn of unknown words.

        Args:
            rows: some of the input.

        Raises:
            ValueError: naming what does not fit.
        """
        options, text = self.options, isinstance(rows, list)
        check_active_dims(self.model, active_dims=options.active_dims)
        if not text and options.prompt_name is not None:
            raise ValueError("`prompt_name` must be left out with vectors: there is no text for it to go before.")
        if not text and options.content == "vectors":
            raise ValueError("`input` must be sentences to make vectors of them, got vectors; give text.")
        if not text and self.encoder_name is not None:
            raise ValueError(
                f"`encoder_name_or_path` must be left out where `input` is vectors, got {self.encoder_name!r}; give "
                "text, or leave it out."
            )
        if text and self.tokenizer is None:
            raise ValueError(
                "`input` must be vectors for this model, which reads no text, got sentences; name the encoder that the "
                "model was trained for as `encoder_name_or_path`."
            )
        find_prompt(self.model.config, options.prompt_name)
        if text:
            warn_unknown(self.tokenizer, rows)

    def encode(self, rows: Block) -> Rows:
        """Codes `(rows, latent_size)` or vectors `(rows, feature_size)`."""
        with _warned_once(self._warned):
            return self._encode(rows)

    def _encode(self, rows: Block) -> Rows:
        options = self.options
        chosen: dict[str, Any] = {
            "max_active_dims": options.max_active_dims,
            "active_dims": options.active_dims,
            "normalize": options.normalize,
        }
        if isinstance(rows, np.ndarray):
            return encode_vectors(self.model, rows, options.batch_size or 1024, **chosen)
        if options.content == "vectors":
            return sentence_vectors(self.model, self.tokenizer, rows, options.batch_size)
        return encode(self.model, self.tokenizer, rows, options.batch_size, prompt_name=options.prompt_name, **chosen)


class ShardEncoder(CorpusEncoder):
    """The same for shards of a folder.

    Args:
        job: to do.
        number: as of `CorpusEncoder`.

    Raises:
        ValueError: if there is no such model, or it is another one than the job says.
    """

    def __init__(self, job: Job, number: int = 0) -> None:
        super().__init__(job.model_name_or_path, job.options, job.encoder_name_or_path, number)
        self.job, self.folder = job, ShardFolder(job.location, "output")
        if job.fingerprint not in (None, self.fingerprint):
            raise ValueError(
                "`model_name_or_path` must be the same model everywhere, got another one in "
                f"{job.model_name_or_path!r} of one machine; copy it anew."
            )

    def __call__(self, task: Task) -> Shard:
        """Encode the rows of a shard and write them."""
        number, first_row, rows = task
        result = self.encode(rows)
        nonzeros, empty = 0, 0
        if isinstance(result, sparse.csr_matrix):
            nonzeros, empty = int(result.nnz), int((result.getnnz(axis=1) == 0).sum())
        shard = Shard(number, first_row, len(rows), nonzeros, empty, rows_checksum(rows))
        return self.folder.write_shard(self.job.format, shard, result)


def check_same_rows(shard: Shard, rows: Block) -> None:
    """Refuse to go on with other rows than those that a shard was made of.

    Raises:
        ValueError: if these are others.
    """
    if (shard.rows, shard.rows_checksum) != (len(rows), rows_checksum(rows)):
        raise ValueError(
            f"`input` must be that of before to resume, got other rows from row {shard.first_row} on; delete the "
            "output to begin anew."
        )


@contextmanager
def _warned_once(told: set[str]) -> Iterator[None]:
    """Leave out warnings of vectors that were given before; they go into `told`."""

    def is_new(record: logging.LogRecord) -> bool:
        known = record.msg in told
        told.add(record.msg)
        return not known

    logger = logging.getLogger(check_active_dims.__module__)
    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def load_encoder(
    model_name_or_path: str, options: Options, encoder_name_or_path: str | None = None
) -> tuple[PreTrainedModel, Any, str]:
    """Model, tokenizer if it reads text, and a fingerprint of what they give.

    For vectors it may be any text encoder, of sentence-transformers too.

    Raises:
        ValueError: if there is none, or the encoder that goes before it does not fit it.
    """
    vectors = options.content == "vectors"
    prompt: dict[str, Any] = {}
    if vectors and options.prompt_name is not None:
        prompt["default_prompt_name"] = options.prompt_name
    if vectors and not _is_ours(model_name_or_path):
        with known_as(encoder_name_or_path="model_name_or_path", default_prompt_name="prompt_name"):
            encoder = HSVAEModel.from_encoder_pretrained(model_name_or_path, decoder_type="vector", **prompt).eval()
            tokenizer = load_encoder_tokenizer(model_name_or_path)
        return encoder, tokenizer, digest(encoder_parts(encoder, tokenizer))
    model, tokenizer = load_for_inference(model_name_or_path, **prompt)
    if encoder_name_or_path is not None:
        model = cast(TextVAEModel, model).with_encoder(encoder_name_or_path).eval()
        tokenizer = load_encoder_tokenizer(encoder_name_or_path)
    return model, tokenizer, digest(model_parts(model, tokenizer))


def _is_ours(model_name_or_path: str) -> bool:
    try:
        return AutoConfig.from_pretrained(model_name_or_path).model_type in MODELS
    except (OSError, ValueError):  # the reader of encoders says what is wrong
        return False
