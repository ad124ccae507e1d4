"""One reader of files: what it takes, what it refuses and in which line, the same for training and for embedding."""

import os

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hsvae_hf.data import load_text_dataset
from hsvae_hf.text_files import read_sentences

RUSSIAN = "\u043f\u0440\u0438\u0432\u0435\u0442"


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def loaded(path, **options):
    """Sorted texts of all splits, for training."""
    splits = load_text_dataset(str(path), **options)
    return sorted(row["text"] for split in splits.values() for row in split)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "text,label\n,1\nbad,0\n", ["", "bad"]),
        ("a.csv", "text,label\nfine,1,\nbad,0,\n", ["fine", "bad"]),  # a comma at every line's end but the header's
        ("a.csv", "text,label,\nfine,1,\nbad,0,\n", ["fine", "bad"]),
        ("a.csv", '"text";"label"\n"fine; or so";1\nbad;0\n', ["fine; or so", "bad"]),
        ("a.csv", "text;label\nfine, or so;1\nbad, then;0\n", ["fine, or so", "bad, then"]),
        ("a.csv", "text\tlabel\nfine, or so\t1\nbad; then\t0\n", ["fine, or so", "bad; then"]),
        ("a.tsv", "label\ttext\n1\tfine, or so\n0\tbad\n", ["fine, or so", "bad"]),
        ("A.CSV", "text,label\r\nfine,1\r\nbad,0\r\n", ["fine", "bad"]),
        ("a.csv", "\ufefftext,label\nfine,1\nbad,0\n", ["fine", "bad"]),
        ("a.csv", 'text,label\n"two\nlines, ""quoted""",1\n\nbad,0\n\n', ['two\nlines, "quoted"', "bad"]),
        ("a.csv", "text,label\nNA,1\nnull,0\n1,1\n", ["NA", "null", "1"]),
        ("a.csv", "text\nfine\n\nbad\n", ["fine", "", "bad"]),
        ("a.csv", " text, label\nfine,1\nbad,0\n", ["fine", "bad"]),
        ("a.csv", ",text,label\n0,fine,1\n1,bad,0\n", ["fine", "bad"]),  # an index of pandas
        ("a.jsonl", '{"text": "fine"}\n\n  \n{"text": "bad", "more": 1}\n\n', ["fine", "bad"]),
        ("a.json", '[{"text": "fine"}, {"text": "bad"}]', ["fine", "bad"]),
        ("a.json", '{"text": "fine"}\n{"text": "bad"}\n', ["fine", "bad"]),
        ("a.txt", "fine\n\nbad\n", ["fine", "", "bad"]),
        ("a.txt", "\ufefffine\r\nso\u2028so\x85\x0c so\r\nold\rmac", ["fine", "so\u2028so\x85\x0c so", "old", "mac"]),
    ],
)
def test_training_and_embedding_read_the_same(tmp_path, name, content, expected):
    path = write(tmp_path, name, content)
    assert list(read_sentences(path)) == expected
    assert loaded(path) == sorted(filter(None, expected))  # blank texts are no training rows
    assert loaded(path, streaming=True, with_labels=False) == sorted(filter(None, expected))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nfine,1\nsentence 1, and more,0\n", "2 cells in every line.*got 3 in line 3"),
        ("a.csv", 'text,label\n"a\nb",1\nc, d,0\n', "got 3 in line 4"),
        ("a.csv", "text,label\nfine,1,\nbad,0\n", "3 cells in every line.*got 2 in line 3"),
        ("a.csv", "text,label\nfine\n", "got 1 in line 2"),
        ("a.csv", "text,label,text\na,1,b\n", r"different names, got \['text'\]"),
        ("a.csv", 'text,label\n"open,1\nb,0\n', "damaged in the row that begins in line 2"),
        ("a.csv", "text,label\n", "empty file"),
        ("a.csv", "\n\n", "must begin with a line of column names"),
        ("a.csv", "great movie,1\nbad one,0\n", "put a line of column names above it"),
        ("a.csv", b"text\ncaf\xe9\n", "0xe9 in line 2, byte offset 8.*iconv"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": \n', "damaged in line 3"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', "JSON object per line.*in line 2"),
        ("a.jsonl", '{"text": "a"}\n{"body": "b"}\n', "got only body in line 2"),
        ("a.jsonl", '{"text": "a"}\n{"text": null}\n', "a string in every row, got NoneType 'None' in line 2"),
        ("a.jsonl", '{"text": "\\ud83d"}\n', "half a surrogate pair"),
        ("a.jsonl", "[" * 100_000, "damaged in line 1"),
        ("a.json", '[{"text": "a"}', "damaged in its array"),
        ("a.json", '[{"text": "a"}, 5]', "got '5' in row 2"),
        ("a.txt", "fine".encode("utf-16"), "0xff in line 1.*utf-16"),
        ("a.txt", b"fine\nPK\x00\x01", "0x00 in line 2"),
        ("a.parquet", b"PAR1 no more", "intact .parquet file"),
        ("a.parquet", b"", "empty file"),
    ],
)
def test_what_cannot_be_read_is_refused_by_both_with_its_line(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    for read in (lambda: list(read_sentences(path)), lambda: load_text_dataset(str(path))):
        with pytest.raises(ValueError, match=message) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_parquet_of_every_kind_of_string_and_of_nothing_else(tmp_path):
    path = tmp_path / "a.parquet"
    words = pa.array(["fine", "bad", RUSSIAN])
    for column in (words, words.cast(pa.large_string()), words.dictionary_encode(), words.cast(pa.string_view())):
        pq.write_table(pa.table({"id": [1, 2, 3], "text": column}), path)
        assert list(read_sentences(path)) == words.to_pylist()
        assert loaded(path) == sorted(words.to_pylist())
    pandas.DataFrame({"text": pandas.Categorical(["fine", "bad"])}).to_parquet(path)
    assert loaded(path) == ["bad", "fine"]
    for column, message in (([["a"]], "must name a column of strings"), (["a", None], "NoneType 'None' in row 2")):
        pq.write_table(pa.table({"text": column}), path)
        for read in (lambda: list(read_sentences(path)), lambda: load_text_dataset(str(path))):
            with pytest.raises(ValueError, match=message):
                read()


def test_a_damaged_end_is_told_after_its_rows(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"sentence {i}" for i in range(5000)]}), path, row_group_size=1000)
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + 2000] = bytes(2000)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"got one damaged after row \d+"):
        list(read_sentences(path))


def test_a_file_that_changed_is_read_again(tmp_path):
    path = write(tmp_path, "a.txt", "one\ntwo\n")
    assert loaded(path) == ["one", "two"]
    path.write_text("one\nthree\n")
    assert loaded(path) == ["one", "three"]
    before = path.stat()
    path.write_text("one\neight\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time, as of a copy
    assert loaded(path) == ["eight", "one"]


def test_sentences_are_read_as_they_are_asked_for(tmp_path):
    path = write(tmp_path, "a.csv", "text\n" + "fine\n" * 5000 + '"open\n')
    sentences = read_sentences(path)
    assert [next(sentences) for _ in range(5000)] == ["fine"] * 5000
    with pytest.raises(ValueError, match="begins in line 5002"):
        next(sentences)
