"""The script that encodes a file: its formats, what it refuses, its memory."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse
from vector_models import ROOT, script, small

from hsvae_hf import load_codes
from hsvae_hf.encoding import encode, encode_vectors
from hsvae_hf.loading import load_for_inference

SCRIPT = ROOT / "scripts/embed.py"
SENTENCES = ["a small village in iran", "", "naïve café 🙂 Ωμέγα 北京", 'he said " so , what "', "line\u2028separator"]


@pytest.fixture
def embed(saved_model, tmp_path, monkeypatch):
    """Run the script in an empty folder on a file of this name and these bytes, with further options."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def embed(name, content, output="codes.npz", *options):
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        script("embed", "--model_name_or_path", saved_model, "--input", name, "--output", output, *options)

    return embed


def read(path):
    if path.suffix == ".npz":
        return sparse.load_npz(path)
    rows = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else map(json.loads, path.open())
    codes = np.zeros((len(SENTENCES), 6), dtype=np.float32)
    for code, row in zip(codes, rows, strict=True):
        code[row["indices"]] = row["values"]
    return sparse.csr_matrix(codes)


def test_active_dims_are_exact(embed, saved_model):
    embed("in.txt", "\n".join(SENTENCES), "codes.npz", "--active_dims", 3)
    expected = encode(*load_for_inference(saved_model), SENTENCES, active_dims=3)
    assert (read(Path("codes.npz")) != expected).nnz == 0
    assert (expected.getnnz(axis=1) == 3).all()


@pytest.mark.parametrize("output", ["codes.npz", "codes.parquet", "codes.jsonl"])
def test_every_output_holds_what_encode_gives(embed, saved_model, output):
    embed("in.txt", "\n".join([*SENTENCES, ""]), output, "--max_active_dims", 3)
    expected = encode(*load_for_inference(saved_model), SENTENCES, max_active_dims=3)
    codes = read(Path(output))
    assert expected.nnz > 0
    assert codes.dtype == np.float32
    assert (codes != expected).nnz == 0
    assert {path.name for path in Path().iterdir()} == {output, "in.txt"}
    if output.endswith("parquet"):
        assert pq.read_schema(output).types == [pa.list_(pa.int32()), pa.list_(pa.float32())]


def test_the_column_of_the_sentences_may_be_named(embed, saved_model):
    rows = "".join(json.dumps({"id": "1", "body": sentence}) + "\n" for sentence in SENTENCES)
    embed("in.jsonl", rows, "codes.npz", "--text_column", "body")
    assert (sparse.load_npz("codes.npz") != encode(*load_for_inference(saved_model), SENTENCES)).nnz == 0


def test_an_output_is_replaced_only_with_overwrite_and_the_input_never(embed):
    Path("codes.npz").write_text("precious")
    with pytest.raises(ValueError, match="--overwrite"):
        embed("in.txt", "one\ntwo\n")
    assert Path("codes.npz").read_text() == "precious"
    embed("in.txt", "one\ntwo\n", "codes.npz", "--overwrite")
    assert sparse.load_npz("codes.npz").shape == (2, 6)
    with pytest.raises(ValueError, match="must not be part of what is read"):
        embed("in.jsonl", '{"text": "a"}', "in.jsonl", "--overwrite")
    assert Path("in.jsonl").read_text() == '{"text": "a"}'


@pytest.mark.parametrize(
    ("name", "content", "output", "words"),
    [
        ("in.txt", b"", "codes.npz", "got the empty file in.txt"),
        ("in.csv", b"a,b\n1,2\n", "codes.npz", "`text_column` must name a column of strings of 'in.csv', got None"),
        ("in.txt", b"fine\nand\ncaf\xe9\n", "codes.npz", "0xe9 in line 3, byte offset 12; convert the file"),
        (
            "in.doc",
            b"a\n",
            "codes.npz",
            "`input` must be a .txt, .csv, .* .npy, .arrow file, or a folder, got 'in.doc'",
        ),
        ("in.txt", b"a\n", "codes.bin", "`output` must end in .npz or .parquet or .jsonl"),
    ],
)
def test_bad_files_are_refused_and_leave_nothing(embed, name, content, output, words):
    with pytest.raises(ValueError, match=words):
        embed(name, content, output)
    assert [path.name for path in Path().iterdir()] == [name]


def test_vectors_of_a_file_are_encoded_as_they_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small()
    model.save_pretrained("model")
    vectors = np.random.default_rng(0).normal(size=(9000, 5)).astype(np.float32)
    np.save("in.npy", vectors)
    script("embed", "--model_name_or_path", "model", "--input", "in.npy", "--output", "codes.npz")
    expected = encode_vectors(load_for_inference("model")[0], vectors)
    assert (sparse.load_npz("codes.npz") != expected).nnz == 0


def test_a_name_without_a_suffix_is_a_folder_of_shards(embed, saved_model, capsys):
    embed("in.txt", "\n".join(SENTENCES), "codes", "--shard_rows", 2, "--max_active_dims", 3)
    expected = encode(*load_for_inference(saved_model), SENTENCES, max_active_dims=3)
    assert (abs(load_codes("codes")[:] - expected) > 1e-5).nnz == 0
    assert "rows 5, numbers per row 6, shards 3" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`overwrite` must be left out for a folder"):
        embed("in.txt", "a\n", "codes", "--overwrite")
    with pytest.raises(ValueError, match="`num_processes` must be left out for a file, got the output 'codes.npz'"):
        embed("in.txt", "a\n", "codes.npz", "--num_processes", 2)
