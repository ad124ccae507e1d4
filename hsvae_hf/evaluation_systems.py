"""Systems that the evaluation compares: models of this package at a budget, and baselines without training."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from scipy import sparse
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsvae_hf.decoding import decode_codes
from hsvae_hf.encoding import encode, encode_vectors, keep_largest
from hsvae_hf.evaluation_scores import Matrix, as_dense
from hsvae_hf.extras import require
from hsvae_hf.input_checks import check_active_dims, check_model, check_positive

VALUE_BITS = 1, 2, 3, 4, 6, 8
BITS_PER_ACTIVE_DIM = 16  # of a sign projection, beside codes at half precision


class Coder(Protocol):
    """What the evaluation asks of a system: rows in, codes out.

    A coder may also have `decode(codes)`, which gives vectors `(rows, size)` in the encoder's units, or None; and
    `reads_text = True`, if its rows are sentences instead of vectors.
    """

    def encode(self, rows: Any) -> Matrix:
        """Codes of vectors `(rows, size)`, `(rows, latent_size)`: CSR where most numbers are 0, else an array."""
        ...


class System(NamedTuple):
    """A coder, its name, and what its codes may cost.

    Attributes:
        name: of the system, the same at every budget.
        budget: `active_dims`, non-zeros per code; `bytes` per code; `value_bits` of a quantised code; as far as they
            were asked for.
        coder: at that budget.
    """

    name: str
    budget: dict[str, int]
    coder: Coder


class ModelCoder:
    """A model of this package that takes sentence vectors, at a budget of non-zeros.

    Args:
        model: of `decoder_type="vector"`.
        active_dims: non-zeros per code; None for the model's own rule.
    """

    def __init__(self, model: PreTrainedModel, active_dims: int | None = None) -> None:
        check_model(model)
        check_active_dims(model, active_dims=active_dims)
        self.model, self.active_dims = model, active_dims

    def encode(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Codes, `(rows, latent_size)`."""
        return encode_vectors(self.model, rows, active_dims=self.active_dims)

    def decode(self, codes: Matrix) -> np.ndarray:
        """Vectors that the decoder makes of codes, `(rows, feature_size)`."""
        return decode_codes(self.model, sparse.csr_matrix(codes))


class TextModelCoder:
    """A model of this package that reads text itself, at a budget of non-zeros.

    Args:
        model: with a text encoder.
        tokenizer: the model's.
        active_dims: non-zeros per code; None for the model's own rule.
    """

    reads_text = True

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, active_dims: int | None = None
    ) -> None:
        check_model(model)
        check_active_dims(model, active_dims=active_dims)
        self.model, self.tokenizer, self.active_dims = model, tokenizer, active_dims

    def encode(self, rows: Sequence[str]) -> sparse.csr_matrix:
        """Codes, `(rows, latent_size)`."""
        return encode(self.model, self.tokenizer, rows, active_dims=self.active_dims)


class QuantizedCoder:
    """Another coder's codes in few bits: `quantize`, at one length for all codes, so that no scale is stored.

    Args:
        coder: of sparse codes.
        value_bits: per non-zero, its sign included.
        vectors: `(rows, size)`, whose mean length of code all codes get.
    """

    def __init__(self, coder: Coder, value_bits: int, vectors: np.ndarray) -> None:
        self.coder, self.value_bits = coder, value_bits
        self.length = float(_lengths(sparse.csr_matrix(coder.encode(vectors))).mean())

    def encode(self, rows: Any) -> sparse.csr_matrix:
        """Codes, `(rows, latent_size)`."""
        codes = quantize(sparse.csr_matrix(self.coder.encode(rows)), self.value_bits)
        lengths = _lengths(codes)
        scales = self.length / np.where(lengths > 0, lengths, 1.0)
        return sparse.csr_matrix(sparse.diags_array(scales).astype(np.float32) @ codes)

    def decode(self, codes: Matrix) -> np.ndarray | None:
        """What the other coder makes of them."""
        decode = getattr(self.coder, "decode", None)
        return None if decode is None else decode(codes)


