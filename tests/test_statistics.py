import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from hsvae_hf.plots import dimension_order, plot_gate_heatmap
from hsvae_hf.statistics import GateStatistics, class_gate_activity, class_kl, neighbours_kept


def class_gates(num_classes=4, per_class=50, seed=0):
    """Gates with one dimension on for each class, one always on and two always off, dimensions shuffled."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(num_classes), per_class))
    on = np.concatenate([labels[:, None] == np.arange(num_classes), np.ones((len(labels), 1))], axis=1).astype(bool)
    on = np.concatenate([on, np.zeros((len(labels), 2), dtype=bool)], axis=1)
    gates = np.where(on, rng.uniform(0.01, 0.49, on.shape), rng.uniform(0.5, 0.99, on.shape))
    order = rng.permutation(num_classes + 3)
    return gates[:, order], labels, order


def gate_statistics(gates, threshold=0.5):
    statistics = GateStatistics(threshold)
    statistics.update(gates)
    return statistics.result()


def test_gate_statistics_equal_their_definition():
    gates = np.random.default_rng(0).beta(2, 1, (500, 30)) ** np.linspace(0.01, 20, 30)
    on_share = (gates < 0.5).mean(axis=0)
    result = gate_statistics(gates)
    assert result["gate_std"] == pytest.approx(gates.std(axis=0).mean(), rel=1e-9)
    assert result["switching_fraction"] == np.mean([0.05 <= share <= 0.95 for share in on_share])
    assert 0 < result["switching_fraction"] < 1
    assert result["active_dims"] == pytest.approx((gates < 0.5).sum(axis=1).mean())


def test_gate_statistics_in_batches_equal_one_shot():
    gates = torch.rand(300, 12, generator=torch.Generator().manual_seed(0))
    statistics = GateStatistics(threshold=0.4)
    for batch in gates.split(37):
        statistics.update(batch)
    assert statistics.sentences == 300
    assert statistics.result() == pytest.approx(gate_statistics(gates.numpy(), threshold=0.4), rel=1e-9)


def test_gates_that_ignore_the_input_have_exactly_zero_std():
    gates = np.tile(np.linspace(0.1, 0.9, 7), (1000, 1))
    result = gate_statistics(gates)
    assert result["gate_std"] == 0
    assert result["switching_fraction"] == 0


def test_active_dims_are_those_of_the_code_where_it_is_given():
    statistics = GateStatistics()
    statistics.update(torch.full((2, 4), 0.1), torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, -1.0, 2.0, 0.0]]))
    assert statistics.result()["active_dims"] == 1.5


def test_gate_statistics_take_memory_per_dimension_only():
    statistics, batch = GateStatistics(), np.random.default_rng(0).random((1000, 200))  # 1.6 MB
    statistics.update(batch)
    tracemalloc.start()
    try:
        for _ in range(30):
            statistics.update(batch)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 50_000
    assert peak < 4 * batch.nbytes


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.5])
def test_gates_must_be_probabilities(value):
    gates = np.full((3, 2), 0.5)
    gates[1, 1] = value
    with pytest.raises(ValueError, match=r"`gate_mean` must hold probabilities in \[0, 1\]"):
        gate_statistics(gates)


def test_gate_statistics_refuse_what_does_not_fit():
    statistics = GateStatistics()
    with pytest.raises(ValueError, match="got none"):
        statistics.result()
    with pytest.raises(ValueError, match=r"at least one row, got shape \(0, 3\)"):
        statistics.update(np.zeros((0, 3)))
    statistics.update(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="must be 3 wide like the batches before, got 4"):
        statistics.update(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="`sparse_embedding` must have the shape of `gate_mean`"):
        statistics.update(np.zeros((2, 3)), np.zeros((1, 3)))
    assert statistics.sentences == 1


def test_class_gate_activity_by_hand():
    codes = torch.tensor([[-0.1, 0.0], [0.0, 0.0], [2.0, 1.0]])
    activity = class_gate_activity(codes, torch.tensor([0, 0, 2]), num_classes=3)
    np.testing.assert_array_equal(activity, [[0.5, 0], [np.nan, np.nan], [1, 1]])


def test_class_gate_activity_recovers_the_dimensions_of_each_class():
    gates, labels, order = class_gates()
    expected = np.concatenate([np.eye(4), np.ones((4, 1)), np.zeros((4, 2))], axis=1)[:, order]
    np.testing.assert_array_equal(class_gate_activity(gates < 0.5, labels, 4), expected)
    with pytest.raises(ValueError, match=r"`active` must be a \(sentences, latent_size\) matrix, got shape \(7,\)"):
        class_gate_activity(gates[0], labels, 4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1, 2], r"be in \[0, 2\)"), ([0, -1, 0], r"be in \[0, 2\)"), ([0, 1], "have shape")],
)
def test_labels_must_fit(labels, message):
    with pytest.raises(ValueError, match=f"`labels` must {message}"):
        class_gate_activity(np.zeros((3, 2)), labels, 2)
    with pytest.raises(ValueError, match=f"`labels` must {message}"):
        class_kl([[0], [0], [0]], labels, 2, vocab_size=4)


def test_class_kl_equals_its_definition():
    kl = class_kl([[0, 0, 1], [], [3]], [0, 0, 1], num_classes=2, vocab_size=4)
    first, second = np.array([3, 2, 1, 1]) / 7, np.array([1, 1, 1, 2]) / 5
    expected = [[0, (first * np.log(first / second)).sum()], [(second * np.log(second / first)).sum(), 0]]
    np.testing.assert_allclose(kl, expected, atol=1e-12)


def test_class_kl_refuses_words_outside_the_vocabulary():
    for word in (4, -1):
        with pytest.raises(ValueError, match=r"`token_ids` must be in \[0, 4\)"):
            class_kl([[0], [word]], [0, 1], num_classes=2, vocab_size=4)


@pytest.mark.data
def test_class_kl_of_real_text_is_small_between_like_classes():
    if "HSVAE_DATA_DIR" not in os.environ:
        pytest.skip("HSVAE_DATA_DIR is not set: no real text to read")
    from datasets import load_dataset

    data = load_dataset(str(Path(os.environ["HSVAE_DATA_DIR"]) / "dbpedia"), split="validation")
    names = data.features["label"].names
    vocabulary: dict[str, int] = {}
    sentences = [[vocabulary.setdefault(w, len(vocabulary)) for w in text.lower().split()] for text in data["text"]]
    kl = class_kl(sentences, data["label"], len(names), len(vocabulary))
    assert (kl > -1e-12).all()
    assert np.allclose(np.diag(kl), 0)
    film, village = names.index("Film"), names.index("Village")
    assert kl[film, names.index("WrittenWork")] < kl[film, village]
    assert kl[film, names.index("Album")] < kl[film, village]


def test_dimension_order_is_classes_then_shared_then_unused():
    gates, labels, order = class_gates()
    arranged = order[dimension_order(class_gate_activity(gates < 0.5, labels, 4))]
    assert list(arranged[:5]) == [0, 1, 2, 3, 4]
    assert set(arranged[5:]) == {5, 6}


def test_a_class_without_sentences_does_not_disturb_the_order():
    gates, labels, _ = class_gates()
    activity = class_gate_activity(gates < 0.5, labels, 4)
    with_empty = np.insert(activity, 2, np.nan, axis=0)
    np.testing.assert_array_equal(dimension_order(with_empty), dimension_order(activity))


@pytest.mark.parametrize(("num_classes", "latent_size"), [(14, 768), (8, 64), (2, 2), (1, 1)])
def test_heatmap_is_a_png_at_double_resolution(tmp_path, num_classes, latent_size):
    pytest.importorskip("matplotlib")
    activity = np.random.default_rng(0).random((num_classes, latent_size))
    activity[-1] = np.nan if num_classes == 8 else activity[-1]
    path = tmp_path / "gates.png"
    plot_gate_heatmap(activity, [f"class {i}" for i in range(num_classes)], path, title="Gates")
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(header[16:20], "big") == 1800
    assert list(tmp_path.iterdir()) == [path]


def test_heatmap_leaves_no_global_state_and_no_half_file(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    had_pyplot = "matplotlib.pyplot" in sys.modules
    path = tmp_path / "gates.png"
    path.write_text("the previous figure")

    def fail(self, target, **kwargs):
        Path(target).write_text("half a figure")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot_gate_heatmap(np.zeros((2, 3)), ["a", "b"], path)
    assert path.read_text() == "the previous figure"
    assert list(tmp_path.iterdir()) == [path]
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_heatmap_needs_a_name_per_class(tmp_path):
    with pytest.raises(ValueError, match="`class_names` must name each row of `activity`, got 1 names"):
        plot_gate_heatmap(np.zeros((2, 3)), ["a"], tmp_path / "gates.png")


def test_neighbours_kept_are_counted_row_by_row():
    rng = np.random.default_rng(0)
    vectors, codes = rng.normal(size=(12, 5)), sparse.csr_matrix(rng.normal(size=(12, 4)) * (rng.random((12, 4)) < 0.7))
    kept = 0
    for row in range(12):
        others = [other for other in range(12) if other != row]
        cosine = {
            o: vectors[row] @ vectors[o] / np.linalg.norm(vectors[row]) / np.linalg.norm(vectors[o]) for o in others
        }
        product = {o: (codes[row] @ codes[o].T).toarray()[0, 0] for o in others}
        by_vector, by_code = (set(sorted(others, key=found.get)[-3:]) for found in (cosine, product))
        kept += len(by_vector & by_code)
    assert neighbours_kept(vectors, codes, 3) == pytest.approx(kept / 36)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert neighbours_kept(5 * vectors, sparse.csr_matrix(unit), 3) == 1
    with pytest.raises(ValueError, match="`count` must be from 1 to 11, the other rows, got 12"):
        neighbours_kept(vectors, codes, 12)


def test_what_holds_no_gates_labels_ids_or_codes_is_refused():
    gates, labels = np.full((3, 2), 0.3), [0, 1, 1]
    with pytest.raises(ValueError, match="`gate_mean` must be"):
        GateStatistics().update(np.array([["a", "b"]]))
    assert class_gate_activity(sparse.csr_matrix(gates), labels, 2).tolist() == [[1, 1], [1, 1]]
    for wrong, message in ((["a", "b", "c"], "class indices, got <U1"), ([0.0, 1.0, float("nan")], "got float64")):
        with pytest.raises(ValueError, match=f"`labels` must be .*{message}"):
            class_gate_activity(gates, wrong, 2)
    for number in (0, "2", 1.5):
        with pytest.raises(ValueError, match="`num_classes` must be at least 1"):
            class_gate_activity(gates, labels, number)
    with pytest.raises(ValueError, match="`token_ids` must be whole numbers, got <U3 in row 1"):
        class_kl([[1], ["cat"], [2]], labels, 2, 5)
    with pytest.raises(ValueError, match="`vocab_size` must be at least 1"):
        class_kl([[1], [1], [2]], labels, 2, 0)
    codes = sparse.csr_matrix(gates)
    for vectors, given in ((gates, gates), (gates[:2], codes), (gates[0], codes), (gates, codes[:2])):
        with pytest.raises(ValueError, match="`codes` must be a sparse matrix with a row for each of `vectors`"):
            neighbours_kept(vectors, given, 1)
    with pytest.raises(ValueError, match="`count` must be at least 1"):
        neighbours_kept(gates, codes, 1.5)
