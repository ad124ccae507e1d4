"""Corpora as folders of shards: what is in them, who may go on with them, runs that are killed, memory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse
from vector_models import ROOT, as_sentence_transformers, small

import hsvae_hf
from hsvae_hf import encode, encode_corpus, encode_vectors, load_codes
from hsvae_hf.code_shards import load_shards
from hsvae_hf.corpus_input import corpus_input
from hsvae_hf.embedding_cache import load_encoder_tokenizer
from hsvae_hf.encoding import sentence_vectors
from hsvae_hf.loading import load_for_inference
from hsvae_hf.ray_corpora import ParquetRows
from hsvae_hf.vector_files import open_vectors

WORDS = ["the", "cat", "sees", "a", "dog", "one", "and", "two", "make", "three", "paris", "has", "river"]
LINES = [" ".join(WORDS[number % 7 : number % 7 + number % 5 + 1]) for number in range(25)]
LINES[3] = ""


def same(codes, expected):
    """Equal but for the rounding of batches of another shape."""
    return codes.shape == expected.shape and (abs(codes - expected) > 1e-5).nnz == 0


@pytest.fixture
def text(tmp_path):
    """A folder of two files, one of them in a folder in it, and of what is passed over."""
    folder = tmp_path / "input"
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_text("".join(f"{line}\n" for line in LINES[:11]))
    pq.write_table(pa.table({"text": LINES[11:]}), folder / "b/rest.parquet", row_group_size=3)
    (folder / "notes.md").write_text("not read")
    (folder / ".hidden.txt").write_text("not read")
    return folder


@pytest.fixture
def expected(saved_model):
    return encode(*load_for_inference(saved_model), LINES)


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_shards_hold_what_encode_gives(form, text, saved_model, expected, tmp_path):
    codes = encode_corpus(saved_model, text, tmp_path / "codes", shard_rows=4, format=form)
    assert same(codes[:], expected)
    names = {f"part-{number:05d}.{form}" for number in range(7)} | {"manifest.json"}
    assert {path.name for path in (tmp_path / "codes").iterdir()} == names
    again = load_codes(tmp_path / "codes")
    assert again.shape == expected.shape
    for part in (slice(3, 5), slice(0, 4), slice(2, 23), slice(-3, None), slice(9, 9), slice(20, 99)):
        assert same(again[part], expected[part])
    assert same(again[-1], expected[-1])
    assert [block.shape[0] for block in again.blocks(3)] == [3, 1] * 6 + [1]
    assert same(sparse.vstack(list(again.blocks())).tocsr(), expected)
    for wrong, error in ((25, IndexError), (slice(0, 9, 2), ValueError), ("a", ValueError)):
        with pytest.raises(error, match="25|must be a slice"):
            again[wrong]
    if form == "parquet":
        assert pq.read_table(tmp_path / "codes/part-00002.parquet")["id"].to_pylist() == [8, 9, 10, 11]


def test_options_reach_the_model(text, saved_model, tmp_path):
    found = encode_corpus(saved_model, text, tmp_path / "codes", active_dims=2, normalize=True, batch_size=4)
    wanted = encode(*load_for_inference(saved_model), LINES, batch_size=4, active_dims=2, normalize=True)
    assert same(found[:], wanted)


def test_several_processes_give_the_same_in_order(text, saved_model, expected, tmp_path):
    codes = encode_corpus(saved_model, text, tmp_path / "codes", shard_rows=2, num_processes=2)
    assert same(codes[:], expected)
    one = encode_corpus(saved_model, text, tmp_path / "one", shard_rows=2)
    assert same(codes[:], one[:])
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("codes", "one")]
    assert names[0] == names[1]
    with pytest.raises(ValueError, match="active_dims"):  # what a process raises arrives as it is
        encode_corpus(saved_model, text, tmp_path / "more", num_processes=2, active_dims=7)


def test_a_view_is_mapped_and_goes_where_a_matrix_goes(text, saved_model, expected, tmp_path):
    codes = encode_corpus(saved_model, text, tmp_path / "codes", shard_rows=10)
    before = pa.total_allocated_bytes()
    codes[0:10].data[:] = 0  # a copy of these rows
    assert same(codes[0:10], expected[0:10])
    assert pa.total_allocated_bytes() == before  # the file itself was not read into memory
    index = hsvae_hf.Index.build(codes, tmp_path / "index", precision="float32")
    reference = hsvae_hf.Index(precision="float32")
    reference.add(expected)
    for found, wanted in zip(index.search(expected[5:8]), reference.search(expected[5:8]), strict=True):
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted], abs=1e-5)
        assert found[0].id == wanted[0].id
    rows: list[dict[int, float]] = []
    assert hsvae_hf.export(codes, rows, "dicts").rows == 25
    assert rows[4] == pytest.approx(dict(zip(expected[4].indices.tolist(), expected[4].data.tolist(), strict=True)))


def test_vectors_of_files_are_one_input(tmp_path):
    model = small()
    model.save_pretrained(tmp_path / "model")
    vectors = np.random.default_rng(0).normal(size=(31, 5)).astype(np.float32)
    folder = tmp_path / "input"
    folder.mkdir()
    np.save(folder / "a.npy", vectors[:12].astype(np.float16))
    pq.write_table(pa.table({"vectors": list(vectors[12:])}), folder / "b.parquet")
    vectors[:12] = vectors[:12].astype(np.float16)
    codes = encode_corpus(tmp_path / "model", folder, tmp_path / "codes", shard_rows=7)
    assert same(codes[:], encode_vectors(model, vectors))


def test_a_row_that_is_not_finite_is_named_by_its_file(tmp_path, refused):
    small().save_pretrained(tmp_path / "model")
    folder = tmp_path / "input"
    folder.mkdir()
    vectors = np.ones((5000, 5), dtype=np.float32)
    np.save(folder / "a.npy", vectors)
    vectors[4321, 2] = np.nan
    pq.write_table(pa.table({"vectors": list(vectors)}), folder / "b.parquet", row_group_size=1000)
    words = ["embed", "--model_name_or_path", tmp_path / "model", "--input", folder, "--output"]
    for output in ("codes.npz", "codes"):
        line = refused(*words, tmp_path / output)
        assert "`input` must hold finite numbers, got NaN or infinity in row 4321 of" in line
        assert "b.parquet', counted from 0" in line
    rows = ParquetRows(folder / "b.parquet", None)
    assert (rows.read(998, 4321) == 1).all()
    with pytest.raises(ValueError, match="got NaN or infinity in row 4321 of .*b.parquet"):
        rows.read(2500, 5000)


def test_a_warning_of_the_vectors_is_given_once(tmp_path, caplog):
    model = small()
    model.base_model.standardizer.mean += 100  # as if trained on such vectors
    model.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "in.npy", np.ones((9, 5)))
    encode_corpus(tmp_path / "model", tmp_path / "in.npy", tmp_path / "codes", shard_rows=2)
    assert caplog.text.count("have another scale") == 1


def test_vectors_of_an_encoder_are_shards_that_codes_are_made_of(text, encoder, tmp_path):
    as_sentence_transformers(encoder)
    found = encode_corpus(encoder, text, tmp_path / "vectors", content="vectors", shard_rows=9)
    model = hsvae_hf.HSVAEModel.from_encoder_pretrained(str(encoder), decoder_type="vector")
    wanted = sentence_vectors(model, load_encoder_tokenizer(str(encoder)), LINES)
    assert np.abs(found[2:20] - wanted[2:20]).max() < 1e-6
    assert load_shards(tmp_path / "vectors").shape == wanted.shape
    with pytest.raises(ValueError, match="must hold codes, got .* with vectors"):
        load_codes(tmp_path / "vectors")
    head = small(vector_size=16)
    head.save_pretrained(tmp_path / "head")
    codes = encode_corpus(tmp_path / "head", tmp_path / "vectors", tmp_path / "codes", shard_rows=10)
    assert same(codes[:], encode_vectors(head, found[:]))


class Stop(Exception):
    """Ends a run in its middle."""


@pytest.fixture
def stopped(text, saved_model, tmp_path, monkeypatch):
    """A folder in which the first three of seven shards are whole."""
    with monkeypatch.context() as patch:
        encoder = hsvae_hf.shard_encoder.ShardEncoder
        original = encoder.__call__

        def call(self, task):
            if task[0] == 3:
                raise Stop
            return original(self, task)

        patch.setattr(encoder, "__call__", call)
        with pytest.raises(Stop):
            encode_corpus(saved_model, text, tmp_path / "codes", shard_rows=4)
    return tmp_path / "codes"


def test_a_run_goes_on_without_repeating_shards(text, saved_model, expected, stopped, monkeypatch):
    with pytest.raises(ValueError, match="with 3 shards of a run .*`embed.py ... --output .*codes` .* with `--resume`"):
        load_codes(stopped)
    with pytest.raises(ValueError, match="`output` must be a new or empty folder, got .* with 3 shards, unfinished"):
        encode_corpus(saved_model, text, stopped, shard_rows=4)
    encoder, numbers = hsvae_hf.shard_encoder.ShardEncoder, []
    original = encoder.__call__
    monkeypatch.setattr(encoder, "__call__", lambda self, task: numbers.append(task[0]) or original(self, task))
    assert same(encode_corpus(saved_model, text, stopped, shard_rows=4, resume=True)[:], expected)
    assert numbers == [3, 4, 5, 6]
    assert same(encode_corpus(saved_model, text, stopped, shard_rows=4, resume=True)[:], expected)
    assert numbers == [3, 4, 5, 6]
    with pytest.raises(ValueError, match="with 7 shards, complete; delete it"):
        encode_corpus(saved_model, text, stopped, shard_rows=4)


def change_model(saved_model, text, stopped):
    model, _ = load_for_inference(saved_model, hsvae_hf.HSVAEForPreTraining)
    next(model.base_model.parameters()).data += 1e-3
    model.save_pretrained(saved_model)


def change_row(saved_model, text, stopped):
    (text / "a.txt").write_text((text / "a.txt").read_text().replace("cat", "dog"))


def change_file(saved_model, text, stopped):
    (text / "z.txt").write_text("another\n")


def damage(saved_model, text, stopped):
    content = bytearray((stopped / "part-00001.arrow").read_bytes())
    content[-200] ^= 1
    (stopped / "part-00001.arrow").write_bytes(content)


def lose(saved_model, text, stopped):
    (stopped / "part-00001.arrow").unlink()


@pytest.mark.parametrize("change", [damage, lose])
def test_files_that_are_damaged_are_made_again(change, text, saved_model, stopped):
    expected = encode_corpus(saved_model, text, stopped, shard_rows=4, resume=True)[:].toarray()
    change(saved_model, text, stopped)
    found = encode_corpus(saved_model, text, stopped, shard_rows=4, resume=True)
    np.testing.assert_array_equal(found[:].toarray(), expected)
    found.check()


def test_reading_a_damaged_file_names_it(text, saved_model, stopped):
    codes = encode_corpus(saved_model, text, stopped, shard_rows=4, resume=True)
    content = (stopped / "part-00001.arrow").read_bytes()
    places = codes[4:8].indices.astype(np.int32).tobytes()
    assert places in content
    (stopped / "part-00001.arrow").write_bytes(content.replace(places, b"\xff" * len(places)))
    with pytest.raises(
        ValueError, match="where part-00001.arrow is missing or was changed; finish it by the `embed.py"
    ):
        hsvae_hf.load_codes(stopped)[4:8]


def test_a_call_that_failed_before_the_first_shard_leaves_the_folder_free(saved_model, tmp_path):
    rows = np.ones((6, 3), dtype=np.float32)
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(ValueError):
        encode_corpus(saved_model, tmp_path / "rows.npy", tmp_path / "out", shard_rows=4)
    (tmp_path / "text.txt").write_text("one line\nanother\n")
    (tmp_path / "out/part-00003.arrow").write_bytes(b"of a process that was killed before it was in the manifest")
    for resume in (False, True):
        output = tmp_path / "out" if not resume else tmp_path / "other"
        assert encode_corpus(saved_model, tmp_path / "text.txt", output, resume=resume).shape[0] == 2
        assert {path.name for path in output.iterdir()} == {"manifest.json", "part-00000.arrow"}


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (change_model, {}, "`model_name_or_path` must be the model of before to resume"),
        (change_row, {}, "`input` must be that of before to resume, got other rows from row 0 on"),
        (change_file, {}, "`input` must be that of before to resume, .*a.txt.*, got .*z.txt"),
        (None, {"active_dims": 2}, "`active_dims` must be that of before to resume, None, got 2; pass it"),
        (None, {"shard_rows": 5}, "`shard_rows` must be that of before to resume, 4, got 5"),
        (None, {"format": "parquet"}, "`format` must be that of before to resume, 'arrow', got 'parquet'"),
    ],
)
def test_going_on_with_something_else_is_refused(change, options, words, text, saved_model, stopped):
    before = sorted(path.name for path in stopped.iterdir())
    if change is not None:
        change(saved_model, text, stopped)
    with pytest.raises(ValueError, match=words):
        encode_corpus(saved_model, text, stopped, **({"shard_rows": 4, "resume": True} | options))
    assert {path.name for path in stopped.iterdir()} <= set(before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "dask"}, "`engine` must be one of local, ray, got 'dask'"),
        ({"format": "npz"}, "`format` must be one of arrow, parquet, got 'npz'"),
        ({"content": "words"}, "`content` must be one of codes, vectors, got 'words'"),
        ({"num_processes": 0}, "`num_processes` must be at least 1"),
        ({"shard_rows": 0}, "`shard_rows` must be at least 1"),
        ({"resume": "yes"}, "`resume` must be True or False"),
        ({"input": "nowhere.txt"}, "`input` must be a .txt, .* file, or a folder, got 'nowhere.txt'; check the path"),
        ({"input": []}, "`input` must be at least one file"),
        ({"active_dims": 7}, "`active_dims` must be at most `latent_size` \\(6\\), got 7"),
        ({"prompt_name": "query"}, "`prompt_name` must be one of"),
        ({"content": "vectors", "active_dims": 2}, "`active_dims` must be left out for vectors, got 2"),
        ({"content": "vectors", "normalize": True}, "`normalize` must be left out for vectors, got True"),
        ({"address": "auto"}, "`address` must be left out for the engine 'local', got 'auto'"),
        ({"output": "input/b/codes"}, "`output` must not be in a folder of `input`, got 'input/b/codes' in '.*input'"),
        ({"output": "file/x"}, "`output` must be a place that can be written, got"),
        ({"output": "unknown://x"}, "`output` must be a path or a URI that pyarrow opens, got 'unknown://x'"),
    ],
)
def test_bad_arguments_are_refused_and_leave_nothing(options, words, text, saved_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=words):
        encode_corpus(saved_model, **({"input": text, "output": tmp_path / "codes"} | options))
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize("row", [0, -1])
def test_a_complete_folder_stays_so_though_other_rows_are_refused(row, tmp_path):
    small().save_pretrained(tmp_path / "model")
    rows = np.random.default_rng(0).normal(size=(21, 5)).astype(np.float32)
    np.save(tmp_path / "in.npy", rows)
    call = [tmp_path / "model", tmp_path / "in.npy", tmp_path / "codes"]
    expected = encode_corpus(*call, shard_rows=4)[:]
    content = (tmp_path / "in.npy").read_bytes()
    changed = content[:-20] + bytes(20) if row else content.replace(b"(21, 5)", b"(20, 5)")  # of the same size
    (tmp_path / "in.npy").write_bytes(changed)
    with pytest.raises(ValueError, match="`input` must be that of before to resume, got other rows from row 20 on"):
        encode_corpus(*call, shard_rows=4, resume=True)
    assert same(load_codes(tmp_path / "codes")[:], expected)


def test_numbers_of_numpy_are_numbers_and_another_batch_size_goes_on(text, saved_model, tmp_path):
    options = {"shard_rows": np.int64(4), "active_dims": np.int64(2), "normalize": np.bool_(True)}
    first = encode_corpus(saved_model, text, tmp_path / "codes", **options)[:]
    found = encode_corpus(saved_model, text, tmp_path / "codes", **options, batch_size=np.int32(2), resume=True)
    assert same(found[:], first)
    assert json.loads((tmp_path / "codes/manifest.json").read_text())["settings"]["active_dims"] == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda shards: shards.pop(2), "its shards do not follow each other at part-00003.arrow"),
        (lambda shards: shards.insert(2, shards[1]), "its shards do not follow each other at part-00001.arrow"),
        (lambda shards: shards.reverse(), "its shards do not follow each other at part-00006.arrow"),
        (lambda shards: shards[2].update(rows=5), "its shards do not follow each other at part-00003.arrow"),
        (lambda shards: shards[2].update(rows="4"), "its shard 2 has numbers that are none"),
        (lambda shards: shards[2].pop("rows"), "it has other fields"),
    ],
)
def test_a_manifest_that_was_changed_loses_no_row_unseen(change, words, text, saved_model, tmp_path):
    encode_corpus(saved_model, text, tmp_path / "codes", shard_rows=4)
    manifest = json.loads((tmp_path / "codes/manifest.json").read_text())
    change(manifest["shards"])
    (tmp_path / "codes/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"`folder` must hold a manifest of this package, .*: {words}"):
        load_codes(tmp_path / "codes")


def test_sentences_and_vectors_are_not_mixed(text, saved_model, tmp_path):
    np.save(text / "c.npy", np.ones((2, 5)))
    both = "must be sentences or vectors, got both: sentences in .*1 .txt.*, and vectors in .*1 .npy"
    with pytest.raises(ValueError, match=f"`input` {both}"):
        encode_corpus(saved_model, text, tmp_path / "codes")
    for read, argument in ((hsvae_hf.load_text_dataset, "dataset"), (open_vectors, "vectors")):  # all readers alike
        with pytest.raises(ValueError, match=f"`{argument}` {both}"):
            read(str(text))
    (text / "a.txt").rename(text / "b/a.txt")
    (text / "b/rest.parquet").unlink()
    (text / "b").rename(tmp_path / "b")
    (text / "notes.json").write_text('{"made": "today"}')
    assert corpus_input(text).names == ("c.npy",)
    assert open_vectors(text).shape == (2, 5)
    (tmp_path / "b/a.txt").rename(text / "a.txt")
    with pytest.raises(ValueError, match="`input` must be sentences to make vectors of them"):
        encode_corpus(saved_model, text / "c.npy", tmp_path / "codes", content="vectors")
    small().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="`input` must be vectors for this model, which reads no text"):
        encode_corpus(tmp_path / "model", text / "a.txt", tmp_path / "codes")
    np.save(text / "c.npy", np.ones(5))
    with pytest.raises(ValueError, match=r"`input` must hold vectors, \(rows, size\), got .*c.npy': it has float64"):
        encode_corpus(tmp_path / "model", text / "c.npy", tmp_path / "codes")


def test_a_folder_of_something_else_is_left_alone(text, saved_model, tmp_path):
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes/letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="`output` must be a new or empty folder, got .* with files"):
        encode_corpus(saved_model, text, tmp_path / "codes", resume=True)
    (tmp_path / "codes/manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="with a manifest.json that is none"):
        encode_corpus(saved_model, text, tmp_path / "codes", resume=True)
    assert (tmp_path / "codes/letter.txt").read_text() == "dear"


def start(*words):
    command = [sys.executable, ROOT / "scripts/embed.py", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=environment,
    )


def whole_shards(folder):
    """Numbers of the shards that the manifest names, and when their files were written."""
    try:
        shards = json.loads((folder / "manifest.json").read_text())["shards"]
    except FileNotFoundError:
        return {}
    return {shard["number"]: (folder / shard["file"]).stat().st_mtime_ns for shard in shards}


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are counted in /proc")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_goes_on(processes, saved_model, tmp_path):
    lines = LINES * 400
    (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in lines))
    codes = tmp_path / "codes"
    words = ["--model_name_or_path", saved_model, "--input", tmp_path / "in.txt", "--output", codes]
    words += ["--shard_rows", 100, "--num_processes", processes]
    process = start(*words)
    begin = time.monotonic()
    while len(whole_shards(codes)) < 5 and process.poll() is None and time.monotonic() - begin < 240:
        time.sleep(0.02)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) >= (2 if processes == 2 else 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = whole_shards(codes)
    assert 5 <= len(before) < 100
    while any(map(running, workers)) and time.monotonic() - begin < 300:
        time.sleep(0.1)
    assert not any(map(running, workers))  # the processes of the killed one have ended

    second = start(*words, "--resume")
    output = second.communicate(timeout=300)[0].decode()
    assert second.returncode == 0, output[-2000:]
    after = whole_shards(codes)
    assert len(after) == 100
    assert {number: after[number] for number in before} == before  # whole shards were not written again
    view = load_codes(codes)
    view.check()
    assert same(view[:], encode(*load_for_inference(saved_model), lines))
    assert len(list(codes.iterdir())) == 101


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="signals of a terminal")
def test_ctrl_c_ends_several_processes_in_one_line(saved_model, tmp_path):
    (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in LINES * 400))
    codes = tmp_path / "codes"
    words = ["--model_name_or_path", saved_model, "--input", tmp_path / "in.txt", "--output", codes]
    process = start(*words, "--shard_rows", 100, "--num_processes", 2)
    begin = time.monotonic()
    while len(whole_shards(codes)) < 3 and process.poll() is None and time.monotonic() - begin < 240:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130, output[-2000:]
    assert output.strip().split("\n")[-1] == "stopped by SIGINT; no file is half written"
    assert "Traceback" not in output
    assert not list(codes.glob(".*"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    small(vector_size=64).save_pretrained(tmp_path / "model")
    code = "import sys, hsvae_hf; hsvae_hf.encode_corpus(*sys.argv[1:]); "
    code += "[codes.nnz for codes in hsvae_hf.load_codes(sys.argv[3]).blocks()]; "
    code += "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    peaks = []
    for rows in (20_000, 300_000):  # 5 and 77 MB
        np.save(tmp_path / "in.npy", np.full((rows, 64), 0.1, dtype=np.float32))
        words = [sys.executable, "-c", code, tmp_path / "model", tmp_path / "in.npy", tmp_path / str(rows)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True, env=environment)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 40, peaks
