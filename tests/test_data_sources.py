"""Where a data set is: folders of all kinds, the Hub, and names that are none."""

import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from datasets import Dataset
from hub_server import Hub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_hf_hub_args

from hsvae_hf.data import load_text_dataset
from hsvae_hf.models.sources import HTTP_ERROR

ROWS = "text,label\n" + "".join(f"row {number},{number % 2}\n" for number in range(6))
CONFIGS = """---
configs:
- config_name: one
  data_files: a/train.csv
- config_name: two
  data_files: b/train.csv
---
"""


def folder(path, **files):
    for name, content in files.items():
        target = path / name.replace("__", "/").replace("_", ".")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
    return path


@pytest.mark.parametrize(
    ("files", "stray"),
    [
        (["train.csv.gz"], "train.csv.gz"),
        (["train.zip"], "train.zip"),
        (["train.csv", "train.csv.bak"], "train.csv.bak"),
        (["train/a.csv", "train/b.jsonl"], "train/"),
        (["a.csv", "b.csv", "c.json"], "c.json"),
    ],
)
def test_files_that_would_be_left_out_or_read_otherwise_are_refused(tmp_path, files, stray):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(ROWS)
        if name.endswith(".zip"):
            with zipfile.ZipFile(tmp_path / name, "w") as archive:
                archive.writestr("train.csv", ROWS)
    with pytest.raises(ValueError, match=rf"files are all of one kind .*with \['{stray}.*move them away") as caught:
        load_text_dataset(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_reads_its_files_by_the_same_rules_whatever_lies_beside_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(Path("text"), train_csv=ROWS, test_csv="text;label\nfine;0\n", LICENSE_txt="yours", README_md="# Rows")
    splits = load_text_dataset("text")
    assert (len(splits["train"]), splits["test"]["text"][:]) == (5, ["fine"])
    folder(Path("text"), test_csv="text,label\nfine,0\nso, then,1\n")
    with pytest.raises(ValueError, match=r"test.csv` must have 2 cells in every line.* got 3 in line 3"):
        load_text_dataset("text")


def test_one_of_several_configurations_is_asked_for(tmp_path):
    source = folder(tmp_path / "f", README_md=CONFIGS, a__train_csv=ROWS, b__train_csv=ROWS.replace("row", "other"))
    for name in (None, "three"):
        with pytest.raises(ValueError, match=rf"`dataset_config_name` must be one of \['one', 'two'\].* got {name!r}"):
            load_text_dataset(str(source), dataset_config_name=name)
    assert "other" in load_text_dataset(str(source), dataset_config_name="two")["train"]["text"][0]
    with pytest.raises(ValueError, match="`dataset_config_name` must be left out"):
        load_text_dataset(str(source / "a/train.csv"), dataset_config_name="one")


@pytest.mark.parametrize("files", [{}, {"train_csv": ROWS}])
def test_a_loading_script_is_refused_in_one_line(tmp_path, files):
    source = folder(tmp_path / "f", f_py="import datasets", **files)
    with pytest.raises(ValueError, match="got .* with a loading script, .*; remove the script .*convert") as caught:
        load_text_dataset(str(source))
    assert "\n" not in str(caught.value)


def test_what_save_to_disk_wrote_is_read(tmp_path):
    Dataset.from_dict({"text": [f"row {i}" for i in range(40)]}).save_to_disk(tmp_path / "f")
    assert len(load_text_dataset(str(tmp_path / "f"))["train"]) == 38
    assert len(list(load_text_dataset(str(tmp_path / "f"), streaming=True)["train"])) == 40
    (tmp_path / "f/state.json").write_text("{}")
    with pytest.raises(ValueError, match="`dataset` must be intact"):
        load_text_dataset(str(tmp_path / "f"))


def test_an_empty_folder_and_an_empty_name_are_refused(tmp_path):
    for name, message in ((str(tmp_path), "doesn't contain any data files"), ("", "docstrings, .* got ''; name one")):
        with pytest.raises(ValueError, match=message):
            load_text_dataset(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data/reveiws.csv", "did you mean 'data/reviews.csv'"),
        ("data/reviews", "did you mean 'data/reviews.csv'"),
        ("~/no/such/file.txt", "check the path"),
        ("data\\reviews.csv", "no such file or folder is here"),
        ("my data", "the Hub has no such repository"),
        ("dat", "did you mean 'data'"),
    ],
)
def test_a_mistyped_name_is_told_at_once(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    folder(Path("data"), reviews_csv=ROWS)
    asked = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def repo_info(self, repo_id, **options):
        asked.append(repo_id)
        raise RepositoryNotFoundError("none", response=Mock())

    monkeypatch.setattr(HfApi, "repo_info", validate_hf_hub_args(repo_info))
    with pytest.raises(ValueError, match=message) as caught:
        load_text_dataset(name)
    assert len(asked) == (name == "dat")
    assert "\n" not in str(caught.value) and str(caught.value).count("`dataset`") == 1


def test_an_unreachable_hub_is_asked_once(monkeypatch):
    asked = []

    def repo_info(self, name, *, repo_type, timeout):
        asked.append((name, repo_type, timeout))
        raise HTTP_ERROR("nobody answers")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "repo_info", repo_info)
    with pytest.raises(ValueError, match="got 'yelp', which could not be read .*network"):
        load_text_dataset("yelp")
    assert asked == [("Yelp/yelp_review_full", "dataset", 5.0)]


@pytest.mark.slow
def test_files_on_the_hub_are_read_by_the_same_rules(tmp_path):
    with Hub(tmp_path) as hub:
        hub.seed("lab/rows", {"train.csv": ROWS, "test.csv": "text,label\nfine,0\n"}, "dataset")
        hub.seed("lab/bad", {"train.csv": ROWS + "so, then,1\n"}, "dataset")
        hub.seed("lab/two", {"README.md": CONFIGS, "a/train.csv": ROWS, "b/train.csv": ROWS}, "dataset")
        done = hub.run(
            """
            from hsvae_hf.data import load_text_dataset
            print(load_text_dataset("lab/rows")["test"][0])
            print(len(load_text_dataset("lab/two", dataset_config_name="two")["train"]))
            for name in ("lab/bad", "lab/two", "lab/none"):
                try:
                    load_text_dataset(name)
                except ValueError as error:
                    print(error)
            """
        )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["{'text': 'fine', 'label': 0}", "5"], done.stderr
    assert "got 3 in line 8" in lines[2]
    assert "must be one of ['one', 'two'] for 'lab/two'" in lines[3]
    assert "the Hub has no such repository" in lines[4]
