import ast
import importlib
import inspect
import tracemalloc
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from scipy import sparse

from hsvae_hf.metrics import metric_path
from hsvae_hf.metrics.active_dims import active_dims as active_dims_module
from hsvae_hf.metrics.average_hoyer import average_hoyer as average_hoyer_module
from hsvae_hf.metrics.average_hoyer.average_hoyer import CHUNK_VALUES, column_std, corpus_hoyer, dense_chunks, hoyer

METRICS = ["active_dims", "average_hoyer"]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`evaluate.load` of a metric of this package, kept off the network."""
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    return lambda name, **kwargs: evaluate.load(metric_path(name), cache_dir=str(tmp_path), **kwargs)


def sparse_codes(rows=300, width=24, seed=0):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.1, 30, width)
    codes = rng.normal(0.3, 1, (rows, width)) * scale * (rng.random((rows, width)) < 0.3)
    codes[:4] = 0
    codes[:, 5] = 0  # never used
    codes[:, 7] = 0.1  # a constant that binary floating point cannot hold
    return codes.astype(np.float32)


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
def test_average_hoyer_equals_its_definition(load, normalize):
    codes = sparse_codes()
    codes[:4, 7] = 0  # rows of zeros, so the constant is one no more
    result = load("average_hoyer").compute(predictions=codes, normalize=normalize)
    assert result["average_hoyer"] == pytest.approx(naive_average_hoyer(codes, normalize), rel=1e-12)
    assert result["empty_rows"] == pytest.approx(4 / 300 + (~codes[4:].any(axis=1)).sum() / 300)
    assert result["constant_dims"] == (1 if normalize else 0)


def test_constant_dimension_is_kept_unscaled(load):
    codes = sparse_codes()
    result = load("average_hoyer").compute(predictions=codes)
    assert result == {
        "average_hoyer": pytest.approx(naive_average_hoyer(codes, True), rel=1e-12),
        "empty_rows": 0,
        "constant_dims": 2,
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
        assert corpus_hoyer([samples])["average_hoyer"] == pytest.approx(expected, abs=0.02)


def test_hoyer_extremes_and_scale():
    codes = np.array([[0.0, -5.0, 0.0], [2.0, -2.0, 2.0], [0.0, 0.0, 0.0]])
    for scale in (1e-200, 1.0, 1e200):  # the squares of the outer ones leave float64
        np.testing.assert_allclose(hoyer(codes * scale), [1, 0, np.nan], atol=1e-12)


def test_column_std_survives_a_large_offset():
    codes = np.random.default_rng(0).normal(1e8, 1.0, (1000, 3))
    np.testing.assert_allclose(column_std(np.split(codes, 10)), codes.std(axis=0), rtol=1e-12)


def test_column_std_of_a_constant_is_exactly_zero():
    assert (column_std([np.full((333, 2), 0.1), np.full((77, 2), 0.1)]) == 0).all()


def test_corpus_hoyer_refuses_a_generator():
    with pytest.raises(ValueError, match="`chunks` must be readable twice"):
        corpus_hoyer(chunk for chunk in [np.ones((2, 2))])


def test_active_dims_counts(load):
    codes = [[0, 3, 0, 0], [0, 1e-30, 0, -1], [0, 0, 0, 0], [0, 2, 0, 0]]
    assert load("active_dims").compute(predictions=codes) == {
        "active_dims": 1.0,
        "min_active_dims": 0,
        "max_active_dims": 2,
        "sparsity_ratio": 0.75,
        "ever_active_ratio": 0.5,
        "empty_rows": 0.25,
    }


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    "convert",
    [
        np.asarray,
        torch.tensor,
        lambda codes: torch.tensor(codes, requires_grad=True),
        lambda codes: torch.tensor(codes).to_sparse(),
        sparse.csr_matrix,
        sparse.coo_array,
        np.ndarray.tolist,
        np.asfortranarray,
    ],
    ids=["numpy", "torch", "torch-grad", "torch-sparse", "csr", "coo", "list", "fortran"],
)
def test_batches_of_any_kind_equal_one_shot(load, name, convert, in_memory, monkeypatch):
    codes = sparse_codes()
    expected = load(name).compute(predictions=codes)
    metric = load(name, keep_in_memory=in_memory)
    module = importlib.import_module(type(metric).__module__)
    monkeypatch.setattr(module, "CHUNK_VALUES", 24 * 7)  # so that a batch is cut, and batch and chunk edges differ
    for start in range(0, 290, 29):
        metric.add_batch(predictions=convert(codes[start : start + 29]))
    for row in codes[290:]:
        metric.add(prediction=row)
    assert len(metric) == 300
    assert metric.compute() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_bfloat16_is_read(load, name):
    codes = torch.tensor(sparse_codes()).bfloat16()
    metric = load(name)
    assert metric.compute(predictions=codes) == load(name).compute(predictions=codes.float())


def test_metric_starts_afresh_after_compute(load, tmp_path):
    metric = load("active_dims")
    metric.compute(predictions=np.ones((5, 3)))
    assert metric.compute(predictions=np.ones((2, 8)))["active_dims"] == 8
    assert not list(tmp_path.rglob("*.arrow"))


def test_combines_with_other_metrics(load):
    both = evaluate.combine([load(name) for name in METRICS])
    codes = sparse_codes()
    both.add_batch(predictions=codes[:150])
    both.add_batch(predictions=codes[150:])
    result = both.compute()
    assert result["average_hoyer"] == pytest.approx(naive_average_hoyer(codes, True))
    assert result["active_dims"] == pytest.approx((codes != 0).sum() / 300)


def test_empty_codes_give_nan_and_say_so(load):
    result = load("average_hoyer").compute(predictions=np.zeros((3, 4)))
    assert np.isnan(result["average_hoyer"])
    assert result["empty_rows"] == 1
    assert result["constant_dims"] == 4


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[1.0, float("nan")]], "`predictions` must hold finite numbers"),
        (sparse.csr_matrix([[1.0, np.inf]]), "`predictions` must hold finite numbers"),
        (np.array([[1.0, 1e300]]), "`predictions` must hold finite numbers"),
        ([[1.0, None]], "`predictions` must hold numbers, got object"),
        ([[1.0, 2.0], [1.0]], "`predictions` must be a .* rows of different lengths"),
        ([1.0, 2.0], r"`predictions` must be a .* got shape \(2,\)"),
        (np.zeros((0, 3)), r"at least one row, got shape \(0, 3\)"),
        ([], r"at least one row, got shape \(0,\)"),
    ],
    ids=["nan", "inf", "overflow", "none", "ragged", "vector", "no-rows", "empty-list"],
)
def test_bad_batch_is_refused_and_leaves_the_rest_alone(load, name, codes, message):
    metric = load(name)
    metric.add_batch(predictions=[[1.0, 0.0]])
    with pytest.raises(ValueError, match=message):
        metric.add_batch(predictions=codes)
    assert len(metric) == 1


@pytest.mark.parametrize("name", METRICS)
def test_width_must_stay_the_same(load, name):
    metric = load(name)
    metric.add_batch(predictions=np.ones((2, 5)))
    with pytest.raises(ValueError, match="`predictions` must be 5 wide like the batches before, got 4"):
        metric.add_batch(predictions=np.ones((2, 4)))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("in_memory", [False, True])
def test_nothing_added(load, name, in_memory):
    with pytest.raises(ValueError, match="`predictions` must hold at least one row, got none"):
        load(name, keep_in_memory=in_memory).compute()


def test_hoyer_of_one_dimension_is_refused(load):
    with pytest.raises(ValueError, match="`predictions` must have at least 2 dimensions, got 1"):
        load("average_hoyer").compute(predictions=[[1.0], [2.0]])


def peak_memory(metric, megabytes):
    """Peak of what Python and numpy allocate while a corpus of that size is added and computed, in MB.

    The pages of the memory-mapped file are not counted: the system takes them back when it needs them.
    """
    batch = np.random.default_rng(0).normal(size=(2000, 500)).astype(np.float32)  # 4 MB
    tracemalloc.start()
    try:
        for _ in range(megabytes // 4):
            metric.add_batch(predictions=batch)
        metric.compute()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", METRICS)
def test_memory_does_not_grow_with_the_corpus(load, name):
    small, large = peak_memory(load(name), 16), peak_memory(load(name), 160)
    assert large < 1.1 * small + 1
    assert large < 6 * 8 * CHUNK_VALUES / 1e6


@pytest.mark.slow
def test_a_large_corpus_fits_in_little_memory(load):
    assert peak_memory(load("average_hoyer"), 2000) < 50


def test_a_large_sparse_batch_is_not_made_dense():
    codes = sparse.random_array((100_000, 768), density=0.001, format="csr", rng=np.random.default_rng(0))  # 614 MB
    tracemalloc.start()
    try:
        assert sum(len(chunk) for chunk in dense_chunks(codes)) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_metrics_stand_alone_and_share_what_they_share():
    for name in METRICS:
        tree = ast.parse((Path(metric_path(name)) / f"{name}.py").read_text())
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert {module.split(".")[0] for module in modules} == {
            "collections",
            "datasets",
            "evaluate",
            "numpy",
            "pyarrow",
        }
    for shared in ("dense_chunks", "StoredRows"):
        assert inspect.getsource(getattr(active_dims_module, shared)) == inspect.getsource(
            getattr(average_hoyer_module, shared)
        )


def test_metric_path_knows_its_names():
    with pytest.raises(ValueError, match="`name` must be one of"):
        metric_path("hoyer")
