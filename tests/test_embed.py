import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import sparse

from hsvae_hf import HSVAEConfig, HSVAEModel
from hsvae_hf.encoding import encode
from hsvae_hf.loading import load_for_inference
from hsvae_hf.tokenization import train_tokenizer

SCRIPT = Path(__file__).parent.parent / "scripts" / "embed.py"
SENTENCES = ["a small village in iran", "", "naïve café 🙂 Ωμέγα 北京", 'he said " so , what "', "line\u2028separator"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(SENTENCES, vocab_size=100)
    torch.manual_seed(0)
    HSVAEModel(HSVAEConfig(vocab_size=len(tokenizer), embedding_size=8, hidden_size=8, latent_size=64)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("embed", SCRIPT)
    module = sys.modules["embed"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def embed(script, checkpoint, tmp_path, monkeypatch):
    """Run the script in `tmp_path` on `input` with further options."""
    monkeypatch.chdir(tmp_path)

    def run(source, output="codes.npz", *options, model=checkpoint):
        arguments = ["--model_name_or_path", model, "--input", source, "--output", output, *options]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        script.run(script.main)

    return run


def write(path, sentences, column="text"):
    path = Path(path)
    if path.suffix == ".txt":
        path.write_bytes("\n".join([*sentences, ""]).encode())
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": 1, column: sentence}) + "\n" for sentence in sentences))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["id", column], *([1, sentence] for sentence in sentences)])
    else:
        pq.write_table(pa.table({"id": [1] * len(sentences), column: sentences}), path)
    return path


def read(path):
    if path.suffix == ".npz":
        return sparse.load_npz(path)
    rows = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else map(json.loads, path.open())
    codes = np.zeros((len(SENTENCES), 64), dtype=np.float32)
    for code, row in zip(codes, rows, strict=True):
        code[row["indices"]] = row["values"]
    return sparse.csr_matrix(codes)


@pytest.mark.parametrize("output", ["codes.npz", "codes.parquet", "codes.jsonl"])
def test_every_output_holds_what_encode_gives(embed, checkpoint, tmp_path, output):
    embed(write("in.txt", SENTENCES), output, "--max_active_dims", 3)
    expected = encode(*load_for_inference(checkpoint), SENTENCES, max_active_dims=3)
    codes = read(tmp_path / output)
    assert expected.nnz > 0
    assert codes.dtype == np.float32
    assert (codes != expected).nnz == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([output, "in.txt"])
    if output.endswith("parquet"):
        assert pq.read_schema(output).types == [pa.list_(pa.int32()), pa.list_(pa.float32())]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_every_input_gives_the_same_codes(embed, checkpoint, suffix):
    embed(write(f"in{suffix}", SENTENCES, "body"), "codes.npz", "--text_column", "body")
    codes = sparse.load_npz("codes.npz")
    assert (codes != encode(*load_for_inference(checkpoint), SENTENCES)).nnz == 0


def test_windows_text_keeps_its_rows(embed, checkpoint):
    Path("in.txt").write_bytes("\ufeffa small village\r\n\r\nin iran".encode())
    embed("in.txt")
    expected = encode(*load_for_inference(checkpoint), ["a small village", "", "in iran"])
    assert (sparse.load_npz("codes.npz") != expected).nnz == 0


def test_an_output_is_replaced_only_with_overwrite(embed, capfd):
    source = write("in.txt", SENTENCES)
    Path("codes.npz").write_text("precious")
    assert "--overwrite" in refused(embed, capfd, source)
    assert Path("codes.npz").read_text() == "precious"
    embed(source, "codes.npz", "--overwrite")
    assert sparse.load_npz("codes.npz").shape == (len(SENTENCES), 64)


def refused(embed, capfd, *arguments, **options):
    """The one line that the script ends with."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        embed(*arguments, **options)
    error = capfd.readouterr().err
    if isinstance(caught.value.code, str):
        error += caught.value.code
    assert caught.value.code not in (0, None)
    assert "Traceback" not in error
    lines = [line for line in error.split("\n") if line and "\r" not in line and "it/s" not in line]
    return lines[-1]


def test_the_input_is_never_replaced(embed, capfd):
    source = write("in.parquet", SENTENCES)
    assert "must not be part of what is read" in refused(embed, capfd, source, source, "--overwrite")
    assert pq.read_table(source)["text"].to_pylist() == SENTENCES


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("in.txt", b"", "empty file in.txt"),
        ("in.csv", b"a,b\n1,2\n", "`text_column` must name a column of strings of 'in.csv', got None among ['a', 'b']"),
        ("in.jsonl", b'{"text": "a"}\n{"text": 5}\n', "got int '5' in line 2"),
        ("in.txt", b"fine\nand\ncaf\xe9\n", "0xe9 in line 3, byte offset 12; convert the file"),
        ("in.parquet", b"PAR1 no more", "intact .parquet file"),
        ("in.doc", b"a\n", "`input` must be a .txt, .csv, .tsv, .jsonl, .json, .parquet, .npy file, got 'in.doc'"),
    ],
)
def test_bad_files_are_refused_in_one_line(embed, capfd, name, content, words):
    Path(name).write_bytes(content)
    assert words in refused(embed, capfd, name)
    assert [path.name for path in Path().iterdir()] == [name]


def test_bad_paths_are_refused(embed, capfd):
    source = write("in.txt", SENTENCES)
    assert "file, got 'out.txt'; check the path" in refused(embed, capfd, "out.txt")
    assert "`output` must end in .npz or .parquet or .jsonl" in refused(embed, capfd, source, "codes.bin")


def test_bad_models_are_refused(embed, capfd, tmp_path):
    source = write("in.txt", SENTENCES)
    assert "no such folder" in refused(embed, capfd, source, model="no/such/model")
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


MEASURE = """
import importlib.util, resource, sys
spec = importlib.util.spec_from_file_location("embed", sys.argv.pop(1))
embed = sys.modules["embed"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(embed)
peaks = []
for source in ("warm.txt", "long.txt"):
    sys.argv[4] = source
    embed.main()
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print("growth", peaks[1] - peaks[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("output", ["codes.parquet", "codes.jsonl"])
def test_memory_does_not_grow_with_the_file(checkpoint, tmp_path, output):
    for name, lines in (("warm.txt", 20_000), ("long.txt", 200_000)):
        (tmp_path / name).write_text("a small village in iran\n" * lines)
    arguments = ["--model_name_or_path", checkpoint, "--input", "", "--output", output, "--overwrite"]
    finished = subprocess.run(
        [sys.executable, "-c", MEASURE, SCRIPT, *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": f"{SCRIPT.parent.parent}:{SCRIPT.parent}"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    growth = int(finished.stdout.split("growth")[1])
    assert growth < 20, f"{growth} MiB more for ten times the lines"  # the codes alone would take more
