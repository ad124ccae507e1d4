"""Divergence between the word distributions of classes."""

from collections.abc import Iterable, Sequence

import numpy as np


def class_kl(token_ids: Iterable[Sequence[int]], labels: np.ndarray, num_classes: int, vocab_size: int) -> np.ndarray:
    """Kullback-Leibler divergence between the word distributions of each pair of classes, add-1 smoothed.

    Args:
        token_ids: one list of word indices per sentence, without padding or special tokens.
        labels: class indices, `(sentences,)`.
        num_classes: number of classes.
        vocab_size: size of the vocabulary.

    Returns:
        `(num_classes, num_classes)`, in nats: KL(row's class || column's class), 0 on the diagonal.
    """
    counts = np.ones((num_classes, vocab_size))
    for label, sentence in zip(labels, token_ids, strict=True):
        np.add.at(counts[label], np.asarray(sentence, dtype=np.int64), 1)
    log_share = np.log(counts) - np.log(counts.sum(axis=1, keepdims=True))
    share = np.exp(log_share)
    return np.sum(share * log_share, axis=1)[:, None] - share @ log_share.T
