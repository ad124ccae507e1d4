"""Representations of a corpus, and linear probes: how well a classifier reads the classes from them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy import sparse
from torch import Tensor

from hsvae_hf.extras import require
from hsvae_hf.models.modeling_text_vae import TextVAEForPreTraining


@torch.inference_mode()
def representations(
    model: TextVAEForPreTraining, batches: Iterable[tuple[np.ndarray, Mapping[str, Tensor]]], num_samples: int = 5
) -> dict[str, Any]:
    """What the probes read, one row per sentence.

    Args:
        model: for pre-training.
        batches: row numbers and what the model takes; see `input_batches`. Rows come out in the order of their numbers.
        num_samples: K, draws of z per sentence.

    Returns:
        `code` and, where the model has gates, `gate` (1 = on), both CSR `(rows, latent_size)`; `slab_mean` where the
        model has one, else `posterior_mean`, `(rows, latent_size)`; `samples`, `(rows, num_samples, latent_size)`.
    """
    body, parts, order = model.model, [], []
    for rows, inputs in batches:
        posterior = body(**inputs)
        report = body.latent_head.diagnostics(posterior)
        mean = "slab_mean" if "slab_mean" in report else "posterior_mean"
        part = {"code": posterior.sparse_embedding, mean: report[mean]}
        if "spike_probability" in report:
            part["gate"] = posterior.sparse_embedding != 0
        part["samples"] = torch.stack([body.sample(posterior)["z"] for _ in range(num_samples)], dim=1)
        parts.append({name: value.float().cpu().numpy() for name, value in part.items()})
        order.append(rows)
    in_order = np.argsort(np.concatenate(order))
    result = {name: np.concatenate([part[name] for part in parts])[in_order] for name in parts[0]}
    return result | {name: sparse.csr_matrix(result[name]) for name in ("code", "gate") if name in result}


def probe_accuracy(
    train: np.ndarray | sparse.csr_matrix, labels: np.ndarray, test: np.ndarray | sparse.csr_matrix, truth: np.ndarray
) -> float:
    """Accuracy of logistic regression on features scaled to unit variance (not centred, so that zeros stay zeros).

    Args:
        train: `(rows, features)`; or `(rows, K, features)`: K samples per row, each a training row of its own, and in
            the test the class probabilities are averaged over the samples, `p(y|x) = mean_k p(y|z_k)`.
        labels: classes of `train`, `(rows,)`.
        test: like `train`.
        truth: classes of `test`.

    Raises:
        ImportError: without scikit-learn, of the extra `train`.
    """
    require("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    samples = train.shape[1] if train.ndim == 3 else 1
    if train.ndim == 3:
        train, test = (part.reshape(-1, part.shape[-1]) for part in (train, test))
    probe = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(C=0.1, max_iter=2000))
    probe.fit(train, np.repeat(labels, samples))
    probabilities = probe.predict_proba(test).reshape(len(truth), samples, -1).mean(1)
    return float((probe.classes_[probabilities.argmax(1)] == truth).mean())


def tfidf_accuracy(train: Dataset, test: Dataset) -> float:
    """Accuracy of TF-IDF (words and pairs, sublinear) with logistic regression on the same rows.

    Args:
        train: with columns `text` and `label`.
        test: likewise.

    Raises:
        ImportError: without scikit-learn, of the extra `train`.
    """
    require("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
    probe = make_pipeline(words, LogisticRegression(C=10, max_iter=2000))
    probe.fit(train["text"][:], train["label"][:])
    return float(probe.score(test["text"][:], test["label"][:]))
