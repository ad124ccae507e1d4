"""Word distributions of classes against their definition, and on real text."""

import numpy as np
import pytest
from datasets import load_dataset
from word_divergence import class_kl


def test_class_kl_equals_its_definition():
    kl = class_kl([[0, 0, 1], [], [3]], [0, 0, 1], num_classes=2, vocab_size=4)
    first, second = np.array([3, 2, 1, 1]) / 7, np.array([1, 1, 1, 2]) / 5
    expected = [[0, (first * np.log(first / second)).sum()], [(second * np.log(second / first)).sum(), 0]]
    np.testing.assert_allclose(kl, expected, atol=1e-12)


@pytest.mark.data
def test_class_kl_of_real_text_is_small_between_like_classes(data_dir):
    data = load_dataset(str(data_dir / "dbpedia"), split="validation")
    names = data.features["label"].names
    vocabulary: dict[str, int] = {}
    sentences = [[vocabulary.setdefault(w, len(vocabulary)) for w in text.lower().split()] for text in data["text"]]
    kl = class_kl(sentences, data["label"], len(names), len(vocabulary))
    assert (kl > -1e-12).all()
    assert np.allclose(np.diag(kl), 0)
    film, village = names.index("Film"), names.index("Village")
    assert kl[film, names.index("WrittenWork")] < kl[film, village]
    assert kl[film, names.index("Album")] < kl[film, village]
