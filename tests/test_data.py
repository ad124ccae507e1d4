"""Data sets from names, folders and files; the embedded corpus; collator and sampler."""

import json

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hsvae_hf.batching import LengthGroupedSampler, TextCollator
from hsvae_hf.console import data_facts
from hsvae_hf.data import labelled, load_text_dataset, tokenize_dataset

ROWS = [{"sentence": f"sentence number {index} is here", "kind": "ab"[index % 2]} for index in range(40)]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def classes(*names):
    """Columns of texts and of declared classes."""
    return Features({"text": Value("string"), "label": ClassLabel(names=list(names))})


@pytest.fixture(params=["parquet", "save_to_disk"])
def saved(request, tmp_path):
    """The splits as they are read from a folder that one of the two ways has written."""

    def save(splits):
        if request.param == "save_to_disk":
            DatasetDict(splits).save_to_disk(tmp_path)
        else:
            for name, rows in splits.items():
                rows.to_parquet(tmp_path / f"{name}.parquet")
        return load_text_dataset(str(tmp_path))

    return save


def test_columns_are_found_labels_encoded_and_all_of_it_told(jsonl):
    splits = load_text_dataset(str(jsonl), label_column="kind")
    assert splits["train"].column_names == ["text", "label"]
    assert splits["train"].features["label"] == ClassLabel(names=["a", "b"])
    both = {row["text"]: row["label"] for split in splits.values() for row in split}
    assert both == {row["sentence"]: "ab".index(row["kind"]) for row in ROWS}
    summary = splits.summary
    assert (summary.text_column, summary.label_column, summary.classes) == ("sentence", "kind", ("a", "b"))
    assert set(summary.columns) == {"sentence", "kind"}
    assert summary.held_out and summary.rows == {"train": 38, "validation": 2}
    assert data_facts(splits) == [
        f"data: {jsonl}, text from `sentence`, labels from `kind` (2 classes)",
        "rows: train 38, validation 2, validation held out of train",
    ]
    assert "no labels" in data_facts(load_text_dataset(str(jsonl), streaming=True))[1]


def test_what_needs_no_training_rows_gets_none(tmp_path):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(40)))
    with pytest.raises(ValueError, match=r"`dataset` must have a split `train`, got .* with \['test'\]; rename one"):
        load_text_dataset(str(tmp_path))
    splits = load_text_dataset(str(tmp_path), needs_train=False)
    assert {name: len(split) for name, split in splits.items()} == {"test": 40}


