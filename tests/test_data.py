"""Data sets from names, folders and files; the embedded corpus; collator and sampler."""

import json

import pytest
import torch
from datasets import ClassLabel

from hsvae_hf.data import LengthGroupedSampler, TextCollator, load_text_dataset, tokenize_dataset

ROWS = [{"sentence": f"sentence number {index} is here", "kind": "ab"[index % 2]} for index in range(40)]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_columns_are_found_and_labels_encoded(jsonl):
    splits = load_text_dataset(str(jsonl), label_column="kind")
    assert splits["train"].column_names == ["text", "label"]
    assert splits["train"].features["label"] == ClassLabel(names=["a", "b"])
    assert (splits["train"].num_rows, splits["validation"].num_rows) == (38, 2)
    both = {row["text"]: row["label"] for split in splits.values() for row in split}
    assert both == {row["sentence"]: "ab".index(row["kind"]) for row in ROWS}


def test_a_data_set_may_have_no_labels(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("one line\nanother line\nthird\n")
    assert load_text_dataset(str(path))["train"].column_names == ["text"]


def test_what_needs_no_training_rows_gets_none(tmp_path):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(40)))
    with pytest.raises(ValueError, match=r"`dataset` must have a split `train`, got .* with \['test'\]; rename one"):
        load_text_dataset(str(tmp_path))
    splits = load_text_dataset(str(tmp_path), needs_train=False)
    assert {name: len(split) for name, split in splits.items()} == {"test": 40}


def test_limits_draw_rows_instead_of_taking_the_head(jsonl):
    first = load_text_dataset(str(jsonl), label_column="kind", max_train_samples=10, seed=1)["train"]
    again = load_text_dataset(str(jsonl), label_column="kind", max_train_samples=10, seed=1)["train"]
    held_out = [
        load_text_dataset(str(jsonl), label_column="kind", seed=seed)["validation"]["text"][:] for seed in (1, 2)
    ]
    assert held_out[0] == held_out[1]
    assert first["text"][:] == again["text"][:]
    assert set(first["text"]) != {row["sentence"] for row in ROWS[:10]}


def test_streaming_reads_the_same_columns(jsonl):
    splits = load_text_dataset(str(jsonl), text_column="sentence", streaming=True, max_train_samples=3)
    assert [row["text"] for row in splits["train"]] == [row["sentence"] for row in ROWS[:3]]


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("empty.txt", b"", {}, "empty file"),
        ("latin.txt", b"caf\xe9\n", {}, "line 1 of .*latin.txt.*iconv"),
        ("x.csv", b"text,label\na b,1\n", {"text_column": "body"}, "`text_column` must be one of the columns"),
        ("x.csv", b"text,label\na b,1\n", {"label_column": "topic"}, "`label_column` must be one of the columns"),
        ("x.csv", b"number\n1\n", {}, "`text_column` must name a column of strings"),
        ("x.jsonl", b'{"text": "a"}\n{"text": null}\n', {}, "must hold a string in every row"),
        ("x.csv", b"text,label\na b,1.5\nc,2.5\n", {}, "must be classes"),
        ("x.pdf", b"text", {}, "convert it to one"),
        ("x.csv", b"text\na\n", {"max_train_samples": 0}, "`max_train_samples` must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(tmp_path, name, content, options, message):
    with pytest.raises(ValueError, match=message):
        load_text_dataset(write(tmp_path, name, content), **options)


@pytest.mark.parametrize("name", ["./no/such/folder", "nobody/nothing"])
def test_missing_data_set_says_what_to_give(name):
    with pytest.raises(ValueError, match="`dataset` .*folder"):
        load_text_dataset(name)


def test_label_outside_its_range_is_named(tmp_path):
    from datasets import Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    Dataset.from_dict({"text": ["x y", "z"], "label": [0, -1]}, features).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="`label` .* must be from 0 to 1, got -1"):
        load_text_dataset(str(tmp_path / "x.parquet"))


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
    epoch = 1
    assert rows != list(sampler)

    def padding(order):
        batches = [[lengths[row] for row in order[start : start + 16]] for start in range(0, 1003, 16)]
        return sum(len(batch) * max(batch) - sum(batch) for batch in batches)

    assert padding(rows) < 0.3 * padding(list(range(1003)))


def test_the_last_short_batch_is_like_any_other():
    lengths = torch.randint(1, 50, (1003,)).tolist()
    averages = []
    for epoch in range(50):
        sampler = LengthGroupedSampler(lengths, batch_size=16, epoch=lambda epoch=epoch: epoch)
        averages.append(sum(lengths[row] for row in list(sampler)[-11:]) / 11)
    assert sum(averages) / 50 == pytest.approx(sum(lengths) / 1003, rel=0.1)


@pytest.mark.data
@pytest.mark.parametrize(("name", "classes"), [("yahoo", 10), ("dbpedia", 14), ("yelp", 5)])
def test_real_data_sets_load(data_dir, name, classes):
    splits = load_text_dataset(str(data_dir / name), max_train_samples=50, max_samples=20)
    assert splits["train"].num_rows == 50
    assert splits["test"].num_rows == 20
    assert splits["train"].features["label"].num_classes == classes