def _lengths(codes: sparse.csr_matrix) -> np.ndarray:
    return np.sqrt(np.asarray(codes.multiply(codes).sum(axis=1)).ravel())


def quantize(codes: sparse.csr_matrix, value_bits: int) -> sparse.csr_matrix:
    """Values in `value_bits` bits: a sign, and a magnitude in equal steps up to the largest of the code.

    Args:
        codes: `(rows, latent_size)`.
        value_bits: at least 1; with 1 all that stays is the sign.

    Returns:
        Codes of the same non-zeros, each at the middle of its step, as a share of the largest magnitude.

    Example:
        >>> quantize(sparse.csr_matrix([[0.0, 4.0, -1.0]]), value_bits=2).toarray()
        array([[ 0.  ,  0.75, -0.25]], dtype=float32)
    """
    check_positive(value_bits=value_bits)
    levels = 2 ** (value_bits - 1)
    result = sparse.csr_matrix(codes, dtype=np.float32, copy=True)
    result.eliminate_zeros()
    largest = np.repeat(abs(result).max(axis=1).toarray().ravel(), np.diff(result.indptr))
    steps = np.clip(np.ceil(np.abs(result.data) / largest * levels), 1, levels)
    result.data = (np.sign(result.data) * (steps - 0.5) / levels).astype(np.float32)
    return result


def active_dims_of_bytes(size: int, latent_size: int, value_bits: int) -> int:
    """Non-zeros k that fit in `size` bytes.

    Which they are is one of `C(latent_size, k)` sets, and its number takes `ceil(log2 C(latent_size, k))` bits
    (enumerative coding, Cover 1973); each value takes `value_bits`.

    >>> active_dims_of_bytes(48, latent_size=512, value_bits=4)
    43
    """
    count, sets = 0, 1
    while count < latent_size:
        sets = sets * (latent_size - count) // (count + 1)  # C(latent_size, count + 1)
        if (sets - 1).bit_length() + (count + 1) * value_bits > 8 * size:
            break
        count += 1
    return count


class Dense:
    """The encoder's vectors as they are."""

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """The same, `(rows, size)`."""
        return rows


class PCA:
    """Principal components.

    Args:
        vectors: to fit on, `(rows, size)`.
        components: that a code has, dense; None for all of them.
        largest: coordinates of the largest magnitude that a code keeps; None for all.
    """

    def __init__(self, vectors: np.ndarray, components: int | None = None, largest: int | None = None) -> None:
        check_positive(components=components, largest=largest)
        self.mean = vectors.mean(axis=0)
        centred = (vectors - self.mean).astype(np.float64)
        values, directions = np.linalg.eigh(centred.T @ centred)
        order = np.argsort(-values)[:components]
        self.directions = directions[:, order].astype(np.float32)  # (size, components)
        self.largest = largest

    def encode(self, rows: np.ndarray) -> Matrix:
        """Coordinates, `(rows, components)`."""
        codes = np.asarray((rows - self.mean) @ self.directions, dtype=np.float32)
        if self.largest is None:
            return codes
        return sparse.csr_matrix(keep_largest(torch.from_numpy(codes), self.largest).numpy())

    def decode(self, codes: Matrix) -> np.ndarray:
        """Vectors of coordinates, `(rows, size)`."""
        return as_dense(codes) @ self.directions.T + self.mean