def test_limits_draw_rows_instead_of_taking_the_head(jsonl):
    options = {"label_column": "kind", "max_train_samples": 10}
    first, again = (load_text_dataset(str(jsonl), **options, seed=1)["train"]["text"][:] for _ in range(2))
    assert first == again
    assert set(first) != {row["sentence"] for row in ROWS[:10]}
    held_out = [load_text_dataset(str(jsonl), seed=seed)["validation"]["text"][:] for seed in (1, 2)]
    assert held_out[0] == held_out[1]
    stream = load_text_dataset(str(jsonl), text_column="sentence", streaming=True, max_train_samples=3)["train"]
    assert [row["text"] for row in stream] == [row["sentence"] for row in ROWS[:3]]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("x.csv", "text,label\na b,1\n", {"text_column": "body"}, "`text_column` must be one of the columns"),
        ("x.csv", "text,label\na b,1\n", {"label_column": "topic"}, "`label_column` must be one of the columns"),
        ("x.csv", "text,label\na b,1\n", {"label_column": "text"}, "`label_column` must be another column than that"),
        ("x.csv", "number\n1\n", {}, "`text_column` must name a column of strings"),
        ("x.pdf", "text", {}, "convert it to one"),
        ("x.csv", "text\na\n", {"max_train_samples": 0}, "`max_train_samples` must be at least 1, got 0"),
        ("x.csv", "text,label\na,1.5\na,2.0\n", {}, "must be classes, got the numbers"),
        ("x.csv", "text,label\na,1.0\na,2.0\n", {}, "must be classes, got the numbers"),
        ("x.csv", "text,label\na,-2\na,\na,1\n", {}, "must be classes from 0 on, got -2 beside -1"),
        (
            "x.csv",
            "text,label\na,-1\na,0\na,1\n",
            {},
            r"must not have -1 beside other numbers, got -1 and \['0', '1'\] in split 'train'; give",
        ),
    ],
)
def test_bad_input_is_named(tmp_path, name, content, options, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_text_dataset(str(tmp_path / name), **options)


def test_a_table_is_no_data_set(tokenizer):
    for table in (pandas.DataFrame({"text": ["a"]}), {"text": ["a"]}, [], None, b"a.csv"):
        with pytest.raises(ValueError, match="`dataset` must"):
            load_text_dataset(table)
    for texts in (["one"], "one", {"text": ["one"]}):
        with pytest.raises(ValueError, match=f"`dataset` must be a Dataset .* got a {type(texts).__name__}; make one"):
            tokenize_dataset(texts, tokenizer)


def test_rows_in_memory_are_read_in_their_own_order():
    texts = ["one", "", "two", " ", "three", "four"]
    rows = Dataset.from_dict({"text": texts, "label": ["a", "b"] * 3})
    for indices in ([5, 4, 3, 0], [0, 1, 2]):
        chosen = rows.select(indices)  # the table under it still has all rows, in the old order
        splits = load_text_dataset(chosen)
        expected = {texts[row]: "ab"[row % 2] for row in indices if texts[row].strip()}
        pairs = {row["text"]: row["label"] for split in splits.values() for row in split}
        assert {text: splits["train"].features["label"].names[label] for text, label in pairs.items()} == expected
        assert chosen["text"][:] == [texts[row] for row in indices]


@pytest.mark.parametrize(
    ("suffix", "values", "names"),
    [
        ("csv", ["1.0", "0.0", "", ""], ["0", "1"]),  # pandas writes whole numbers so beside empty cells
        ("csv", ["yes", "no", "-1", " "], ["no", "yes"]),
        ("jsonl", [10, 9, "", None], ["9", "10"]),
        ("jsonl", [True, False, None, None], ["False", "True"]),
        ("parquet", [1.0, 0.0, float("nan"), None], ["0", "1"]),
        ("parquet", ["yes", "no", "", None], ["no", "yes"]),
    ],
)
def test_rows_without_a_class_are_told_and_are_no_class(tmp_path, caplog, suffix, values, names):
    rows = [{"text": f"row {number}", "label": label} for number, label in enumerate(values)]
    for split, part in (("train", rows), ("validation", rows[:3]), ("test", rows[2:])):
        path = tmp_path / f"{split}.{suffix}"
        if suffix == "csv":
            path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in part))
        elif suffix == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in part))
        else:
            Dataset.from_list(part).cast_column("label", Dataset.from_list(rows).features["label"]).to_parquet(path)
    splits = load_text_dataset(str(tmp_path))
    assert splits["train"].features["label"].names == names
    named = [names[label] if label >= 0 else None for label in splits["train"]["label"]]
    assert named == [*(str(value).removesuffix(".0") for value in values[:2]), None, None]
    assert labelled(splits["train"])["text"] == ["row 0", "row 1"]
    assert labelled(splits["test"]) is None
    assert "2 of the 4 rows of `train` have no class in `label`" in caplog.text
    assert "2 of the 2 rows of `test` have no class in `label`" in caplog.text


def test_declared_classes_keep_their_order_and_hidden_ones_are_left_out(saved):
    names, labels = ["zero", "one", "two"], {"train": [2, 0, -1, None], "validation": [2, 2, 0, 0], "test": [-1] * 4}
    texts = ["a", "b", "c", "d"]
    splits = saved(
        {name: Dataset.from_dict({"text": texts, "label": labels[name]}, classes(*names)) for name in labels}
    )
    assert splits["train"].features["label"].names == names
    assert [splits[name]["label"][:] for name in labels] == [[2, 0, -1, -1], [2, 2, 0, 0], [-1] * 4]
    assert labelled(splits["validation"]) is splits["validation"]
    assert labelled(splits["test"]) is None


