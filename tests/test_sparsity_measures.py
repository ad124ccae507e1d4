"""Counts and Average Hoyer of codes against naive definitions."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy import sparse

from hsvae_hf import sparsity_measures
from hsvae_hf.sparsity_measures import CHUNK_VALUES, AverageHoyer, CodeStatistics, Moments, dense_chunks, hoyer

ACCUMULATORS = [CodeStatistics, AverageHoyer]


def sparse_codes(rows=300, width=24, seed=0):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.1, 30, width)
    codes = rng.normal(0.3, 1, (rows, width)) * scale * (rng.random((rows, width)) < 0.3)
    codes[:4] = 0
    codes[:, 5] = 0  # never used
    codes[:, 7] = 0.1  # a constant that binary floating point cannot hold
    return codes.astype(np.float32)


def computed(accumulator, *batch, **options):
    accumulator.update(*batch)
    return accumulator.compute(**options)


def naive_average_hoyer(codes, normalize):
    codes = codes.astype(np.float64)
    if normalize:
        std = np.array([0.0 if len(set(column)) == 1 else column.std() for column in codes.T])
        codes = codes / np.where(std == 0, 1, std)
    values = []
    for row in codes:
        if any(row):
            root = len(row) ** 0.5
            values.append((root - sum(abs(row)) / sum(row**2) ** 0.5) / (root - 1))
    return float(np.mean(values))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_average_hoyer_equals_its_definition(normalize, constant):
    codes = sparse_codes()
    if not constant:
        codes[:4, 7] = 0  # rows of zeros
    assert computed(AverageHoyer(), codes, normalize=normalize) == {
        "average_hoyer": pytest.approx(naive_average_hoyer(codes, normalize), rel=1e-12),
        "empty_rows": pytest.approx((~codes.any(axis=1)).mean()),
        "constant_dims": (1 + constant) * normalize,
    }


@pytest.mark.parametrize(
    ("prior", "at_32", "at_768"),
    [
        (None, 0.24, 0.21),
        ((1, 4), 0.33, 0.29),
        ((30, 30), 0.48, 0.42),
        ((30, 10), 0.63, 0.56),
        ((4, 1), 0.67, 0.59),
        ((10, 1), 0.66, 0.67),
    ],
)
def test_average_hoyer_of_prior_samples(prior, at_32, at_768):
    rng = np.random.default_rng(0)
    for width, expected in ((32, at_32), (768, at_768)):
        shape = (2000, width)
        gamma = np.zeros(shape) if prior is None else rng.beta(*prior, shape)
        samples = rng.normal(size=shape) * np.where(rng.random(shape) < gamma, 0.05, 1.0)
        assert computed(AverageHoyer(), samples)["average_hoyer"] == pytest.approx(expected, abs=0.02)


def test_hoyer_extremes_and_scale():
    codes = np.array([[0.0, -5.0, 0.0], [2.0, -2.0, 2.0], [0.0, 0.0, 0.0]])
    for scale in (1e-200, 1.0, 1e200):  # the squares of the outer ones leave float64
        np.testing.assert_allclose(hoyer(codes * scale), [1, 0, np.nan], atol=1e-12)
    result = computed(AverageHoyer(), np.zeros((3, 4)))
    assert np.isnan(result["average_hoyer"])
    assert (result["empty_rows"], result["constant_dims"]) == (1, 4)
    with pytest.raises(ValueError, match="`codes` must have at least 2 dimensions, got 1"):
        computed(AverageHoyer(), np.ones((2, 1)))


def test_moments_survive_an_offset_and_an_outlier_and_know_constants():
    rng = np.random.default_rng(0)
    rows = np.stack([rng.normal(1e8, 1.0, 1000), rng.normal(size=1000), np.full(1000, 0.1)], axis=1)
    rows[0, 1] = 1e6
    moments = Moments()
    for part in np.split(rows, 10):
        moments.update(part)
    np.testing.assert_allclose(moments.std[:2], rows[:, :2].std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-12)
    assert moments.std[2] == 0


def test_counts_equal_their_definition():
    codes = np.array([[0, 3, 0, 0], [0, 1e-30, 0, -1], [0, 0, 0, 0], [0, 2, 0, 0]])
    expected = {"active_dims": 1.0, "min_active_dims": 0, "max_active_dims": 2, "sparsity_ratio": 0.75}
    expected |= {"ever_active_ratio": 0.5, "empty_rows": 0.25, "dead_dims": 2, "always_on_dims": 0}
    expected["switching_fraction"] = 0.5  # on for three rows of four, and for one
    assert computed(CodeStatistics(), codes) == expected
    assert computed(CodeStatistics(), np.ones((3, 2)))["always_on_dims"] == 2


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_gate_statistics_equal_their_definition(convert):
    gates = np.random.default_rng(0).beta(2, 1, (500, 30)) ** np.linspace(0.01, 20, 30)
    gates[:, 3] = 0.3
    codes = np.where(gates < 0.5, 1.0, 0.0)
    statistics = CodeStatistics()
    for start in range(0, 500, 37):
        statistics.update(convert(codes[start : start + 37]), convert(gates[start : start + 37]))
    result, share = statistics.compute(), (gates < 0.5).mean(axis=0)
    assert statistics.rows == 500
    assert result["gate_std"] == pytest.approx(gates.std(axis=0).mean(), rel=1e-9)
    assert result["switching_fraction"] == np.mean([0.05 <= one <= 0.95 for one in share])
    assert 0 < result["switching_fraction"] < 1
    assert result["active_dims"] == pytest.approx((gates < 0.5).sum(axis=1).mean())
    gates = np.tile(np.linspace(0.1, 0.9, 7), (1000, 1))  # they ignore the input
    result = computed(CodeStatistics(), gates < 0.5, gates)
    assert (result["gate_std"], result["switching_fraction"]) == (0, 0)


@pytest.mark.parametrize("accumulator_class", ACCUMULATORS)
@pytest.mark.parametrize("file_bytes", [0, 2**22])
@pytest.mark.parametrize(
    "convert",
    [
        np.asfortranarray,
        lambda codes: torch.tensor(codes, requires_grad=True),
        lambda codes: torch.tensor(codes).to_sparse(),
        sparse.csr_matrix,
        sparse.coo_array,
        np.ndarray.tolist,
    ],
    ids=["numpy", "torch", "torch-sparse", "csr", "coo", "list"],
)
def test_batches_of_any_kind_equal_one_shot(accumulator_class, convert, file_bytes, monkeypatch):
    codes = sparse_codes()
    expected = computed(accumulator_class(), codes)
    monkeypatch.setattr(
        sparsity_measures, "CHUNK_VALUES", 24 * 7
    )  # so that a batch is cut, and batch and chunk edges differ
    monkeypatch.setattr(sparsity_measures, "FILE_BYTES", file_bytes)
    accumulator = accumulator_class()
    for start in range(0, 300, 29):
        accumulator.update(convert(codes[start : start + 29]))
        accumulator.compute()  # it goes on after a result
    assert accumulator.rows == 300
    assert accumulator.compute() == pytest.approx(expected, rel=1e-12)
    half = torch.tensor(codes).bfloat16()
    assert computed(accumulator_class(), half) == pytest.approx(computed(accumulator_class(), half.float()))


@pytest.mark.parametrize("accumulator_class", ACCUMULATORS)
@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (sparse.csr_matrix([[1.0, np.inf]]), "hold finite numbers"),
        (np.array([[1.0, 1e300]]), "hold finite numbers"),
        ([[1.0, None]], "hold numbers, got object"),
        ([[1.0, 2.0], [1.0]], "be a .* rows of different lengths"),
        ([1.0, 2.0], r"be a .* got shape \(2,\)"),
        (np.zeros((0, 3)), r"be a .* at least one row, got shape \(0, 3\)"),
        (np.ones((2, 4)), "be 2 wide like the batches before, got 4"),
    ],
)
def test_a_bad_batch_is_refused_and_leaves_the_rest_alone(accumulator_class, codes, message):
    accumulator = accumulator_class()
    with pytest.raises(ValueError, match="`codes` must hold at least one row, got none"):
        accumulator.compute()
    accumulator.update([[1.0, 0.0]])
    with pytest.raises(ValueError, match=f"`codes` must {message}"):
        accumulator.update(codes)
    assert accumulator.rows == 1


@pytest.mark.parametrize("value", [float("nan"), 1.5])
def test_gates_must_be_probabilities_of_the_same_shape(value):
    gates, statistics = np.full((3, 2), 0.5), CodeStatistics()
    gates[1, 1] = value
    with pytest.raises(ValueError, match=r"`gate_mean` must hold probabilities in \[0, 1\]"):
        statistics.update(np.ones((3, 2)), gates)
    with pytest.raises(ValueError, match=r"`gate_mean` must have the shape of `codes`, \(3, 2\), got \(2, 2\)"):
        statistics.update(np.ones((3, 2)), gates[:2])
    assert statistics.rows == 0


def peak_memory(accumulator, megabytes):
    """Peak of what Python and numpy allocate while a corpus of that size is added and computed, in MB."""
    batch = np.random.default_rng(0).normal(size=(2000, 500)).astype(np.float32)  # 4 MB
    tracemalloc.start()
    try:
        for _ in range(megabytes // 4):
            accumulator.update(batch)
        accumulator.compute()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("accumulator_class", ACCUMULATORS)
def test_memory_does_not_grow_with_the_corpus(accumulator_class):
    small, large = peak_memory(accumulator_class(), 16), peak_memory(accumulator_class(), 160)
    assert large < 1.1 * small + 1
    assert large < 6 * 8 * CHUNK_VALUES / 1e6


def test_a_large_sparse_batch_is_not_made_dense():
    codes = sparse.random_array((100_000, 768), density=0.001, format="csr", rng=np.random.default_rng(0))  # 614 MB
    tracemalloc.start()
    try:
        assert sum(len(chunk) for chunk in dense_chunks(codes)) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