class SignBits:
    """The sign of every dimension, a bit each.

    Args:
        vectors: whose mean signs are taken from, `(rows, size)`.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self.mean = vectors.mean(axis=0)
        self.step = float(np.abs(vectors - self.mean).mean(dtype=float))

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """1 or -1, `(rows, size)`; their cosine falls with the Hamming distance."""
        return np.where(rows >= self.mean, 1.0, -1.0).astype(np.float32)

    def decode(self, codes: Matrix) -> np.ndarray:
        """The mean, and the signs at the scale of least squares, `(rows, size)`.

        Beside signs alone this ranks the documents of a dense query better where the mean is not near 0.
        """
        return as_dense(codes) * self.step + self.mean


class SignProjections:
    """Signs of random projections (Charikar 2002), orthogonal as far as there are dimensions.

    Args:
        vectors: whose mean signs are taken from, `(rows, size)`.
        bits: projections.
        seed: of the projections.
    """

    def __init__(self, vectors: np.ndarray, bits: int, seed: int = 0) -> None:
        check_positive(bits=bits)
        self.mean = vectors.mean(axis=0)
        generator, size = np.random.default_rng(seed), vectors.shape[1]
        blocks = [np.linalg.qr(generator.normal(size=(size, size)))[0] for _ in range(-(-bits // size))]
        self.directions = np.concatenate(blocks, axis=1)[:, :bits].astype(np.float32)  # (size, bits)
        projected = (vectors - self.mean) @ self.directions
        signs = np.sign(projected) @ self.directions.T
        self.step = float((signs * (vectors - self.mean)).sum() / np.square(signs).sum())  # least squares

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """1 or -1, `(rows, bits)`."""
        return np.where((rows - self.mean) @ self.directions >= 0, 1.0, -1.0).astype(np.float32)

    def decode(self, codes: Matrix) -> np.ndarray:
        """The sum of the directions with their signs, at the scale of least squares, `(rows, size)`."""
        return as_dense(codes) @ self.directions.T * self.step + self.mean


class Int8:
    """Each dimension in 255 steps between its smallest and its largest value.

    Args:
        vectors: that tell the range, `(rows, size)`.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self.low = vectors.min(axis=0)
        width = vectors.max(axis=0) - self.low
        self.step = np.where(width > 0, width, 1.0) / 255

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """The values that the steps stand for, `(rows, size)`."""
        steps = np.clip(np.round((rows - self.low) / self.step), 0, 255)
        return np.asarray(steps * self.step + self.low, dtype=np.float32)


class TfidfCoder:
    """TF-IDF of words, sublinear.

    Args:
        texts: that tell the words.

    Raises:
        ImportError: without scikit-learn.
    """

    reads_text = True

    def __init__(self, texts: Sequence[str]) -> None:
        require("sklearn", extra="eval")
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit(texts)

    def encode(self, rows: Sequence[str]) -> sparse.csr_matrix:
        """Weights of length 1, `(rows, words)`."""
        return sparse.csr_matrix(self.vectorizer.transform(rows), dtype=np.float32)


def bm25_similarity(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
    """BM25 scores of all documents for all queries, by bm25s with its defaults and English stop words.

    Args:
        queries: sentences.
        documents: sentences.

    Returns:
        `(queries, documents)`, float32.

    Raises:
        ImportError: without bm25s.
    """
    require("bm25s", extra="eval")
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(documents), stopwords="en", show_progress=False), show_progress=False)
    words = bm25s.tokenize(list(queries), stopwords="en", show_progress=False, return_ids=False)
    scores = np.zeros((len(queries), len(documents)), dtype=np.float32)
    for row, query in enumerate(words):
        known = [word for word in query if word in index.vocab_dict]
        if known:
            scores[row] = index.get_scores(known)
    return scores


def baselines(vectors: np.ndarray, active_dims: Sequence[int]) -> Iterator[System]:
    """Systems without training.

    Args:
        vectors: to fit principal components, means and ranges on, `(rows, size)`.
        active_dims: budgets of those that have one.

    Yields:
        Dense vectors, int8, sign bits; then for each budget k PCA to k, the k largest PCA coordinates, and sign
        projections of 16k bits.
    """
    size = vectors.shape[1]
    yield System("dense", {"bytes": 4 * size}, Dense())
    yield System("int8", {"bytes": size}, Int8(vectors))
    yield System("sign bits", {"bytes": -(-size // 8)}, SignBits(vectors))
    for count in active_dims:
        budget = {"active_dims": count}
        if count <= size:
            yield System("PCA", budget | {"bytes": 4 * count}, PCA(vectors, components=count))
            yield System("PCA, largest", budget, PCA(vectors, largest=count))
        bits = BITS_PER_ACTIVE_DIM * count
        yield System("sign projections", budget | {"bytes": bits // 8}, SignProjections(vectors, bits))
