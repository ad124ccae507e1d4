"""Files that are whole or not there, written by one process at a time, whatever ends it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hsvae_hf.files
from hsvae_hf.files import check_output, claimed_files, claimed_folder, staged_file, staged_folder, write_json

HOLDER = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("files", sys.argv[1])  # without the package: fast
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with getattr(files, sys.argv[2])(sys.argv[3]) as hidden:
    (hidden / "half").mkdir()
    (hidden / "half/file").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held():
    """Start another process that writes a file or into a folder."""
    processes = []

    def hold(kind, path):
        command = [sys.executable, "-c", HOLDER, hsvae_hf.files.__file__, kind, str(path)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "ready\n"
        return processes[-1]

    yield hold
    for process in processes:
        process.kill()
        process.wait()


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), staged_file(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("report.json", "old")]
    with pytest.raises(RuntimeError), staged_folder(tmp_path) as unfinished:
        (unfinished / "report.json").write_text("half")
        raise RuntimeError
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("report.json", "old")]
    write_json(path, {"a": 1})
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("report.json", '{\n  "a": 1\n}\n')]


@pytest.mark.parametrize(
    ("kind", "stage", "name"), [("claimed_file", staged_file, "codes.npz"), ("claimed_folder", staged_folder, "run")]
)
def test_one_process_writes_and_what_a_killed_one_left_is_removed(held, tmp_path, kind, stage, name):
    other = held(kind, tmp_path / name)
    with pytest.raises(ValueError, match=f"`output` must be written by one process at a time.*process {other.pid} is"):
        stage(tmp_path / name, "output").__enter__()
    assert len(list(tmp_path.glob("**/half/file"))) == 1
    other.kill()
    other.wait()
    assert len(list(tmp_path.glob("**/half/file"))) == 1
    with stage(tmp_path / name) as unfinished:
        assert not list(tmp_path.glob("**/half"))
        (unfinished if kind == "claimed_file" else unfinished / "file").write_text("whole")
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["whole"]
    assert not list(tmp_path.glob("**/.*"))


def test_files_of_a_run_are_written_while_the_run_holds_its_folder(tmp_path):
    with claimed_folder(tmp_path / "run"):
        write_json(tmp_path / "run/results.json", {})
        with staged_folder(tmp_path / "run") as unfinished:
            (unfinished / "weights").touch()
        with staged_folder(tmp_path / "run"):
            pass
        assert {path.name for path in (tmp_path / "run").iterdir()} == {".unfinished", "results.json", "weights"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"results.json", "weights"}


@pytest.mark.parametrize("path", ["file/report.json", "/proc/report.json", "file"])
def test_what_cannot_be_written_is_told_before(tmp_path, path):
    (tmp_path / "file").touch()
    claim = (
        claimed_files(report=tmp_path / path) if path.endswith("json") else claimed_folder(tmp_path / path, "report")
    )
    with pytest.raises(ValueError, match="`report` must be a place that can be written, got"):
        claim.__enter__()
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_folders_that_were_made_for_nothing_are_removed(tmp_path):
    with claimed_files(output=tmp_path / "a/b/report.json", heatmap=None):
        assert (tmp_path / "a/b").is_dir()
    assert not list(tmp_path.iterdir())
    with claimed_files(output=tmp_path / "a/b/report.json"):
        write_json(tmp_path / "a/b/report.json", {})
    assert os.listdir(tmp_path / "a/b") == ["report.json"]


def test_a_result_replaces_neither_folders_nor_what_is_read(tmp_path):
    data = tmp_path / "data.json"
    data.touch()
    (tmp_path / "folder.json").mkdir()
    for path, words in (
        ("folder.json", "must be a file, got the folder"),
        ("data.json", "must not be part of what is read"),
        ("folder.json/new.json", "must not be part of what is read"),
        ("report.txt", "must end in .json"),
        ("config.json", "must not be a file of a model"),
    ):
        with pytest.raises(ValueError, match=f"`report` {words}"):
            check_output(tmp_path / path, True, ".json", "report", (str(data), None, str(tmp_path / "folder.json")))
    with pytest.raises(ValueError, match="`output` must be a new file"):
        check_output(data, False, ".json")
    with pytest.raises(ValueError, match="`output` must be a file, got the folder"):
        write_json(tmp_path / "folder.json", {})
    assert check_output(str(data), True, ".json", inputs=("hub/id",)) == Path(data)
