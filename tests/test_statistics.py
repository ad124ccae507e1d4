"""Class activity, its picture, neighbours, and the estimate of the mutual information."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from vector_models import small

from hsvae_hf import HSVAEForPreTraining, encode_vectors
from hsvae_hf.plots import dimension_order, plot_gate_heatmap
from hsvae_hf.statistics import (
    EvenSample,
    class_gate_activity,
    corpus_statistics,
    fit_similarity,
    mutual_information,
    neighbours_kept,
)


def class_gates(num_classes=4, per_class=50, seed=0):
    """Gates with one dimension on for each class, one always on and two always off, dimensions shuffled."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(num_classes), per_class))
    on = np.concatenate([labels[:, None] == np.arange(num_classes), np.ones((len(labels), 1))], axis=1).astype(bool)
    on = np.concatenate([on, np.zeros((len(labels), 2), dtype=bool)], axis=1)
    gates = np.where(on, rng.uniform(0.01, 0.49, on.shape), rng.uniform(0.5, 0.99, on.shape))
    order = rng.permutation(num_classes + 3)
    return gates[:, order], labels, order


def test_class_gate_activity_by_hand_and_in_order():
    codes = torch.tensor([[-0.1, 0.0], [0.0, 0.0], [2.0, 1.0]])
    activity = class_gate_activity(codes, torch.tensor([0, 0, 2]), num_classes=3)
    np.testing.assert_array_equal(activity, [[0.5, 0], [np.nan, np.nan], [1, 1]])
    gates, labels, order = class_gates()
    expected = np.concatenate([np.eye(4), np.ones((4, 1)), np.zeros((4, 2))], axis=1)[:, order]
    activity = class_gate_activity(sparse.csr_matrix((gates < 0.5) * gates), labels, 4)
    np.testing.assert_array_equal(activity, expected)
    arranged = order[dimension_order(activity)]
    assert list(arranged[:5]) == [0, 1, 2, 3, 4]  # of one class each, then of all, then of none
    assert set(arranged[5:]) == {5, 6}
    with_empty = np.insert(activity, 2, np.nan, axis=0)  # a class without sentences
    np.testing.assert_array_equal(dimension_order(with_empty), dimension_order(activity))


@pytest.mark.parametrize(
    ("active", "labels", "number", "message"),
    [
        (np.zeros((3, 2)), [0, 1, 2], 2, r"`labels` must be class indices in \[0, 2\)"),
        (np.zeros((3, 2)), [0, -1, 0], 2, r"`labels` must be class indices in \[0, 2\)"),
        (np.zeros((3, 2)), ["a", "b", "c"], 2, "`labels` must be class indices .* got <U1"),
        (np.zeros((3, 2)), [0.0, 1.0, float("nan")], 2, "`labels` must be class indices .* got float64"),
        (np.zeros((3, 2)), [0, 1], 2, "`active` must be a .* matrix with one of `labels` per sentence"),
        (np.zeros(3), [0, 1, 1], 2, "`active` must be a .* matrix with one of `labels` per sentence"),
        (np.zeros((3, 2)), [0, 1, 1], 0, "`num_classes` must be at least 1"),
        (np.zeros((3, 2)), [0, 1, 1], 1.5, "`num_classes` must be at least 1"),
    ],
)
def test_what_is_no_matrix_of_labelled_codes_is_refused(active, labels, number, message):
    with pytest.raises(ValueError, match=message):
        class_gate_activity(active, labels, number)


@pytest.mark.parametrize(("num_classes", "latent_size"), [(8, 768), (1, 1)])
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
    with pytest.raises(ValueError, match="`class_names` must name each row of `activity`, got 1 names"):
        plot_gate_heatmap(np.zeros((2, 3)), ["a"], path)


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
    for number, message in ((12, "from 1 to 11, the other rows, got 12"), (1.5, "at least 1")):
        with pytest.raises(ValueError, match=f"`count` must be {message}"):
            neighbours_kept(vectors, codes, number)
    for given, wrong in ((vectors, vectors), (vectors[:2], codes), (vectors[0], codes)):
        with pytest.raises(ValueError, match="`codes` must be a sparse matrix with a row for each of `vectors`"):
            neighbours_kept(given, wrong, 1)


