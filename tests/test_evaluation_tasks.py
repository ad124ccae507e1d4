"""Tasks from folders of files, and from the real ones."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vector_models import as_sentence_transformers

from hsvae_hf.embedding_cache import load_encoder_tokenizer
from hsvae_hf.encoding import sentence_vectors
from hsvae_hf.evaluation_tasks import find_tasks, frozen_encoder, load_tasks
from hsvae_hf.models import HSVAEForPreTraining


def embed(texts):
    """Vectors that tell their text: its length, and its number of words."""
    return np.array([[len(text), len(text.split()), 1.0] for text in texts])


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.fixture
def suite(tmp_path, sentences, labels):
    folder = tmp_path / "suite"
    write(folder / "search/docs/corpus.parquet", id=["a", "b", "c"], title=["T", "", None], text=["one", "two", "six"])
    write(folder / "search/docs/queries.parquet", id=["p", "q"], text=["one?", "two?"])
    write(folder / "search/docs/qrels.parquet", query=["q", "p", "q"], document=["b", "a", "c"], relevance=[4, 1, 2])
    for split in ("validation", "test"):
        write(folder / f"pairs/{split}.parquet", sentence1=["a", split], sentence2=["b c", "d"], score=[5, 0.5])
    for split in ("train", "test"):
        write(folder / f"topics/{split}.parquet", text=sentences, label=labels)
    write(folder / "plain/train.parquet", text=sentences)
    return folder


def test_a_folder_tells_the_kind_of_its_task(suite, sentences):
    assert list(find_tasks(suite)) == ["docs", "pairs", "topics"]
    docs, pairs, topics = load_tasks(suite, embed)
    assert (docs.kind, docs.split, pairs.kind, pairs.split) == ("retrieval", "all", "similarity", "test")
    assert docs.texts["corpus"] == ["T one", "two", "six"]
    assert docs.relevance.toarray().tolist() == [[1, 0, 0], [0, 4, 2]]
    assert docs.vectors["queries"].tolist() == [[4, 1, 1], [4, 1, 1]]
    assert docs.training.shape == (3, 3)
    assert pairs.scores.tolist() == [5, 0.5]
    assert pairs.texts["first"] == ["a", "test"]
    assert (topics.kind, topics.texts["test"]) == ("classification", sentences)
    assert topics.labels["test"].tolist() == [0] * 4 + [2] * 4 + [1] * 4  # in the order of the names
    assert next(load_tasks(suite, embed, tasks=["PAIRS"], split="validation")).texts["first"] == ["a", "validation"]


@pytest.mark.parametrize("name", ["max_samples", "max_train_samples"])
@pytest.mark.parametrize("number", [0, -1, 1.5])
def test_a_number_of_rows_that_is_none_is_refused_at_once(suite, name, number):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, a whole number, got {number}"):
        load_tasks(suite, embed, **{name: number})


def test_files_of_all_tasks_are_looked_at_at_once(suite, tmp_path):
    place = tmp_path / "vectors"
    place.mkdir()
    shapes = {"docs-corpus": (3, 4), "docs-queries": (2, 4), "pairs-test-1": (2, 4), "pairs-test-2": (2, 4)}
    for name, shape in (shapes | {"topics-train": (12, 4), "topics-test": (12, 4)}).items():
        np.save(place / f"{name}.npy", np.ones(shape))
    assert len(list(load_tasks(suite, vectors_dir=place))) == 3
    for wrong, message in [
        (np.ones((11, 4)), "a vector for each of the 12 rows of topics, test, got 11; encode them again"),
        (np.ones((12, 3)), "vectors of one width, got 3 in topics-test.npy and 4 in"),
        (np.ones(12), r"numbers, \(rows, size\), got float64 of \(12,\) in topics-test.npy"),
        (np.array([None] * 12), "arrays of numbers, got topics-test.npy"),
    ]:
        np.save(place / "topics-test.npy", wrong)
        with pytest.raises(ValueError, match=f"`vectors_dir` must hold {message}"):
            load_tasks(suite, vectors_dir=place)
    (suite / "topics/test.parquet").rename(suite / "topics/other.parquet")
    (suite / "pairs/validation.parquet").unlink()
    with pytest.raises(ValueError, match="`split` must be one of pairs's, got 'validation'"):
        load_tasks(suite, embed, split="validation")


def test_names_of_tasks_are_a_list_and_each_is_there_once(suite, sentences):
    with pytest.raises(ValueError, match="`tasks` must be several strings, got the single string 'pairs'"):
        load_tasks(suite, embed, tasks="pairs")
    write(suite / "other/pairs/test.parquet", sentence1=["a"], sentence2=["b"], score=[1])
    with pytest.raises(ValueError, match="`suite` must hold one task of each name, got .*pairs' and .*pairs'; rename"):
        load_tasks(suite, embed)


def test_a_task_may_be_a_link(suite, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("search/docs", "pairs"):
        (linked / name.replace("search/", "")).symlink_to(suite / name)
    (linked / "again").symlink_to(linked)  # leads back up
    found = find_tasks(linked)
    assert found == {"docs": linked / "docs", "pairs": linked / "pairs"}
    assert [task.name for task in load_tasks(linked, embed)] == ["docs", "pairs"]


def test_validation_rows_are_held_out_of_train(suite):
    (topics,) = load_tasks(suite, embed, tasks=["topics"], split="validation")
    assert len(topics.texts["test"]) == 3
    assert len(topics.texts["train"]) == 9
    assert not set(topics.texts["test"]) & set(topics.texts["train"])
    (few,) = load_tasks(suite, embed, tasks=["topics"], max_samples=5, max_train_samples=7)
    assert (len(few.vectors["test"]), len(few.vectors["train"])) == (5, 7)
    np.testing.assert_array_equal(few.vectors["test"], embed(few.texts["test"]))


def test_equal_rows_are_one_neighbour(suite):
    (pairs,) = load_tasks(suite, lambda texts: np.array([[len(text)] for text in texts]), tasks=["pairs"])
    assert pairs.pool().tolist() == [0, 1, 2]  # of the lengths 1, 4, 3, 1
    assert len(pairs.pool(limit=2)) == 2


def test_vectors_come_from_files(suite, tmp_path, sentences):
    folder = tmp_path / "vectors"
    folder.mkdir()
    parts = {"docs-corpus": 3, "docs-queries": 2, "pairs-test-1": 2, "pairs-test-2": 2, "topics-test": 12}
    for name, rows in (parts | {"topics-train": 4}).items():
        np.save(folder / f"{name}.npy", np.random.default_rng(0).normal(size=(rows, 3)))
    np.save(folder / "topics-train-labels.npy", np.array(["cities", "animals", "numbers", "cities"]))
    docs, pairs, topics = load_tasks(suite, vectors_dir=folder)
    np.testing.assert_array_equal(docs.vectors["corpus"], np.load(folder / "docs-corpus.npy"))
    np.testing.assert_array_equal(pairs.vectors["second"], np.load(folder / "pairs-test-2.npy"))
    assert topics.labels["train"].tolist() == [1, 0, 2, 1]
    assert not topics.texts  # the rows of one part are in an order of their own
    np.save(folder / "docs-corpus.npy", np.zeros((2, 3)))
    with pytest.raises(ValueError, match="a vector for each of the 3 rows of docs, corpus, got 2"):
        next(load_tasks(suite, vectors_dir=folder))
    (folder / "docs-corpus.npy").unlink()
    with pytest.raises(ValueError, match=r"`vectors_dir` must hold docs-corpus.npy"):
        next(load_tasks(suite, vectors_dir=folder))


def test_what_is_wrong_is_told(suite, tmp_path):
    for options, words in (
        ({"split": "train"}, "`split` must be one of validation, test, got 'train'"),
        ({"embed": None}, "Give exactly one of `embed` and `vectors_dir`, got neither"),
        ({"vectors_dir": "here"}, "got both"),
        ({"tasks": ["topic"]}, "`tasks` must be one of docs, pairs, topics, got 'topic'; did you mean topics?"),
    ):
        with pytest.raises(ValueError, match=words):
            load_tasks(suite, **({"embed": embed} | options))
    with pytest.raises(ValueError, match="`suite` must be a folder with tasks"):
        load_tasks(tmp_path / "nothing", embed)
    with pytest.raises(ValueError, match="`vectors` of docs, corpus, must be finite"):
        next(load_tasks(suite, lambda texts: np.full((len(texts), 2), np.nan)))
    write(suite / "search/docs/qrels.parquet", query=["q"], document=["z"], relevance=[1])
    with pytest.raises(ValueError, match="`qrels` of docs must name queries and documents, got 'z'"):
        next(load_tasks(suite, embed))


def test_a_frozen_encoder_gives_its_vectors(encoder, sentences, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    as_sentence_transformers(encoder)
    model = HSVAEForPreTraining.from_encoder_pretrained(str(encoder), decoder_type="vector", latent_size=1).eval()
    tokenizer = load_encoder_tokenizer(str(encoder))
    expected = sentence_vectors(model, tokenizer, sentences)
    np.testing.assert_allclose(frozen_encoder(str(encoder))(sentences), expected, atol=1e-6)


@pytest.mark.data
def test_the_real_sets(data_dir):
    cisi, cranfield, stsb = load_tasks(data_dir / "eval", embed, tasks=["cisi", "cranfield", "stsb"])
    assert cranfield.relevance.shape == (225, 1400)
    assert np.bincount(cranfield.relevance.data).tolist() == [0, 588, 734, 387, 128]
    assert (cisi.relevance.shape, len(np.unique(cisi.relevance.nonzero()[0]))) == ((57, 1460), 50)
    assert (len(stsb.scores), stsb.scores.min(), stsb.scores.max()) == (1379, 0, 5)
    (banking,) = load_tasks(data_dir, embed, tasks=["banking77"], split="validation", max_samples=None)
    assert len(np.unique(banking.labels["test"])) == 77
