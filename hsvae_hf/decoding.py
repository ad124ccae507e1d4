"""What codes of vectors stand for: the vectors that the decoder makes of them, and dense queries against codes.

A code c stands for the vector `D c + b`. A dense query x and a code score `x . D c / |D c + b|` wherever queries stay
dense: `encode_queries` and `code_lengths`, `SparseCodes(asymmetric=True)`, and the scoring `asymmetric_dot` of
`evaluate_codes`. It is the cosine of x and `D c + b`, which is the scoring `asymmetric`, times `|x|`, but for
`x . b / |D c + b|`. That part is left out: no dot product with the numbers of a code gives it. It hardly changes the
ranks: with `model_cards/hsvae-minilm` at 4 to 64 non-zeros, nDCG@10 on Cranfield and CISI differs by at most .003.
Without b in the length too it would be up to .01 lower.
"""

from typing import cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from transformers import PreTrainedModel

from hsvae_hf.encoding import evaluation_mode, keep_largest
from hsvae_hf.input_checks import as_tensor, check_codes, check_model, check_positive, check_vectors
from hsvae_hf.models.modeling_text_vae import TextVAEModel


def decode_codes(
    model: PreTrainedModel, codes: sparse.csr_matrix | np.ndarray | Tensor, batch_size: int = 1024
) -> np.ndarray:
    """The vectors that codes stand for: what the decoder makes of them, in the encoder's units.

    Args:
        model: of `decoder_type="vector"`.
        codes: of this model, `(rows, latent_size)`, a matrix of scipy, an array or a tensor, sparse ones too.
        batch_size: rows at a time (>= 1).

    Returns:
        `(rows, feature_size)`, float32.

    Raises:
        ValueError: if the model reconstructs words, or the codes have another shape or hold what is no finite number.

    >>> from hsvae_hf import HSVAEConfig, HSVAEModel, encode_vectors
    >>> sizes = {"encoder_type": "vector", "vector_size": 5, "decoder_type": "vector", "latent_size": 6}
    >>> model = HSVAEModel(HSVAEConfig(**sizes, tie_word_embeddings=False))
    >>> decode_codes(model, encode_vectors(model, np.ones((2, 5)))).shape
    (2, 5)
    """
    _check_vector_decoder(model)
    check_positive(batch_size=batch_size)
    body, rows = cast(TextVAEModel, model.base_model), check_codes(model, codes)
    parts = [np.empty((0, model.config.feature_size), dtype=np.float32)]
    with evaluation_mode(body):
        for start in range(0, rows.shape[0], batch_size):
            code = torch.from_numpy(rows[start : start + batch_size].toarray()).to(model.device)
            parts.append(decoded(body, code).float().cpu().numpy())
    return np.concatenate(parts)


def encode_queries(model: PreTrainedModel, vectors: np.ndarray, max_active_dims: int | None = None) -> np.ndarray:
    """Queries that stay dense, for codes of documents: what each dimension of a code is worth to a query.

    The query x becomes `D^T x`. Its dot product with a code, divided by the code's length (`code_lengths`, one number
    per document), ranks as the cosines of x and the decoded codes do but for what the module's docstring says.

    Args:
        model: of `decoder_type="vector"`.
        vectors: of its encoder, `(rows, feature_size)`.
        max_active_dims: keep this many of a query's dimensions, those of largest magnitude (>= 1); None keeps all.

    Returns:
        `(rows, latent_size)`, float32.

    Raises:
        ValueError: if the model reconstructs words, a number is below 1, or the vectors are not such as it takes.
    """
    _check_vector_decoder(model)
    check_positive(max_active_dims=max_active_dims)
    array = check_vectors(model, vectors)
    with torch.no_grad():
        columns = dictionary(cast(TextVAEModel, model.base_model)).cpu()
    queries = as_tensor(array) @ columns
    return keep_largest(queries, max_active_dims).numpy()


def code_lengths(model: PreTrainedModel, codes: sparse.csr_matrix | np.ndarray | Tensor) -> np.ndarray:
    """The length of the vector that each code stands for, `|D c + b|`, `(rows,)`, float32, at least 1e-6.

    Args:
        model: of `decoder_type="vector"`.
        codes: of this model, `(rows, latent_size)`.

    Raises:
        ValueError: as `decode_codes`.
    """
    return cast(np.ndarray, np.linalg.norm(decode_codes(model, codes), axis=1).clip(1e-6))


def decoded(body: TextVAEModel, codes: Tensor) -> Tensor:
    """`D c + b` of codes `(rows, latent_size)`, in the encoder's units, `(rows, feature_size)`."""
    return body.standardizer.undo(body.decoder.mean(codes / body.code_scale))


def dictionary(body: TextVAEModel) -> Tensor:
    """D, `(feature_size, latent_size)`, fp32: a column is what one unit of a dimension adds to the vector."""
    return body.standardizer.std.unsqueeze(1) * body.decoder.output.weight.float() / body.code_scale


def _check_vector_decoder(model: PreTrainedModel) -> None:
    check_model(model)
    if model.config.decodes_words:
        raise ValueError("`model` must be one of `decoder_type='vector'`, got one of words: its codes are no vectors.")
