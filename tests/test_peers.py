"""The peers' one interface, what needs no training, and their tuning."""

import json

import numpy as np
import peers
import pytest
from peer_coders import Scaler
from peers import NAMES, Validation, train_peer
from scipy import sparse
from vector_models import script


@pytest.fixture
def vectors():
    generator = np.random.default_rng(0)
    return (generator.normal(size=(96, 6)) @ generator.normal(size=(6, 10)) + 3).astype(np.float32)


@pytest.mark.parametrize("name", [*NAMES, "HSVAE"])
def test_every_peer_encodes_and_decodes(name, vectors):
    peer = train_peer(name, vectors, 16, 3, seed=1, steps=3, batch_size=32)
    codes = peer.encode(vectors[:7])
    width = {"PCA": 3, "PCA-largest": 10, "Signs": 48}.get(name, 16)
    assert codes.shape == (7, width) and codes.dtype == np.float32
    assert isinstance(codes, sparse.csr_matrix)
    assert (codes.data != 0).all() and np.isfinite(codes.data).all()
    if name in ("TopK", "CSR", "CSRv2", "PCA", "PCA-largest", "VSC", "SDLGM"):
        assert codes.getnnz(axis=1).max() <= 3
    made = peer.decode(codes)
    assert made.shape == (7, 10) and made.dtype == np.float32
    assert np.abs(made - vectors[:7]).mean() < 3  # the mean of the vectors, 3, is put back
    assert peer.seconds > 0 and peer.name == name
    again = train_peer(name, vectors, 16, 3, seed=1, steps=3, batch_size=32)
    np.testing.assert_array_equal(again.encode(vectors).toarray(), peer.encode(vectors).toarray())
    if name == "Signs":
        with pytest.raises(ValueError, match="`active_dims` must be left out for signs"):
            peer.encode(vectors, active_dims=2)
    else:
        assert peer.encode(vectors, active_dims=2).getnnz(axis=1).max() <= 2


@pytest.mark.parametrize("inputs", ["raw", "centred", "standardised"])
def test_units_of_training(inputs, vectors):
    vectors = vectors * np.arange(1, 11, dtype=np.float32)
    vectors[:, 4] = 7.0  # never varies
    scaler = Scaler(vectors, inputs)
    scaled = scaler.forward(vectors).numpy()
    np.testing.assert_allclose(scaler.back(scaled), vectors, rtol=1e-4)
    if inputs == "raw":
        np.testing.assert_array_equal(scaled, vectors)
        return
    np.testing.assert_allclose(scaled.mean(0), np.zeros(10), atol=1e-4)
    others = np.delete(scaled, 4, axis=1)
    if inputs == "standardised":
        np.testing.assert_allclose(others.std(0), np.ones(9), rtol=1e-3)
    else:
        assert np.square(scaled).mean() == pytest.approx(1, rel=1e-3)
        ratio = others.std(0) / np.delete(vectors, 4, axis=1).std(0)
        np.testing.assert_allclose(ratio, np.full(9, ratio[0]), rtol=1e-3)  # one number for all


@pytest.mark.parametrize("whiten", [False, True])
def test_principal_components(whiten, vectors):
    centred = vectors - vectors.mean(0)
    _, singular, components = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    scale = singular / np.sqrt(len(vectors) - 1) if whiten else np.ones(10)
    coordinates = (centred @ components.T)[:, :6] / scale[:6]  # the vectors have 6 dimensions
    largest = train_peer("PCA-largest", vectors, 6, 3, seed=0, steps=1, whiten=whiten)
    codes = largest.encode(vectors).toarray()
    least = np.sort(np.abs(coordinates), axis=1)[:, -3, None]
    expected = np.where(np.abs(coordinates) >= least, coordinates, 0)
    np.testing.assert_allclose(np.abs(codes), np.abs(expected), atol=1e-3)
    np.testing.assert_allclose(largest.decode(largest.encode(vectors, active_dims=6)), vectors, atol=1e-3)
    first = train_peer("PCA", vectors, 6, 3, seed=0, steps=1, whiten=whiten)
    np.testing.assert_allclose(np.abs(first.encode(vectors).toarray()), np.abs(coordinates[:, :3]), atol=1e-3)
    projected = vectors.mean(0) + centred @ components[:3].T @ components[:3]
    np.testing.assert_allclose(first.decode(first.encode(vectors)), projected, atol=1e-3)


def test_signs_of_projections(vectors):
    peer = train_peer("Signs", vectors, 16, 2, seed=0, steps=1)
    projections = peer.coder.projections
    assert projections.shape == (32, 10)
    for block in (projections[:10], projections[10:20], projections[20:30]):
        np.testing.assert_allclose(block @ block.T, np.eye(10), atol=1e-5)
    codes = peer.encode(vectors).toarray()
    assert set(codes.ravel()) == {-1.0, 1.0}
    np.testing.assert_array_equal(codes == 1, (vectors - vectors.mean(0)) @ projections.T >= 0)
    error = np.square(peer.decode(peer.encode(vectors)) - vectors).sum()
    for scale in (0.99, 1.01):  # the scale has the least error
        other = vectors.mean(0) + scale * (peer.decode(peer.encode(vectors)) - vectors.mean(0))
        assert np.square(other - vectors).sum() > error


