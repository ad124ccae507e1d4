"""The script that encodes a file: its formats, what it refuses, its memory."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse
from vector_models import ROOT, script, small, vector_model

from hsvae_hf import load_codes
from hsvae_hf.encoding import encode, encode_vectors
from hsvae_hf.loading import load_for_inference

SCRIPT = ROOT / "scripts/embed.py"
TEXTS = ["the cat sees a dog", "one", "", "paris has a river", "two times five"]
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


@pytest.mark.parametrize("output", ["codes.npz", "codes"])
def test_a_log_gets_a_line_now_and_then(output, embed, capsys, monkeypatch):
    embed(
        "in.txt", "\n".join(SENTENCES), output, "--batch_size", 2, *(["--shard_rows", 2] if output == "codes" else [])
    )
    assert "rows per second" not in capsys.readouterr().out  # it took no half a minute
    monkeypatch.setattr("hsvae_hf.console.LINE_SECONDS", 0)
    embed("in.txt", "\n".join(SENTENCES), f"more{output}", *(["--shard_rows", 2] if output == "codes" else []))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("encode: ")]
    assert all(re.fullmatch(r"encode: \d rows, [\d.,]+ rows per second", line) for line in lines)
    assert [int(line.split()[1]) for line in lines] == ([2, 4, 5] if output == "codes" else [5])


def test_a_name_without_a_suffix_is_a_folder_of_shards(embed, saved_model, capsys):
    embed("in.txt", "\n".join(SENTENCES), "codes", "--shard_rows", 2, "--max_active_dims", 3)
    expected = encode(*load_for_inference(saved_model), SENTENCES, max_active_dims=3)
    assert (abs(load_codes("codes")[:] - expected) > 1e-5).nnz == 0
    assert "rows 5, numbers per row 6, shards 3" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`overwrite` must be left out for a folder"):
        embed("in.txt", "a\n", "codes", "--overwrite")
    with pytest.raises(ValueError, match="`num_processes` must be left out for a file, got the output 'codes.npz'"):
        embed("in.txt", "a\n", "codes.npz", "--num_processes", 2)


@pytest.fixture
def coder(encoder, tmp_path):
    """Folder of a model of that encoder's vectors, and the same model with the encoder."""
    whole = vector_model(encoder).base_model
    whole.without_encoder().save_pretrained(tmp_path / "coder")
    return tmp_path / "coder", whole


def test_text_becomes_codes_of_an_encoders_vectors_in_one_step(coder, encoder, tokenizer, tmp_path):
    folder, whole = coder
    (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in TEXTS))
    words = ["embed", "--model_name_or_path", folder, "--encoder_name_or_path", encoder]
    words += ["--input", tmp_path / "in.txt", "--active_dims", 2]
    script(*words, "--output", tmp_path / "codes.npz")
    script(*words, "--output", tmp_path / "codes", "--shard_rows", 2, "--num_processes", 2)
    expected = encode(whole, tokenizer, TEXTS, active_dims=2)
    assert expected.nnz == 2 * len(TEXTS)
    for found in (sparse.load_npz(tmp_path / "codes.npz"), load_codes(tmp_path / "codes")[:]):
        assert (abs(found - expected) > 1e-5).nnz == 0
    encoder.rename(tmp_path / "moved")  # is the same encoder
    words[words.index(encoder)] = tmp_path / "moved"
    script(*words, "--output", tmp_path / "codes", "--shard_rows", 2, "--resume")


def test_an_encoder_is_asked_for_and_refused_where_there_is_nothing_for_it(
    coder, encoder, saved_model, tmp_path, refused
):
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    np.save(tmp_path / "in.npy", np.ones((2, 16)))
    behind, text = ["--encoder_name_or_path", encoder], ["--input", tmp_path / "in.txt"]
    for output in ("codes.npz", "codes"):
        words = ["embed", "--output", tmp_path / output, "--model_name_or_path"]
        assert "name the encoder that the model was trained for as `encoder_name_or_path`" in refused(
            *words, coder[0], *text
        )
        found = refused(*words, coder[0], *behind, "--input", tmp_path / "in.npy")
        assert "`encoder_name_or_path` must be left out where `input` is vectors" in found
        found = refused(*words, saved_model, *behind, *text)
        assert "`encoder_name_or_path` must be left out for a model with an encoder of its own" in found
    found = refused(*words, encoder, *behind, *text, "--vectors")
    assert "`encoder_name_or_path` must be left out for vectors" in found
    assert not (tmp_path / "codes").exists()
