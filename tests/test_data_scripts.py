"""The scripts on data as people have them: hidden labels, unusual columns, configurations, blank and foreign texts."""
# ruff: noqa: RUF001

import json
import runpy
import sys
from pathlib import Path

import pytest
from scipy import sparse

from hsvae_hf.cli import run as run_script

ROOT = Path(__file__).parent.parent
CLASSES = ["animals", "numbers", "cities"]


@pytest.fixture
def script(saved_model, tmp_path, monkeypatch):
    """Run a script on a file or folder with the untrained model; its report, or its last line where it refuses."""

    def run(name, source, *options):
        output = {"evaluate_model": "report.json", "embed": "codes.npz", "train_classifier": "clf", "train": "run"}[
            name
        ]
        place = "--output" if "." in output else "--output_dir"
        command = ["--input" if name == "embed" else "--dataset", source, place, tmp_path / output, *options]
        if name != "train":
            command += ["--model_name_or_path", saved_model]
        if place == "--output_dir":
            command += ["--max_steps", 1, "--report_to", "none", "--save_strategy", "no"]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, command)])
        run_script(runpy.run_path(str(ROOT / f"scripts/{name}.py"))["main"])
        return tmp_path / output

    return run


def refused(script, capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        script(*arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def splits(folder, sentences, labels, **changed):
    """Folder of .csv files; `changed` are other labels of a split."""
    folder.mkdir()
    for name in ("train", "validation", "test"):
        pairs = zip(sentences, changed.get(name, labels), strict=True)
        lines = [f"{text},{label}\n" for text, label in pairs]
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(lines))
    return folder


def test_hidden_labels_of_the_test_split_are_no_class(script, tmp_path, sentences, labels, caplog):
    numbers = [CLASSES.index(label) for label in labels]
    source = splits(tmp_path / "data", sentences, numbers, test=[-1] * len(numbers))
    folder = script("train_classifier", source)
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "0", "1": "1", "2": "2"}
    results = json.loads((folder / "all_results.json").read_text())
    assert "validation_accuracy" in results
    assert not any(name.startswith("test") for name in results)
    report = json.loads(script("evaluate_model", source).read_text())
    assert report["rows"] == len(sentences)
    assert "accuracy" not in report
    assert "accuracies are left out: no row of test has a class" in caplog.text


def test_some_rows_without_a_label_are_left_out_of_accuracies_alone(script, tmp_path, sentences, labels, capsys):
    some = ["" if row % 4 == 0 else label for row, label in enumerate(labels)]
    source = splits(tmp_path / "data", sentences, labels, train=some, test=some)
    report = json.loads(script("evaluate_model", source, "--heatmap", tmp_path / "g.png").read_text())
    assert report["rows"] == len(sentences)
    assert report["probe_rows"] == len(sentences) * 3 // 4
    assert report["accuracy"]["majority"] == pytest.approx(1 / 3)
    folder = script("train_classifier", source)
    assert set(json.loads((folder / "config.json").read_text())["id2label"].values()) == set(CLASSES)
    none = splits(tmp_path / "none", sentences, labels, train=[""] * len(labels))
    assert "must hold classes in the rows of train and validation" in refused(
        script, capsys, "train_classifier", none, "--overwrite_output_dir"
    )


def test_labels_that_are_not_found_are_told_with_the_columns(script, tmp_path, sentences, capsys):
    source = tmp_path / "reviews.csv"
    source.write_text("text,stars\n" + "".join(f"{text},{row % 5}\n" for row, text in enumerate(sentences)))
    report = json.loads(script("evaluate_model", source).read_text())
    assert "no labels: --label_column names them, of the columns text, stars" in capsys.readouterr().out
    assert (report["settings"]["text_column"], report["settings"]["label_column"]) == ("text", None)
    report = json.loads(script("evaluate_model", source, "--label_column", "stars", "--overwrite").read_text())
    assert report["settings"]["label_column"] == "stars"
    assert "accuracy" in report
    assert "among the columns text, stars; name one" in refused(script, capsys, "train_classifier", source)


@pytest.mark.parametrize("content", ["text\n\n \n\n", "text,label\n ,a\n,b\n"])
def test_texts_that_are_all_blank_are_named(script, tmp_path, capsys, content):
    source = tmp_path / "blank.csv"
    source.write_text(content)
    assert "`text` of" in (line := refused(script, capsys, "evaluate_model", source))
    assert "must hold at least one word, got" in line
    assert not (tmp_path / "report.json").exists()


def test_a_configuration_is_named_by_a_flag(script, tmp_path, sentences, capsys):
    source = tmp_path / "data"
    source.mkdir()
    for name in ("one", "two"):
        (source / f"{name}.txt").write_text("\n".join(sentences))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.txt\n" for name in ("one", "two"))
    (source / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name in ("evaluate_model", "train_classifier", "train"):
        assert "`dataset_config_name` must be one of ['one', 'two']" in refused(script, capsys, name, source)
    assert script("evaluate_model", source, "--dataset_config", "two").exists()
    sizes = ["--embedding_size", 8, "--hidden_size", 8, "--latent_size", 4, "--use_cpu", "true"]
    assert (script("train", source, "--dataset_config_name", "one", *sizes) / "model.safetensors").exists()


def test_a_model_that_does_not_know_the_words_is_told(script, tmp_path, caplog):
    source = tmp_path / "a.csv"
    source.write_text("text,label\n" + "привет мир,a\nкошка видит собаку,b\n" * 10)
    for name in ("evaluate_model", "train_classifier", "embed"):
        caplog.clear()
        script(name, source)
        assert "100% of the words of the corpus are unknown to the tokenizer" in caplog.text


def test_russian_trains_on_its_own_words_and_the_papers_rule_is_told(script, tmp_path, capsys, caplog):
    source = tmp_path / "a.txt"
    source.write_text("Привет мир 2024\nКошка видит собаку в Paris\n" * 10)
    sizes = ["--embedding_size", 8, "--hidden_size", 8, "--latent_size", 4, "--use_cpu", "true"]
    folder = script("train", source, *sizes)
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert {"привет", "кошка", "paris", "2024"} <= set(words)
    assert "unknown" not in caplog.text
    for options in (["--preset", "released"], ["--ascii_only", "true"]):
        script("train", source, *sizes, *options, "--overwrite_output_dir")
        words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        assert set(words) == {"_PAD", "_EOS", "_UNK", "paris", "2024"}
        assert "75% of the words of the corpus are unknown to the tokenizer" in caplog.text
        caplog.clear()


def test_embed_gives_every_line_a_row_and_finds_its_column(script, tmp_path, sentences):
    source = tmp_path / "a.txt"
    source.write_text("\n\n".join(sentences) + "\n")
    assert sparse.load_npz(script("embed", source)).shape[0] == 2 * len(sentences) - 1
    source = tmp_path / "a.tsv"
    source.write_text("id\treview\n" + "".join(f"{row}\t{text}\n" for row, text in enumerate(sentences)))
    assert sparse.load_npz(script("embed", source, "--overwrite")).shape[0] == len(sentences)
