"""Vectors in files larger than memory: the same numbers, splits, statistics and codes as of vectors in memory."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from vector_models import ROOT, script

import hsvae_hf
from hsvae_hf import vector_data, vector_files
from hsvae_hf.vector_data import VectorDataset, WindowSampler, split_vectors
from hsvae_hf.vector_files import VectorShards, open_vectors, read_vectors

FEW = {"latent_size": 12, "target_active_dims": 3, "per_device_train_batch_size": 16, "report_to": "none"}


@pytest.fixture
def rows():
    return (np.random.default_rng(0).normal(size=(230, 5)) * [1, 2, 3, 4, 5]).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(vector_files, "BLOCK_BYTES", 8 * 4 * 5)  # eight rows
    monkeypatch.setattr(vector_data, "WINDOW_BYTES", 40 * 4 * 5)


def write(path: Path, rows: np.ndarray) -> None:
    """Rows as a file of the kind that the name says; `.stream.arrow` is a stream."""
    if path.suffix == ".npy":
        np.save(path, rows)
        return
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    lists = pa.array(rows.astype(np.float64).tolist())
    table = pa.table({"id": np.arange(len(rows)), "embedding": lists if path.stem == "lists" else column})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=3)
        return
    kind = pa.ipc.new_stream if ".stream" in path.name else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, kind(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


@pytest.fixture
def folder(rows, tmp_path):
    """The rows in files of all kinds, in the order of their names."""
    names = ["a.npy", "b.parquet", "c.arrow", "d.stream.arrow", "lists.parquet"]
    (tmp_path / "shards").mkdir()
    for name, part in zip(names, np.array_split(rows, len(names)), strict=True):
        write(tmp_path / "shards" / name, part)
    (tmp_path / "shards/notes.json").write_text("{}")
    return tmp_path / "shards"


def test_files_of_all_kinds_are_one_array(folder, rows, small_blocks):
    shards = open_vectors(folder)
    assert isinstance(shards, VectorShards) and shards.shape == rows.shape
    assert max(map(len, shards.blocks)) <= 8 and len(shards.blocks) > 25
    for block in shards.blocks:
        np.testing.assert_array_equal(shards.read(block), rows[block.first : block.first + len(block)])
    np.testing.assert_array_equal(
        read_vectors([folder / "a.npy", str(folder / "c.arrow")]), rows[[*range(46), *range(92, 138)]]
    )
    assert isinstance(open_vectors(folder / "a.npy"), np.ndarray)  # one small file


def test_large_files_and_mapped_arrays_stay_where_they_are(rows, tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", np.asfortranarray(rows.astype(np.float64)))
    monkeypatch.setattr(vector_files, "IN_MEMORY", 100)
    for source in (tmp_path / "rows.npy", np.load(tmp_path / "rows.npy", mmap_mode="r")[10:]):
        found = open_vectors(source)
        assert isinstance(found, VectorShards)
        np.testing.assert_array_equal(found.read_all(), rows[-len(found) :])
    assert isinstance(open_vectors(rows), np.ndarray)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.parquet", pa.table({"a": [[1.0]], "b": [2]}), "it has the columns a, b and no `vectors` or `embedding`"),
        ("x.parquet", pa.table({"vectors": [[1.0], [2.0, 3.0]]}), "its rows have different lengths"),
        ("x.parquet", pa.table({"vectors": [[1.0], None]}), "it has rows or numbers that are missing"),
        ("x.parquet", pa.table({"vectors": ["a"]}), "its column holds string, not lists of numbers"),
        ("x.parquet", pa.table({"vectors": [[1.0], [np.nan]]}), "it holds NaN or infinity in row 1"),
        ("x.npy", np.full((3, 2), 1e300), "it holds NaN or infinity in row 0"),
        ("x.npy", np.ones(3), r"it has the shape \(3,\)"),
    ],
)
def test_a_damaged_shard_is_named(name, content, message, tmp_path):
    if name.endswith(".npy"):
        np.save(tmp_path / name, content)
    else:
        pq.write_table(content, tmp_path / name)
    with pytest.raises(ValueError, match=f"^`vectors` must hold finite numbers, .*{name}.*: {message}; write it again"):
        split_vectors(open_vectors(tmp_path), seed=0)


def test_shards_must_be_there_and_as_wide_as_each_other(tmp_path):
    with pytest.raises(ValueError, match="`vectors` must be a .npy, .parquet or .arrow file, or a folder of such, got"):
        open_vectors(tmp_path)
    with pytest.raises(ValueError, match="`vectors` must be numbers, .rows, size., got"):
        open_vectors([])
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    np.save(tmp_path / "b.npy", np.ones((2, 4)))
    with pytest.raises(ValueError, match="`vectors` must have as many numbers in every row, got 3 in .*a.npy' and"):
        open_vectors(tmp_path)


def test_splits_and_statistics_are_those_of_the_rows_in_memory(folder, rows, small_blocks):
    for limits in ((None, None), (50, 7)):
        expected = split_vectors(rows, 3, *limits)
        found = split_vectors(open_vectors(folder), 3, *limits)
        held_out = [splits["validation"].sample for splits in (found, expected)]
        np.testing.assert_array_equal(*held_out)
        train, wanted = found["train"], expected["train"].sample
        assert len(train) == len(wanted)
        read = train.__getitems__(list(range(len(train))))[0]["vectors"].numpy()
        assert sorted(map(tuple, read)) == sorted(map(tuple, wanted))
        np.testing.assert_allclose(train.moments.mean, wanted.astype(np.float64).mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(train.moments.std, wanted.astype(np.float64).std(0), rtol=1e-9)
        assert {*map(tuple, train.sample)} <= {*map(tuple, wanted)}
        alone = VectorDataset(open_vectors(folder), train.kept)  # as for the Trainer of transformers
        assert alone.fingerprint == train.fingerprint
        np.testing.assert_allclose(alone.moments.std, train.moments.std)
        assert {*map(tuple, alone.sample)} <= {*map(tuple, wanted)}


def test_an_epoch_has_every_row_once_and_few_blocks_in_memory(folder, rows, small_blocks):
    train = split_vectors(open_vectors(folder), 0)["train"]
    epochs = [list(WindowSampler(train, seed=1, epoch=lambda epoch=epoch: epoch)) for epoch in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    for order in epochs:
        assert sorted(order) == list(range(len(train)))
    reads: list[int] = []
    read = train._read
    train._read = lambda block: reads.append(block.first) or read(block)
    batches = [epochs[0][start : start + 16] for start in range(0, len(train), 16)]
    seen = []
    for batch in batches:
        seen.append(train.__getitems__(batch)[0]["vectors"].numpy())
        assert sum(block.nbytes for block in train._loaded.values()) <= vector_data.WINDOW_BYTES
    assert sorted(reads) == [block.first for block in train.blocks]  # each once
    assert {*map(tuple, np.concatenate(seen))} == {*map(tuple, rows[train.kept])}
    mixed = [len({int(np.searchsorted(train.cuts, row, side="right")) for row in batch}) for batch in batches]
    assert np.mean(mixed) > 3  # rows of a batch come from several places


def test_training_on_files_resumes_at_the_same_rows(folder, rows, tmp_path, small_blocks):
    settings = FEW | {"max_steps": 24, "save_steps": 8, "save_total_limit": 3, "logging_steps": 1, "eval_steps": 12}
    settings["validation"] = rows[:20]
    whole = hsvae_hf.fit(folder, tmp_path / "whole", **settings)
    again = shutil.copytree(tmp_path / "whole/checkpoint-16", tmp_path / "cut/checkpoint-16").parent
    resumed = hsvae_hf.fit(folder, again, **settings, resume_from_checkpoint=True)
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0, msg=name)
    shutil.rmtree(again)
    shutil.copytree(tmp_path / "whole/checkpoint-16", again / "checkpoint-16")
    content = (folder / "a.npy").read_bytes()
    np.save(folder / "a.npy", rows[[*range(44), 45, 44]])  # in the middle of a block, so of the same mean too
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a run on the same data"):
        hsvae_hf.fit(folder, again, **settings, resume_from_checkpoint=True)
    (folder / "z.npy").write_bytes(content)  # the same rows in another order
    (folder / "a.npy").unlink()
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a run on the same data"):
        hsvae_hf.fit(folder, again, **settings, resume_from_checkpoint=True)


def test_the_script_takes_a_folder_or_several_files(folder, tmp_path, capsys):
    words = ["--latent_size", 12, "--max_steps", 2, "--report_to", "none"]
    script("train", "--vectors", folder, *words, "--output_dir", tmp_path / "run")
    *_, next_line, command = capsys.readouterr().out.strip().splitlines()
    assert next_line == "next:"
    assert shlex.split(command)[2:] == [
        *(
            "--model_name_or_path",
            str(tmp_path / "run"),
            "--input",
            str(folder),
            "--output",
            f"{tmp_path / 'run'}-codes",
        )
    ]
    assert Path(shlex.split(command)[1]).name == "embed.py"
    files = [folder / "a.npy", folder / "b.parquet"]
    script("train", "--vectors", *files, *words, "--output_dir", tmp_path / "other")
    assert json.loads((tmp_path / "other/train_settings.json").read_text())["train_rows"] == 88
    with pytest.raises(ValueError, match="`output_dir` must not hold what the run reads"):
        script("train", "--vectors", folder, *words, "--output_dir", tmp_path)


PEAK = """
import resource, sys, hsvae_hf
hsvae_hf.fit(sys.argv[1], latent_size=32, max_steps=60, per_device_train_batch_size=512, disable_tqdm=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    peaks, part = [], np.random.default_rng(0).normal(size=(50_000, 128)).astype(np.float32)  # 25 MB
    for count in (5, 20):  # 125 MB and half a gigabyte
        (tmp_path / str(count)).mkdir()
        for number in range(count):
            np.save(tmp_path / f"{count}/{number:02}.npy", part)
        call = [sys.executable, "-c", PEAK, tmp_path / str(count)]
        done = subprocess.run([*map(str, call)], capture_output=True, text=True, timeout=600, cwd=ROOT, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 60
