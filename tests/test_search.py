"""The script that indexes a file and asks it."""

import csv
import json

import numpy as np
import pytest
from vector_models import script

from hsvae_hf import Index, encode
from hsvae_hf.loading import load_for_inference


@pytest.fixture
def reviews(tmp_path, sentences):
    """A file of sentences with ids."""
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["number", "review"], *([f"r{row}", text] for row, text in enumerate(sentences))])
    return path


def asked(capsys, *arguments):
    """The lines that a query prints."""
    capsys.readouterr()
    script("search", "query", *arguments)
    return capsys.readouterr().out.strip().splitlines()


def test_a_file_is_indexed_and_asked(reviews, saved_model, sentences, tmp_path, capsys):
    folder = tmp_path / "index"
    columns = ["--text_column", "review", "--id_column", "number"]
    script("search", "index", "--input", reviews, "--encoder", saved_model, "--index", folder, *columns)
    assert str(folder) in capsys.readouterr().out
    (line,) = asked(capsys, "--index", folder, "--query", sentences[3], "--k", 4, "--json")
    hits = json.loads(line)["hits"]
    codes = encode(*load_for_inference(saved_model), sentences).toarray()
    unit = codes / np.linalg.norm(codes, axis=1, keepdims=True).clip(1e-12)
    scores = np.sort(unit @ unit[3])[::-1][:4]
    assert [hit["score"] for hit in hits] == pytest.approx(scores.tolist(), abs=2e-3)
    assert all(hit["text"] == sentences[int(hit["id"][1:])] and hit["reasons"] for hit in hits)
    shares = [reason["share"] for reason in hits[0]["reasons"]]
    assert len(shares) == 3 and shares == sorted(shares, key=abs, reverse=True)
    muted = hits[1]["reasons"][0]
    (line,) = asked(
        capsys, "--index", folder, "--query", sentences[3], "--k", 9, "--json", "--mute", muted["dimension"]
    )
    again = next(hit for hit in json.loads(line)["hits"] if hit["id"] == hits[1]["id"])
    assert again["score"] == pytest.approx(hits[1]["score"] - muted["share"], abs=2e-3)
    assert muted["dimension"] not in [reason["dimension"] for reason in again["reasons"]]
    shown = asked(capsys, "--index", folder, "--query", sentences[3], sentences[5], "--k", 2)
    assert sum(text.startswith("  0") or text.startswith("  1") for text in shown) == 4
    assert len(Index.load(folder)) == len(sentences)


def test_an_index_is_exported(reviews, saved_model, sentences, tmp_path):
    folder, output = tmp_path / "index", tmp_path / "codes.ndjson"
    script(
        "search", "index", "--input", reviews, "--encoder", saved_model, "--index", folder, "--text_column", "review"
    )
    script("search", "export", "--index", folder, "--format", "opensearch", "--output", output)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["text"] for line in lines[1::2]] == list(sentences)
    assert all(value > 0 for line in lines[1::2] for value in line["code"].values())


def test_questions_may_be_typed(reviews, saved_model, sentences, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "index"
    script(
        "search", "index", "--input", reviews, "--encoder", saved_model, "--index", folder, "--text_column", "review"
    )
    typed = iter([sentences[0], "", "not read"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    lines = asked(capsys, "--index", folder, "--interactive", "--json")
    assert [json.loads(line)["query"] for line in lines] == [sentences[0]]


def test_a_log_says_how_far_indexing_is(reviews, saved_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hsvae_hf.console.LINE_SECONDS", 0)
    options = ["--encoder", saved_model, "--index", tmp_path / "index", "--text_column", "review"]
    script("search", "index", "--input", reviews, *options)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("index: ")]
    assert [int(line.split()[1]) for line in lines] == list(range(1, 13))


def test_what_cannot_be_is_refused(reviews, saved_model, tmp_path, refused):
    made = ["--encoder", saved_model, "--index", tmp_path / "index"]
    assert "`text_column`" in refused("search", "index", "--input", reviews, *made, "--text_column", "words")
    assert "`id_column`" in refused("search", "index", "--input", reviews, *made, "--id_column", "x")
    assert "`input`" in refused("search", "index", "--input", tmp_path / "none.csv", *made)
    assert "did you mean" in refused("search", "qury")
    assert "`query` must be given" in refused("search", "query", "--index", tmp_path / "index")
    assert "`index` must hold an index" in refused("search", "query", "--index", tmp_path / "index", "--query", "a")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": 5}\n')
    assert "must hold a string in every row" in refused("search", "index", "--input", tmp_path / "bad.jsonl", *made)
    assert "`split` must be left out" in refused("search", "index", "--input", reviews, *made, "--split", "test")
    index = Index()
    index.add(np.eye(3))
    index.save(tmp_path / "index")
    assert "`index` must be a new folder" in refused("search", "index", "--input", reviews, *made)
    assert "part of what is read" in refused(
        "search", "export", "--index", tmp_path / "index", "--format", "dicts", "--output", tmp_path / "index/a.jsonl"
    )
    assert "`encoder` must be given" in refused("search", "query", "--index", tmp_path / "index", "--query", "a")