def test_an_even_sample_is_of_the_whole_stream():
    rows = torch.arange(100.0)
    sample = EvenSample(size=8)
    for part in rows.split(7):
        sample.update(part, 2 * part)
    chosen = np.random.default_rng(0).random(100).argsort()[:8]
    assert torch.equal(sample.columns[0], rows[chosen])
    assert torch.equal(sample.columns[1], 2 * rows[chosen])


def test_mutual_information_of_gaussians_and_gates_is_what_integration_gives():
    torch.manual_seed(0)
    off = torch.tensor([[0.9, 0.0], [0.2, 0.0], [0.5, 0.0]], dtype=torch.float64)
    mean = torch.tensor([[0.5, -1.0], [1.5, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    std = torch.tensor([[0.7, 0.5], [0.3, 1.0], [1.0, 0.8]], dtype=torch.float64)
    found = np.mean([mutual_information(off, mean, std) for _ in range(20_000)])
    grid = torch.linspace(-8, 8, 801, dtype=torch.float64)
    slab = torch.distributions.Normal(mean[..., None], std[..., None]).log_prob(grid).exp()  # (3, 2, grid)
    second = slab[:, 1]
    parts = [off[:, 0, None] * second]  # the spike of the first dimension
    parts += [((1 - off[:, 0, None]) * slab[:, 0])[:, :, None] * second[:, None, :]]
    step, exact = float(grid[1] - grid[0]), 0.0
    for density, cell in ((parts[0], step), (parts[1], step**2)):
        ratio = density / density.mean(0)
        exact += float((torch.xlogy(density, ratio) * cell).sum()) / 3
    assert found == pytest.approx(exact, abs=0.01)


def test_of_identical_sentences_a_code_tells_nothing_and_of_distant_ones_everything():
    same = torch.ones(50, 4, dtype=torch.float64)
    assert mutual_information(0.3 * same, same, same) == pytest.approx(0.0, abs=1e-9)
    distant = same * torch.arange(50)[:, None] * 100
    assert mutual_information(0.0 * same, distant, same) == pytest.approx(np.log(50))


def test_the_scoring_that_keeps_more_neighbours_is_taken():
    vectors = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths = np.random.default_rng(1).uniform(0.1, 10, size=(120, 1))
    codes = sparse.csr_matrix(np.concatenate([lengths * unit, np.zeros((120, 1))], axis=1))
    assert neighbours_kept(vectors, codes, similarity_fn_name="cosine") == 1
    assert neighbours_kept(vectors, codes, similarity_fn_name="dot") < 0.6
    empty = sparse.vstack([codes[:-1], sparse.csr_matrix((1, 6))])
    assert 0.9 < neighbours_kept(vectors, empty, similarity_fn_name="cosine") < 1
    with pytest.raises(ValueError, match="`similarity_fn_name` must be 'cosine' or 'dot', got 'euclidean'; choose"):
        neighbours_kept(vectors, codes, similarity_fn_name="euclidean")

    model = small(latent_size=16)
    torch.nn.init.normal_(model.model.latent_head.gate.weight)
    batches = [{"vectors": part} for part in torch.from_numpy(vectors).split(50)]
    found = fit_similarity(model, batches)
    own = encode_vectors(model, vectors)
    for name, value in found.items():
        assert value == pytest.approx(neighbours_kept(vectors, own, similarity_fn_name=name))
    assert found.keys() == {"cosine", "dot"}
    assert found["cosine"] != found["dot"]
    assert model.config.similarity_fn_name == max(found, key=found.get)
    assert corpus_statistics(model, batches)["neighbours_kept"] == max(found.values())
    model.config.similarity_fn_name = min(found, key=found.get)
    assert corpus_statistics(model, batches)["neighbours_kept"] == min(found.values())
    assert fit_similarity(model, batches[:1]) == {}  # 50 rows say nothing
    assert model.config.similarity_fn_name == min(found, key=found.get)


def test_words_have_no_neighbours_to_choose_by(small_config):
    with pytest.raises(ValueError, match="got one of words, which keeps the cosine"):
        fit_similarity(HSVAEForPreTraining(small_config), [])
