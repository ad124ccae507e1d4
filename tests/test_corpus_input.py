"""Input of a corpus: which files of a folder are read, of which kinds, and how what is wrong with one is named."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vector_models import small

from hsvae_hf import encode_corpus
from hsvae_hf.corpus_input import corpus_input
from hsvae_hf.ray_corpora import ParquetRows
from hsvae_hf.vector_files import open_vectors

ROWS = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
OFFSETS = pa.py_buffer(np.array([0, 1], np.int32))
BAD_UTF8 = pa.Array.from_buffers(pa.string(), 1, [None, OFFSETS, pa.py_buffer(b"\xff")])


def arrow(path, table, stream=False):
    kind = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, kind(file, table.schema) as writer:
        for batch in table.to_batches():
            writer.write_batch(batch)
        writer.write_batch(pa.RecordBatch.from_pylist([], table.schema))


def read(places):
    return np.concatenate(list(corpus_input(places).blocks(7)))


@pytest.mark.parametrize("name", ["in.arrow", "in.stream.arrow", "in.parquet"])
@pytest.mark.parametrize("kind", [pa.list_(pa.float16()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 5)])
@pytest.mark.parametrize("column", ["vectors", "embedding"])
def test_vectors_of_every_kind_of_column_are_read(name, kind, column, tmp_path):
    rows = ROWS.astype(np.float16).astype(np.float32)
    values = pa.array(rows.astype(kind.value_type.to_pandas_dtype()).tolist(), kind)
    table = pa.table({"id": range(20), column: values})
    if name.endswith("parquet"):
        pq.write_table(table, tmp_path / name, row_group_size=3)
        assert (ParquetRows(tmp_path / name, None).read(2, 9) == rows[2:9]).all()
    else:
        arrow(tmp_path / name, table, "stream" in name)
    np.testing.assert_array_equal(read(tmp_path / name), rows)


def test_text_stays_text_beside_an_embedding(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "embedding": [[1.0]]}), tmp_path / "in.parquet")
    assert next(corpus_input(tmp_path).blocks(2)) == ["a"]
    assert ParquetRows(tmp_path, None).read(0, 1) == ["a"]


@pytest.mark.parametrize("name", ["corpora", "training"])
def test_files_in_folders_and_of_any_case_are_read(name, tmp_path):
    (tmp_path / "b").mkdir()
    for file, part in (("a.npy", ROWS[:3]), ("b/x.NPY", ROWS[3:9]), ("c.npy", ROWS[9:])):
        with (tmp_path / file).open("wb") as opened:
            np.save(opened, part)
    (tmp_path / ".d.npy").write_bytes(b"not read")
    np.testing.assert_array_equal(READERS[name](tmp_path), ROWS)


def test_files_without_rows_add_none(tmp_path):
    for number, rows in enumerate((ROWS[:0], ROWS, ROWS[:0])):
        np.save(tmp_path / f"{number}.npy", rows)
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 5)
        arrow(tmp_path / f"{number}.arrow", pa.table({"vectors": column}))
    np.testing.assert_array_equal(read(tmp_path), np.concatenate([ROWS, ROWS]))
    np.testing.assert_array_equal(open_vectors(tmp_path).read_all(), np.concatenate([ROWS, ROWS]))
    with pytest.raises(ValueError, match=r"`vectors` must hold finite numbers, .*0.npy': it has the shape \(0, 5\)"):
        open_vectors(tmp_path / "0.npy")
    (tmp_path / "text").mkdir()
    for name, text in (("a", ""), ("b", "one\n"), ("c", "")):
        (tmp_path / "text" / f"{name}.txt").write_text(text)
    assert list(corpus_input(tmp_path / "text").blocks(9)) == [["one"]]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            np.where(np.arange(20)[:, None] == 7, np.nan, ROWS),
            "finite numbers, got NaN or infinity in row 7 of .*2",
        ),
        (ROWS.astype(np.float64) * 1e300, "finite numbers, got NaN or infinity in row 0 of .*2.npy"),
        (ROWS[:, :4], "vectors of one size, got 4 numbers in a row of .*2.npy' after files with 5"),
    ],
)
def test_the_file_among_many_whose_vectors_are_wrong_is_named(rows, words, tmp_path):
    small().save_pretrained(tmp_path / "model")
    (tmp_path / "in").mkdir()
    for number in range(5):
        np.save(tmp_path / f"in/{number}.npy", rows if number == 2 else ROWS)
    with pytest.raises(ValueError, match=f"^`input` must (hold|be) {words}"):
        encode_corpus(tmp_path / "model", tmp_path / "in", tmp_path / "out", shard_rows=6)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ({"text": BAD_UTF8}, "`.*b.parquet` must be an intact .parquet file.*codec can't decode"),
        ({"body": ["a"]}, "`text` must hold a string in every row, got no such column in row 1 of .*b.parquet"),
        ({"text": [1]}, "`text` must hold a string in every row, got int '1' in row 1 of .*b.parquet"),
    ],
)
def test_the_file_among_many_whose_text_is_wrong_is_named(column, words, tmp_path):
    pq.write_table(pa.table({"text": ["one"] * 3}), tmp_path / "a.parquet")
    pq.write_table(pa.table(column), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=words):
        list(corpus_input(tmp_path).blocks(2))
    with pytest.raises(ValueError, match=r"`input` must .* got .*b.parquet"):
        ParquetRows(tmp_path, None).read(0, 4)


def test_links_are_followed_and_broken_ones_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/x.txt").write_text("one\n")
    (tmp_path / "in/b").symlink_to(tmp_path / "other")
    (tmp_path / "in/c.txt").symlink_to(tmp_path / "other/x.txt")
    assert corpus_input(tmp_path / "in").names == ("b/x.txt", "c.txt")
    (tmp_path / "other/up").symlink_to(tmp_path / "in")
    with pytest.raises(ValueError, match="`input` must be a folder without links to what it is in"):
        corpus_input(tmp_path / "in")
    (tmp_path / "other/up").unlink()
    (tmp_path / "other/x.txt").unlink()
    with pytest.raises(ValueError, match="`input` must be files that are there, got the link .*c.txt'"):
        corpus_input(tmp_path / "in")


@pytest.fixture
def shards(encoder, tmp_path):
    """A folder of five shards of vectors."""
    (tmp_path / "in.txt").write_text("".join(f"{word} and a dog\n" for word in ("the", "cat", "one", "two", "paris")))
    encode_corpus(encoder, tmp_path / "in.txt", tmp_path / "v", content="vectors", shard_rows=1, format="parquet")
    return tmp_path / "v"


def rewritten(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


READERS = {
    "corpora": read,
    "ray": lambda folder: ParquetRows(folder, None).read(0, 9),
    "training": lambda folder: open_vectors(folder).read_all(),
}


@pytest.mark.parametrize("name", READERS)
def test_of_a_folder_of_vectors_exactly_the_shards_of_its_manifest_are_read(name, shards):
    expected = READERS[name](shards)
    assert expected.shape == (5, 16)
    (shards / "part-00007.parquet").write_bytes((shards / "part-00000.parquet").read_bytes())  # of a process killed
    np.testing.assert_array_equal(READERS[name](shards), expected)
    (shards / "part-00002.parquet").rename(shards / "away")
    with pytest.raises(ValueError, match="where part-00002.parquet is missing or was changed"):
        READERS[name](shards)
    rewritten(shards, lambda manifest: (manifest.update(complete=False), manifest["shards"].pop(2)))
    with pytest.raises(ValueError, match="must be complete, got .* with 4 shards, unfinished; finish it"):
        READERS[name](shards)
    rewritten(shards, lambda manifest: manifest.update(content="codes"))
    with pytest.raises(ValueError, match="must hold vectors, got .* with codes"):
        READERS[name](shards)