def test_neighbours_kept(vectors):
    count = 4
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    peer = train_peer("TopK", vectors, 16, 3, seed=1, steps=30, batch_size=32)
    codes, made = peer.encode(vectors).toarray(), peer.decode(peer.encode(vectors))

    def nearest(queries, documents):
        cosines = queries @ (documents / np.linalg.norm(documents, axis=1, keepdims=True)).T
        return [
            set(sorted((j for j in range(len(row)) if j != i), key=lambda j: -row[j])[:count])
            for i, row in enumerate(cosines)
        ]

    wanted = nearest(unit, vectors)
    measures = Validation(vectors, count).measure(peer)
    for name, found in (
        ("symmetric", nearest(codes / np.linalg.norm(codes, axis=1, keepdims=True), codes)),
        ("dense_query", nearest(unit, made)),
    ):
        shared = np.mean([len(first & second) for first, second in zip(wanted, found, strict=True)]) / count
        assert measures[name] == pytest.approx(shared)
    assert measures["active_dims"] == np.count_nonzero(codes) / len(codes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "TopQ"}, "`name` must be one of .*did you mean TopK"),
        ({"active_dims": 17}, r"`active_dims` must be from 1 to `width` \(16\), got 17"),
        ({"steps": 0}, "`steps` and `batch_size` must be at least 1, got 0 and 32"),
        ({"vectors": np.full((4, 3), np.nan)}, r"`vectors` must be finite numbers, \(rows, size\), got shape \(4, 3\)"),
        ({"vectors": np.ones(4)}, r"`vectors` must be finite numbers, \(rows, size\), got shape \(4,\)"),
        ({"inputs": "white"}, "`inputs` must be one of raw, centred, standardised, got 'white'"),
    ],
)
def test_bad_input(changes, message, vectors):
    options = {"name": "TopK", "vectors": vectors, "width": 16, "active_dims": 3, "seed": 1, "steps": 2}
    with pytest.raises(ValueError, match=message):
        train_peer(**(options | {"batch_size": 32} | changes))


def test_defaults_are_among_the_tries():
    assert peers.TRIES.keys() == peers.DEFAULTS.keys() == set(NAMES)
    for name, settings in peers.DEFAULTS.items():
        assert settings in peers.TRIES[name]
        assert len(peers.TRIES[name]) <= 8


def test_tune_writes_every_try_and_the_best(vectors, tmp_path, monkeypatch):
    np.save(tmp_path / "train.npy", vectors)
    np.save(tmp_path / "first.npy", vectors[:30])
    np.save(tmp_path / "second.npy", vectors[30:70])
    tries = [{"learning_rate": 1e-9}, {"learning_rate": 1e-2}, {"learning_rate": 1e-8}]
    monkeypatch.setattr(peers, "TRIES", {"TopK": tries, "PCA": [{}]})
    words = ["tune", "--vectors", tmp_path / "train.npy", "--validation", tmp_path / "first.npy"]
    words += [tmp_path / "second.npy", "--output", tmp_path / "tune.json", "--peers", "topk", "PCA", "--width", 16]
    words += ["--active_dims", 3, "--steps", 60, "--sieve_steps", 20, "--batch_size", 32]
    monkeypatch.setattr("sys.argv", ["peers.py", *map(str, words)])
    peers.main()
    report = json.loads((tmp_path / "tune.json").read_text())
    assert list(report) == ["TopK", "PCA"]
    topk = report["TopK"]
    assert topk["tries"] == 3 and [tried["steps"] for tried in topk["sieve"]] == [20, 20, 20]
    chosen = topk["chosen"]
    assert chosen["steps"] == 60 and chosen["settings"]["learning_rate"] == 1e-2
    kept = [chosen["measures"][name][kind] for name in ("first", "second") for kind in ("symmetric", "dense_query")]
    assert chosen["score"] == pytest.approx(np.mean(kept))
    assert report["PCA"]["chosen"]["steps"] == 60


@pytest.mark.parametrize(
    ("words", "message"),
    [(["tune", "--peers", "Q"], "`peers` must be of CSR, "), (["train"], "`task` must be one of tune, got 'train'")],
)
def test_tune_refuses_what_it_does_not_know(words, message, tmp_path):
    files = ["--vectors", tmp_path / "a.npy", "--validation", tmp_path / "b.npy", "--output", tmp_path / "tune.json"]
    with pytest.raises(ValueError, match=message):
        script("experiments/peers", *words, *files)
    assert not (tmp_path / "tune.json").exists()
