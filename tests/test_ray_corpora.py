"""Corpora by Ray: ranges of Parquet files, and two machines of which a worker is killed."""

import json
import os
import signal
import threading
import time
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vector_models import ROOT, script, small

from hsvae_hf import encode, encode_corpus, encode_vectors, load_codes
from hsvae_hf.corpus_input import rows_checksum
from hsvae_hf.loading import load_for_inference
from hsvae_hf.ray_corpora import ParquetRows, ShardActor
from hsvae_hf.shard_encoder import Job, Options
from hsvae_hf.shard_manifest import Shard

LINES = [f"the {animal} sees {count} birds" for animal in ("cat", "dog", "horse") for count in range(70)]


@pytest.fixture
def parquet(tmp_path):
    """A folder of files of several row groups, one in a folder in it, one without rows."""
    folder = tmp_path / "input"
    (folder / "b").mkdir(parents=True)
    for name, lines in (("a.parquet", LINES[:100]), ("b/c.parquet", LINES[100:]), ("d.parquet", [])):
        table = pa.table({"text": pa.array(lines, pa.string()), "other": range(len(lines))})
        pq.write_table(table, folder / name, row_group_size=30)
    return folder


@pytest.mark.parametrize("uri", [False, True])
def test_rows_are_read_by_their_numbers(parquet, uri):
    rows = ParquetRows(parquet.as_uri() if uri else parquet, None)
    assert rows.counts == [100, 110, 0]
    for start, stop in ((0, 210), (0, 5), (29, 31), (95, 160), (205, 300), (7, 7)):
        assert rows.read(start, stop) == LINES[start:stop]


def test_vectors_are_read_by_their_numbers(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    pq.write_table(pa.table({"vectors": list(vectors)}), tmp_path / "in.parquet", row_group_size=7)
    assert (ParquetRows(tmp_path / "in.parquet", None).read(3, 40) == vectors[3:40]).all()


def test_what_is_no_parquet_is_refused(parquet, tmp_path):
    with pytest.raises(ValueError, match=r"`input` must be .parquet files for Ray, got .*; convert it to Parquet"):
        ParquetRows(tmp_path / "nowhere.txt", None)
    with pytest.raises(ValueError, match="`text_column` must be one of the columns"):
        ParquetRows(parquet, "body")
    (parquet / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="`input` must be intact .parquet files, got .*a.parquet"):
        ParquetRows(parquet, None)
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="`text` must hold a string in every row, got None in row 1 of .*none.parquet"):
        ParquetRows(tmp_path / "none.parquet", None).read(0, 2)


def test_rows_of_shards_that_are_done_are_compared(parquet, saved_model, tmp_path):
    (tmp_path / "out").mkdir()
    job = Job(str(saved_model), str(tmp_path / "out"), "parquet", Options())
    rows = ParquetRows(parquet, None)
    before = Shard(1, 40, 40, 9, 0, rows_checksum(LINES[40:80]))
    ranges = {"number": np.array([1]), "start": np.array([40]), "stop": np.array([80])}
    (told,) = ShardActor(job, rows, {1: before})(ranges)["told"]
    assert json.loads(told) == asdict(before)
    other = replace(before, rows_checksum=before.rows_checksum + 1)
    (told,) = ShardActor(job, rows, {1: other})(ranges)["told"]
    assert json.loads(told)["refused"].startswith(
        "`input` must be that of before to resume, got other rows from row 40"
    )
    assert not list((tmp_path / "out").iterdir())


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on this machine, of one core each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        options = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=options)
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        yield cluster
        cluster.shutdown()


def kill_a_worker(manifest, killed):
    """Kill one of the workers that this process has started, once some shards are whole."""
    psutil = pytest.importorskip("psutil")
    while not (manifest.exists() and manifest.read_text().count("sha256") >= 3):
        time.sleep(0.01)
    workers = [process for process in psutil.Process().children(recursive=True) if is_worker(process)]
    killed.append((len(workers), manifest.read_text().count("sha256")))
    workers[0].kill()


def is_worker(process):
    return any("ShardActor" in word for word in process.cmdline())