def test_splits_that_number_their_classes_otherwise_are_read_by_name(saved):
    names = {"train": ["neg", "pos"], "validation": ["pos", "neg"], "test": ["pos", "new"]}
    rows = {"text": ["a", "b", "c"], "label": [0, 1, -1]}
    splits = saved({name: Dataset.from_dict(rows, classes(*names[name])) for name in names})
    assert all(split.features["label"].names == ["neg", "pos", "new"] for split in splits.values())
    assert [splits[name]["label"][:] for name in names] == [[0, 1, -1], [1, 0, -1], [1, 2, -1]]


@pytest.mark.parametrize("kind", [ClassLabel(names=["x", "y"]), Value("string"), Value("int64")])
def test_a_test_split_may_lack_the_column_of_the_classes(saved, kind):
    labels = ["x", "y"] if kind == Value("string") else [0, 1]
    train = Dataset.from_dict({"text": ["a", "b"], "label": labels}, Features({"text": Value("string"), "label": kind}))
    splits = saved({"test": Dataset.from_dict({"text": ["c"]}), "train": train, "validation": train})
    assert [splits[name]["label"][:] for name in ("train", "test")] == [[0, 1], [-1]]


def test_one_number_is_one_class_and_a_split_of_minus_ones_has_none(tmp_path, caplog):
    for split, labels in (("train", ["0", "1"]), ("validation", ["0.0", "1.0", ""]), ("test", ["-1", "-1"])):
        rows = "".join(f"row {number},{label}\n" for number, label in enumerate(labels))
        (tmp_path / f"{split}.csv").write_text("text,label\n" + rows)
    splits = load_text_dataset(str(tmp_path))
    assert splits["train"].features["label"].names == ["0", "1"]
    found = [splits[name]["label"][:] for name in ("train", "validation", "test")]
    assert found == [[0, 1], [0, 1, -1], [-1, -1]]


