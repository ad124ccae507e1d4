"""The scripts on data as people have them: hidden labels, unusual columns, configurations, blank and foreign texts."""
# ruff: noqa: RUF001

import json

import pytest
from vector_models import script

CLASSES = ["animals", "numbers", "cities"]


PLACES = {"evaluate_model": "report.json", "embed": "codes.npz", "train_classifier": "clf", "train": "run"}
SIZES = ["--embedding_size", 8, "--hidden_size", 8, "--latent_size", 4, "--use_cpu", "true"]


@pytest.fixture
def words(saved_model, tmp_path):
    """The words of a script on a file or folder, with the untrained model where it takes one."""

    def words_of(name, source, *options):
        place = "--output" if "." in PLACES[name] else "--output_dir"
        words = ["--input" if name == "embed" else "--dataset", source, place, tmp_path / PLACES[name], *options]
        if name != "train":
            words += ["--model_name_or_path", saved_model]
        if place == "--output_dir":
            words += ["--max_steps", 1, "--report_to", "none", "--save_strategy", "no"]
        return [name, *words]

    return words_of


@pytest.fixture
def result(words, tmp_path):
    """Run a script; where it wrote its result."""

    def run(name, *arguments):
        script(*words(name, *arguments))
        return tmp_path / PLACES[name]

    return run


def splits(folder, sentences, labels, **changed):
    """Folder of .csv files; `changed` are other labels of a split."""
    folder.mkdir()
    for name in ("train", "validation", "test"):
        pairs = zip(sentences, changed.get(name, labels), strict=True)
        lines = [f"{text},{label}\n" for text, label in pairs]
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(lines))
    return folder


def test_labels_that_are_hidden_are_no_class(result, words, refused, tmp_path, sentences, labels):
    numbers = [CLASSES.index(label) for label in labels]
    source = splits(tmp_path / "data", sentences, numbers, test=[-1] * len(numbers))
    folder = result("train_classifier", source)
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "0", "1": "1", "2": "2"}
    results = json.loads((folder / "all_results.json").read_text())
    assert "validation_accuracy" in results
    assert not any(name.startswith("test") for name in results)
    some = ["" if row % 4 == 0 else label for row, label in enumerate(labels)]
    source = splits(tmp_path / "some", sentences, labels, train=some, test=some)
    folder = result("train_classifier", source, "--overwrite_output_dir")
    assert set(json.loads((folder / "config.json").read_text())["id2label"].values()) == set(CLASSES)
    none = splits(tmp_path / "none", sentences, labels, train=[""] * len(labels))
    line = refused(*words("train_classifier", none, "--overwrite_output_dir"))
    assert "must hold classes in the rows of train and validation" in line


def test_labels_that_are_not_found_are_told_with_the_columns(result, words, refused, tmp_path, sentences, capsys):
    source = tmp_path / "reviews.csv"
    source.write_text("text,stars\n" + "".join(f"{text},{row % 5}\n" for row, text in enumerate(sentences)))
    report = json.loads(result("evaluate_model", source).read_text())
    assert "no labels: --label_column names them, of the columns text, stars" in capsys.readouterr().out
    assert (report["settings"]["text_column"], report["settings"]["label_column"]) == ("text", None)
    assert "accuracy" not in report
    assert "among the columns text, stars; name one" in refused(*words("train_classifier", source))


def test_a_configuration_is_named_by_a_flag(result, words, refused, tmp_path, sentences):
    source = tmp_path / "data"
    source.mkdir()
    for name in ("one", "two"):
        (source / f"{name}.txt").write_text("\n".join(sentences))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.txt\n" for name in ("one", "two"))
    (source / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name in ("evaluate_model", "train_classifier", "train"):
        assert "`dataset_config_name` must be one of ['one', 'two']" in refused(*words(name, source))
    assert result("evaluate_model", source, "--dataset_config", "two").exists()
    assert (result("train", source, "--dataset_config_name", "one", *SIZES) / "model.safetensors").exists()


def test_words_that_are_unknown_are_told(result, tmp_path, caplog):
    source = tmp_path / "a.csv"
    source.write_text("text,label\n" + "Привет мир 2024,a\nКошка видит собаку в Paris,b\n" * 10)
    for name in ("evaluate_model", "train_classifier", "embed"):
        caplog.clear()
        result(name, source)
        assert "% of the words of the corpus are unknown to the tokenizer" in caplog.text
    caplog.clear()
    vocabulary = set(json.loads((result("train", source, *SIZES) / "tokenizer.json").read_text())["model"]["vocab"])
    assert {"привет", "кошка", "paris", "2024"} <= vocabulary
    assert "unknown" not in caplog.text
    folder = result("train", source, *SIZES, "--preset", "released", "--overwrite_output_dir")  # the rule of the paper
    vocabulary = set(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    assert vocabulary == {"_PAD", "_EOS", "_UNK", "paris", "2024"}
    assert "75% of the words of the corpus are unknown to the tokenizer" in caplog.text