@pytest.mark.slow
def test_two_machines_encode_all_rows_once_though_a_worker_is_killed(cluster, saved_model, tmp_path):
    lines = [f"{line} {number % 9}" for number, line in enumerate(LINES * 60)]
    pq.write_table(pa.table({"text": lines}), tmp_path / "in.parquet", row_group_size=1000)
    output, killed = tmp_path / "codes", []
    killer = threading.Thread(target=kill_a_worker, args=(output / "manifest.json", killed), daemon=True)
    killer.start()
    options = {"shard_rows": 100, "num_processes": 2, "engine": "ray", "address": cluster.address}
    codes = encode_corpus(saved_model, tmp_path / "in.parquet", output, **options)
    killer.join()
    ((workers, whole),) = killed
    assert workers == 2
    assert whole < 126
    files = sorted(path.name for path in output.iterdir())
    assert files == ["manifest.json", *(f"part-{number:05d}.parquet" for number in range(126))]
    ids = [number for name in files[1:] for number in pq.read_table(output / name)["id"].to_pylist()]
    assert ids == list(range(12_600))
    codes.check()
    expected = encode(*load_for_inference(saved_model), lines)
    assert codes.shape == expected.shape
    assert (abs(codes[:] - expected) > 1e-5).nnz == 0


@pytest.mark.slow
def test_the_script_makes_vectors_and_codes_of_them_and_goes_on(cluster, encoder, parquet, tmp_path):
    words = ["--engine", "ray", "--address", cluster.address, "--num_processes", 2, "--shard_rows", 40]
    vectors, handler = tmp_path / "vectors", signal.getsignal(signal.SIGTERM)
    script(*("embed", "--model_name_or_path", encoder, "--input", parquet, "--output", vectors, "--vectors", *words))
    assert signal.getsignal(signal.SIGTERM) == handler  # a script stays one that a signal ends in one line
    model = small(vector_size=16)
    model.save_pretrained(tmp_path / "model")
    once = ["--encoder_name_or_path", encoder, "--input", parquet, "--output", tmp_path / "once", *words]
    script("embed", "--model_name_or_path", tmp_path / "model", *once)
    words += ["--model_name_or_path", tmp_path / "model", "--input", vectors, "--output", (tmp_path / "codes").as_uri()]
    script("embed", *words)
    script("embed", *words, "--resume")
    files = sorted(vectors.glob("*.parquet"))
    array = np.concatenate([np.stack(pq.read_table(file)["vectors"].to_numpy()) for file in files])
    assert array.shape == (210, 16)
    for codes in (load_codes(tmp_path / "codes"), load_codes(tmp_path / "once")):
        assert (abs(codes[:] - encode_vectors(model, array)) > 1e-5).nnz == 0


@pytest.mark.slow
def test_going_on_with_other_rows_is_refused(cluster, saved_model, tmp_path):
    file, output = tmp_path / "in.parquet", tmp_path / "codes"
    pq.write_table(pa.table({"text": LINES}), file, compression="none")
    options = {"shard_rows": 100, "engine": "ray", "address": cluster.address}
    before = encode_corpus(saved_model, file, output, **options)[:]
    (output / "part-00002.parquet").unlink()
    content = file.read_bytes()
    assert content.count(b"horse sees 10 birds") == 1
    file.write_bytes(content.replace(b"horse sees 10 birds", b"mouse sees 10 birds"))
    with pytest.raises(ValueError, match="^`input` must be that of before to resume, got other rows from row 100 on"):
        encode_corpus(saved_model, file, output, resume=True, **options)
    file.write_bytes(content)
    found = encode_corpus(saved_model, file, output, resume=True, **options)[:]
    assert (abs(found - before) > 1e-5).nnz == 0


@pytest.mark.slow
def test_what_a_worker_refuses_arrives_as_it_is(cluster, saved_model, tmp_path):
    rows = [*LINES * 6, None]
    pq.write_table(pa.table({"text": rows}), tmp_path / "in.parquet")
    options = {"shard_rows": 500, "num_processes": 1, "engine": "ray", "address": cluster.address}
    with pytest.raises(ValueError, match="^`text` must hold a string in every row, got None in row 1260 of"):
        encode_corpus(saved_model, tmp_path / "in.parquet", tmp_path / "codes", **options)