def test_classes_that_a_card_declares_are_kept(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,1\nb,0\nc,-1\n")
    names = "dtype:\n      class_label:\n        names:\n          '0': neg\n          '1': pos\n"
    features = f"  features:\n  - name: text\n    dtype: string\n  - name: label\n    {names}"
    (tmp_path / "README.md").write_text(f"---\ndataset_info:\n{features}---\n")
    splits = load_text_dataset(str(tmp_path))
    assert splits["train"].features["label"].names == ["neg", "pos"]
    assert {row["text"]: row["label"] for split in splits.values() for row in split} == {"a": 1, "b": 0, "c": -1}


def test_no_class_at_all_is_no_column_of_classes(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("text,label\na,-1\nb,\nc,-1\n")
    splits = load_text_dataset(str(tmp_path / "a.csv"))
    assert splits["train"].column_names == ["text"]
    assert splits.summary.label_column is None
    assert "no row has a class in `label`" in caplog.text


def test_label_outside_its_range_is_named(tmp_path):
    rows = pa.table({"text": ["x y", "z"], "label": [0, 7]})
    pq.write_table(rows.cast(classes("a", "b").arrow_schema), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="`label` must be from 0 to 1, got 7; .* See row 2 of .*x.parquet"):
        load_text_dataset(str(tmp_path / "x.parquet"))


def test_classes_that_training_rows_lack_are_told(tmp_path, caplog):
    (tmp_path / "train.csv").write_text("text,label\n" + "a,x\nb,y\n" * 20)
    (tmp_path / "test.csv").write_text("text,label\na,z\nb,y\n")
    splits = load_text_dataset(str(tmp_path))
    assert splits["test"].features["label"].names == ["x", "y", "z"]
    assert "classes of `test` that no row of `train` has, counted as errors: ['z']" in caplog.text


def test_the_column_of_the_classes_is_never_the_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("label,body\nx,fine\ny,bad\nx,so\n")
    for with_labels in (True, False):
        splits = load_text_dataset(str(path), with_labels=with_labels)
        assert {row["text"] for split in splits.values() for row in split} == {"fine", "bad", "so"}
    assert load_text_dataset(str(path), label_column="body", text_column="label").summary.text_column == "label"
    with pytest.raises(ValueError, match="`label_column` must be another column than `text_column`, got 'body'"):
        load_text_dataset(str(path), label_column="body", text_column="body")


def test_blank_texts_are_left_out_and_told(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n \u3000\nthree\n\u200b\u200d \n\ufeff\n")
    splits = load_text_dataset(str(tmp_path / "a.txt"))
    assert splits["train"].column_names == ["text"]
    assert len(list(load_text_dataset(str(tmp_path / "a.txt"), streaming=True)["train"])) == 3
    assert sorted(row["text"] for split in splits.values() for row in split) == ["one", "three", "two"]
    assert "4 of the 7 texts of `train` are blank; they are left out" in caplog.text
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="must hold at least one word, got 2 blank texts in split 'train'"):
        load_text_dataset(str(tmp_path / "a.txt"))


def test_embedded_corpus_is_labelled_english_and_repeats_itself():
    first, again = load_text_dataset("docstrings"), load_text_dataset("docstrings")
    assert set(first) == {"train", "validation", "test"}
    assert first["train"].num_rows > 3000
    assert first["train"].features["label"].num_classes >= 5
    assert first["train"]["text"][:50] == again["train"]["text"][:50]
    texts = [set(split["text"]) for split in first.values()]
    assert not texts[0] & texts[2]
    assert all(5 <= len(text.split()) <= 40 for text in texts[2])


def test_collator_pads_and_carries_labels(jsonl, tokenizer):
    split = load_text_dataset(str(jsonl), label_column="kind")["validation"]
    rows = list(tokenize_dataset(split, tokenizer))
    assert [row["length"] for row in rows] == [len(row["input_ids"]) for row in rows]
    batch = TextCollator(tokenizer, with_labels=True)(rows)
    assert batch["labels"].tolist() == split["label"][:]
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    batch = TextCollator(tokenizer)(rows)  # the words themselves, for a stock Trainer
    assert (batch["labels"] == batch["input_ids"].where(batch["attention_mask"] == 1, torch.tensor(-100))).all()


def test_sampler_groups_lengths_and_repeats_an_epoch():
    lengths = torch.randint(3, 60, (1003,)).tolist()
    epoch = 0
    sampler = LengthGroupedSampler(lengths, batch_size=16, epoch=lambda: epoch)
    rows = list(sampler)
    assert sorted(rows) == list(range(1003))
    assert rows == list(sampler)

    def padding(order):
        batches = [[lengths[row] for row in order[start : start + 16]] for start in range(0, 1003, 16)]
        return sum(len(batch) * max(batch) - sum(batch) for batch in batches)

    assert padding(rows) < 0.3 * padding(list(range(1003)))
    averages = []
    for epoch in range(1, 51):  # noqa: B007 - the sampler reads it
        order = list(sampler)
        assert order != rows
        averages.append(sum(lengths[row] for row in order[-11:]) / 11)
    assert sum(averages) / 50 == pytest.approx(sum(lengths) / 1003, rel=0.1)  # the last short batch is like any other


@pytest.mark.data
@pytest.mark.parametrize(("name", "num_classes"), [("yahoo", 10), ("dbpedia", 14), ("yelp", 5)])
def test_real_data_sets_load(data_dir, name, num_classes):
    splits = load_text_dataset(str(data_dir / name), max_train_samples=50, max_samples=20)
    assert splits["train"].num_rows == 50
    assert splits["test"].num_rows == 20
    assert splits["train"].features["label"].num_classes == num_classes
