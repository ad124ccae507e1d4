"""Search against products of whole matrices; an index in a folder after whatever happens to its process."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from scipy import sparse
from vector_models import small

from hsvae_hf import ApproximateIndex, HybridIndex, Index, code_lengths, decode_codes, encode_queries, encode_vectors
from hsvae_hf.index import Hit
from hsvae_hf.index_segments import SEGMENT_ROWS

ROWS, WIDTH = 400, 48


@pytest.fixture
def codes():
    """Signed codes of which one is empty."""
    draw = np.random.default_rng(0)
    matrix = sparse.random(ROWS, WIDTH, 0.15, "csr", dtype=np.float32, random_state=1)
    matrix.data = draw.standard_normal(matrix.nnz).astype(np.float32)
    matrix = matrix.tolil()
    matrix[7] = 0
    return matrix.tocsr()


def unit(codes):
    """Dense, each row at length 1 or 0."""
    dense = codes.toarray().astype(np.float64)
    return dense / np.linalg.norm(dense, axis=1, keepdims=True).clip(1e-12)


def expected(scores, k):
    """Rows of positive scores, the best `k` first."""
    order = np.argsort(-scores, kind="stable")[:k]
    return [(int(row), scores[row]) for row in order if scores[row] > 0]


def same(hits, wanted):
    assert [hit.id for hit in hits] == [row for row, _ in wanted]
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in wanted], atol=1e-5)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("parts", [1, 3])
def test_hits_are_those_of_the_whole_product(codes, similarity, parts):
    index = Index(similarity=similarity, precision="float32")
    for rows in np.array_split(np.arange(ROWS), parts):
        index.add(codes[rows])
    rows = unit(codes) if similarity == "cosine" else codes.toarray().astype(np.float64)
    found = index.search(codes[:20], k=6)
    for query in range(20):
        same(found[query], expected(rows @ rows[query], 6))
    assert found[7] == [] and len(index) == ROWS
    dense = np.random.default_rng(2).standard_normal((2, WIDTH))
    for form in (dense, torch.from_numpy(dense), sparse.coo_matrix(dense)):
        lengths = np.linalg.norm(dense, axis=1, keepdims=True) if similarity == "cosine" else 1
        for hits, query in zip(index.search(form, k=ROWS), dense / lengths, strict=True):
            same(hits, expected(rows @ query, ROWS))


def test_rows_that_come_one_by_one_make_few_segments(codes):
    index, whole = Index(), Index()
    whole.add(codes)
    for row in range(ROWS):
        index.add(codes[row])
    assert len(index.segments) < 12 and len(index) == ROWS
    assert index.search(codes[:20]) == whole.search(codes[:20])


def test_half_precision_moves_scores_by_little(codes):
    index = Index()
    index.add(codes)
    scores = unit(codes) @ unit(codes)[3]
    for hit in index.search(codes[3], k=20)[0]:
        assert hit.score == pytest.approx(scores[hit.id], abs=1e-3)
    whole = Index(precision="float32")
    whole.add(codes)
    assert index.nbytes < whole.nbytes


def test_removed_rows_are_not_found_and_their_ids_are_free(codes):
    index = Index(precision="float32")
    names = [f"row {row}" for row in range(ROWS)]
    index.add(codes[:200], ids=names[:200], texts=names[:200])
    index.add(codes[200:], ids=names[200:])
    first = index.search(codes[5])[0]
    assert first[0] == Hit("row 5", pytest.approx(1), "row 5")
    index.remove([hit.id for hit in first[:4]])
    assert index.search(codes[5], k=6)[0] == first[4:]
    assert len(index) == ROWS - 4
    index.add(codes[5], ids=["row 5"])
    assert index.search(codes[5], k=1)[0][0].id == "row 5"
    for wrong, message in (
        (lambda: index.add(codes[:1], ids=["row 9"]), "`ids` must be new"),
        (lambda: index.add(codes[:2], ids=["a", "a"]), "`ids` must be new"),
        (lambda: index.add(codes[:1]), "`ids` must be given, strings"),
        (lambda: index.add(codes[:1], ids=[1.5]), "`ids` must be whole numbers of 64 bits, or all strings"),
        (lambda: index.add(codes[:2], ids=["a"]), "`ids` must be as many as the 2 rows"),
        (lambda: index.add(codes[:, :9]), r"`rows` must be numbers, \(rows, 48\)"),
        (lambda: index.add(np.full((1, WIDTH), np.nan), ids=["n"]), "`rows` must be finite"),
        (lambda: index.add(["text"], ids=["t"]), "`encoder` must take sentences"),
        (lambda: index.remove(["row 0", "none"]), "`ids` must be in the index, got 'none'"),
        (lambda: index.remove("row 0"), "`ids` must be a list"),
        (lambda: index.remove({"row 0"}), "`ids` must be a list"),
        (lambda: index.add(codes[:2], ids=["a", 1]), "`ids` must be strings, as the first"),
        (lambda: index.add(codes[:1], ids=[True]), "`ids` must be whole numbers"),
        (lambda: index.add(codes[:1], ids=[2**70]), "`ids` must be whole numbers"),
        (lambda: index.add(codes[:1], ids=["t"], texts=["a\ud800"]), "`texts` must be valid Unicode"),
        (lambda: index.add(codes[:1], ids=["t"], texts=[5]), "`texts` must be strings, got int"),
        (lambda: index.search(codes[0], mute=3), "`mute` must be a list"),
        (lambda: index.search(codes[0], mute=[True]), "`mute` must name dimensions"),
        (lambda: index.search(codes[0], boost={0: np.nan}), "`boost` must have factors of at most"),
        (lambda: index.search(codes[0], boost=[0]), "`boost` must map dimensions"),
        (lambda: index.search("text"), "`queries` must be several strings"),
        (lambda: index.search(codes[0], k=None), "`k` and `candidates` must be at least 1"),
        (lambda: index.explain(codes[:2], "row 0"), "`query` must be a single one"),
        (lambda: Index(metadata={"a": object()}), "`metadata` must be fit for JSON"),
        (lambda: Index(similarity="dot").add(np.full((1, 4), 1e6)), "below 65,504"),
        (lambda: Index(similarity="dot").add(np.full((1, 4), 1e-9)), "above 1e-7"),
        (lambda: index.search(codes[0], k=0), "`k` must be at least 1"),
        (lambda: index.search(codes[0], rerank="vectors"), "`rerank` must be what the index keeps, None"),
        (lambda: index.search(codes[0], mute=[WIDTH]), "`mute` must name dimensions from 0 to 47"),
        (lambda: index.search(np.full((1, WIDTH), np.inf)), "`queries` must be finite"),
        (lambda: index.explain(codes[0], "none"), "`ids` must be in the index"),
        (lambda: Index(similarity="l2"), "`similarity` must be one of cosine, dot"),
        (lambda: Index(keep="codes"), "`encoder` must decode codes"),
        (lambda: Index(encoder="a path"), "`encoder` must be a SparseEncoder"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    assert len(index) == ROWS - 3 and index.search(codes[0], k=1)[0][0].id == "row 0"


def test_shares_of_a_hit_sum_to_its_score_and_steer_it(codes):
    index = Index(precision="float32")
    index.add(codes)
    query = codes[11]
    for hit in index.search(query, k=5)[0]:
        explanation = index.explain(query, hit)
        assert sum(share for _, share in explanation.contributions) == pytest.approx(hit.score, abs=1e-6)
        assert explanation.similarity == pytest.approx(hit.score, abs=1e-6) == explanation.cosine
        dimensions = {dimension for dimension, _ in explanation.contributions}
        assert dimensions == set(codes[11].indices) & set(codes[hit.id].indices)
    hit = index.search(query, k=2)[0][1]
    (dimension, share), *_ = index.explain(query, hit).contributions
    muted = {found.id: found.score for found in index.search(query, k=ROWS, mute=[dimension])[0]}
    assert muted.get(hit.id, 0) == pytest.approx(max(0, hit.score - share), abs=1e-5)
    boosted = {found.id: found.score for found in index.search(query, k=ROWS, boost={dimension: 3.0})[0]}
    assert boosted[hit.id] == pytest.approx(hit.score + 2 * share, abs=1e-5)


@pytest.mark.parametrize("keep", ["vectors", "codes"])
@pytest.mark.parametrize("vector_precision", ["float16", "int8"])
def test_the_second_stage_orders_candidates_by_vectors(keep, vector_precision, tmp_path):
    model = small(latent_size=WIDTH, vector_size=12)
    vectors = np.random.default_rng(3).standard_normal((ROWS, 12)).astype(np.float32)
    codes = encode_vectors(model, vectors, active_dims=6)
    index = Index(encoder=model, keep=keep, vector_precision=vector_precision)
    index.add(codes[:150], vectors=vectors[:150])
    index.add(codes[150:], vectors=vectors[150:])
    index.save(tmp_path / "index")
    index = Index.load(tmp_path / "index", model)
    queries = vectors[:5] + 0.3 * vectors[5:10]
    if keep == "codes":
        scores = encode_queries(model, queries) @ codes.T.toarray() / code_lengths(model, codes)
        scores /= np.linalg.norm(queries, axis=1, keepdims=True)
        assert decode_codes(model, codes).shape == vectors.shape
    else:
        scores = queries @ vectors.T
        scores /= np.linalg.norm(queries, axis=1, keepdims=True) * np.linalg.norm(vectors, axis=1)
    query_codes = encode_vectors(model, queries, active_dims=6)
    tolerance = 0.01 if vector_precision == "int8" else 2e-3
    for number, hits in enumerate(index.search(query_codes, k=4, rerank=keep, candidates=50, vectors=queries)):
        candidates = [hit.id for hit in index.search(query_codes[number], k=50)[0]]
        best = sorted(candidates, key=lambda row: -scores[number, row])[:4]
        np.testing.assert_allclose([hit.score for hit in hits], scores[number, best], atol=tolerance)
        np.testing.assert_allclose(scores[number, [hit.id for hit in hits]], scores[number, best], atol=2 * tolerance)
    with pytest.raises(ValueError, match="`vectors` must be given to rerank"):
        index.search(query_codes, rerank=keep)


def test_a_saved_index_is_the_same_and_grows_in_place(codes, tmp_path):
    index = Index(precision="float32")
    index.add(codes[:100], texts=[str(row) for row in range(100)])
    index.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index")
    assert loaded.search(codes[:9]) == index.search(codes[:9])
    before = {path.name for path in (tmp_path / "index/segments").iterdir()}
    loaded.add(sparse.vstack([codes[100:]] * 1))
    reader = Index.load(tmp_path / "index")
    loaded.remove([0, 3])
    loaded.save(tmp_path / "index")
    assert len(reader) == 100 and reader.search(codes[0], k=1)[0][0].id == 0  # it was opened before
    again = Index.load(tmp_path / "index")
    assert len(again) == ROWS - 2 and again.search(codes[:9]) == loaded.search(codes[:9])
    assert len(again.segments) == 1 and not before & {path.name for path in (tmp_path / "index/segments").iterdir()}
    again.remove([1])
    again.save(tmp_path / "index")
    assert len(Index.load(tmp_path / "index")) == ROWS - 3
    for other in (index, Index()):  # what was saved since would be lost
        with pytest.raises(ValueError, match="`folder` must be new, or as this index knows it"):
            other.save(tmp_path / "index")
    assert len(Index.load(tmp_path / "index")) == ROWS - 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="`folder` must hold an index alone"):
        index.save(tmp_path / "other")
    assert SEGMENT_ROWS > ROWS


def test_a_build_is_the_index_of_its_blocks_and_goes_on_where_it_stopped(codes, tmp_path):
    whole = Index(precision="float32")
    whole.add(codes)
    blocks = [codes[:130], codes[130:310], codes[310:]]

    def failing():
        yield from blocks[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Index.build(failing(), tmp_path / "index", segment_rows=100, precision="float32")
    with pytest.raises(ValueError, match="with an unfinished one"):
        Index.load(tmp_path / "index")
    with pytest.raises(ValueError, match="300 rows of an interrupted build"):
        Index.build(blocks, tmp_path / "index", precision="float32")
    with pytest.raises(ValueError, match="`resume` needs the settings of before"):
        Index.build(blocks, tmp_path / "index", resume=True)
    built = Index.build(blocks, tmp_path / "index", resume=True, segment_rows=100, precision="float32")
    assert built.search(codes[:30]) == whole.search(codes[:30])
    with pytest.raises(ValueError, match="`folder` must be new or empty"):
        Index.build(blocks, tmp_path / "index")
    with pytest.raises(ValueError, match="`ids` must be new"):
        Index.build(blocks, tmp_path / "twice", ids=[0] * ROWS)


def test_damaged_files_are_told(codes, tmp_path):
    index = Index()
    index.add(codes)
    index.save(tmp_path / "index")
    (segment,) = (tmp_path / "index/segments").iterdir()
    (segment / "values.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="`folder` must hold a whole index"):
        Index.load(tmp_path / "index")
    (tmp_path / "index/index.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="format 99 of another version"):
        Index.load(tmp_path / "index")
    with pytest.raises(ValueError, match="with none; build one"):
        Index.load(tmp_path / "missing")


BUILDING = """
import sys, time, numpy as np
from scipy import sparse
from hsvae_hf import Index
codes = sparse.random(40_000, 64, 0.1, "csr", dtype=np.float32, random_state=0)
def slow():
    yield codes[:10]
    time.sleep(60)
if sys.argv[2] == "wait":
    Index.build(slow(), sys.argv[1])
elif sys.argv[2] == "build":
    Index.build([codes[at : at + 500] for at in range(0, 40_000, 500)], sys.argv[1], segment_rows=1000, resume=True)
else:
    index = Index.load(sys.argv[1])
    for number in range(1000):
        index.add(codes[:1000])
        index.save(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("action", ["build", "save"])
def test_a_killed_process_leaves_a_whole_index_or_none(action, tmp_path):
    folder = tmp_path / "index"
    if action == "save":
        index = Index()
        index.add(sparse.random(1000, 64, 0.1, "csr", dtype=np.float32, random_state=0))
        index.save(folder)
    for pause in np.random.default_rng(0).uniform(0.0, 1.0, size=10):
        process = subprocess.Popen([sys.executable, "-c", BUILDING, str(folder), action])
        while not (folder / ".unfinished").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if action == "save":
            rows = len(Index.load(folder))
            assert rows % 1000 == 0 and rows >= 1000
        elif (folder / "index.json").exists():
            assert len(Index.load(folder)) == 40_000
            break
        else:
            with pytest.raises(ValueError, match="`folder` must hold an index"):
                Index.load(folder)
    if action == "build":
        subprocess.run(
            [sys.executable, "-c", BUILDING, str(folder), action], check=not (folder / "index.json").exists()
        )
        assert len(Index.load(folder)) == 40_000


def test_two_writers_get_one_clear_error(codes, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", BUILDING, str(tmp_path / "index"), "wait"])
    try:
        while not (tmp_path / "index/.unfinished").exists():
            assert process.poll() is None
            time.sleep(0.05)
        index = Index()
        index.add(codes)
        for write in (lambda: Index.build([codes], tmp_path / "index"), lambda: index.save(tmp_path / "index")):
            with pytest.raises(ValueError, match="`folder` .* is writing; wait for it"):
                write()
    finally:
        process.kill()
        process.wait()
    index.save(tmp_path / "index")
    assert len(Index.load(tmp_path / "index")) == ROWS


def test_the_order_of_equal_rows_and_scale_do_not_matter():
    index = Index(similarity="dot")
    codes = np.ones((6, 1))
    codes[2] = 2
    index.add(codes)
    for k in range(1, 7):
        assert [hit.id for hit in index.search(np.ones((1, 1)), k=k)[0]] == [2, 0, 1, 3, 4, 5][:k]
    for scale in (1e20, 1e-25):
        index = Index(precision="float32")
        index.add(np.array([[1.0, 2.0], [2.0, -1.0]]) * scale)
        (hits,) = index.search(np.array([[1.0, 2.0]]) / scale)
        assert [(hit.id, round(hit.score, 5)) for hit in hits] == [(0, 1.0)]


def test_codes_are_brought_into_one_form():
    twice = sparse.csr_matrix((np.array([2.0, 1, 3]), np.array([0, 0, 1]), np.array([0, 3])), shape=(1, 4))
    index = Index(similarity="dot")
    index.add(twice)
    assert index.search(np.ones((1, 4)))[0][0].score == index.explain(np.ones(4), 0).similarity == 6
    wrong = sparse.csr_matrix((np.ones(2), np.array([0, 1]), np.array([0, 2])), shape=(1, 4))
    wrong.indices[1] = 9
    with pytest.raises(ValueError, match="`rows` must be a valid sparse matrix"):
        index.add(wrong)
    index.add(np.zeros((0, 4)))
    index.add([[0.0, 0, 0, 5]])
    assert [hit.id for hit in index.search([[0.0, 0, 0, 1]])[0]] == [1]
    index.remove([0, 1])
    assert index.search(np.ones((1, 4))) == [[]]


def test_an_emptied_index_goes_on_and_numbers_are_not_given_twice(tmp_path):
    index = Index()
    index.add(np.eye(3))
    index.remove([1, 2])
    index.save(tmp_path / "index")
    index = Index.load(tmp_path / "index")
    index.add(np.eye(3)[:1])
    assert [hit.id for hit in index.search(np.eye(3)[:1])[0]] == [0, 3]
    index.remove([0, 3])
    index.save(tmp_path / "index")
    index = Index.load(tmp_path / "index")
    assert len(index) == 0 and index.search(np.eye(3)) == [[], [], []]
    index.add(np.eye(3))
    assert [hit.id for hit in index.search(np.eye(3)[:1])[0]] == [4]


def test_another_copy_of_an_index_is_not_lost(codes, tmp_path):
    index = Index()
    index.add(codes[:10])
    index.save(tmp_path / "index")
    first, second = Index.load(tmp_path / "index"), Index.load(tmp_path / "index")
    first.add(codes[10:20])
    first.save(tmp_path / "index")
    second.remove([1])
    with pytest.raises(ValueError, match="that was changed since; load it"):
        second.save(tmp_path / "index")
    assert len(Index.load(tmp_path / "index")) == 20
    shutil.rmtree(tmp_path / "index")
    first.save(tmp_path / "index")  # its files are open still
    assert len(Index.load(tmp_path / "index")) == 20
    (tmp_path / "index/segments/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="mine.txt"):
        first.save(tmp_path / "index")


def test_vectors_are_checked_before_anything_is_added(codes):
    index = Index(keep="vectors")
    index.add(codes[:3], vectors=np.ones((3, 2)))
    for vectors, message in (
        (np.ones((3, 3)), "must have 2 numbers"),
        (np.ones((2, 2)), "must be as many as the 3 rows"),
        (np.ones(3), r"must be numbers, \(rows, size\)"),
        (np.full((3, 2), np.nan), "must be finite, got NaN or infinity in row 0"),
    ):
        with pytest.raises(ValueError, match=f"`vectors` {message}"):
            index.add(codes[3:6], vectors=vectors)
    assert len(index) == 3
    with pytest.raises(ValueError, match="`vectors` must have 2 numbers"):
        index.search(codes[:1], rerank="vectors", vectors=np.ones((1, 5)))
    large = Index(keep="vectors")
    large.add(codes[:3], vectors=np.array([[3e30, 0], [0, 3e30], [1e-30, 1e-30]], dtype=np.float32))
    (hits,) = large.search(codes[:1], k=3, rerank="vectors", vectors=np.float32([[1e30, 0]]))
    assert hits[0].id == 0 and hits[0].score == pytest.approx(1)


def test_resuming_needs_the_same_rows(codes, tmp_path):
    def failing(matrix):
        yield matrix[:100].toarray()
        raise RuntimeError

    for number, (rows, ids, message) in enumerate(
        [
            ([codes[1:]], None, "`rows` must be those of before"),
            ([codes[:50]], None, "`rows` must be those of before"),
            ([codes], range(5, 5 + ROWS), "`ids` must be those of before"),
            ([torch.from_numpy(codes.toarray())], None, None),
            (codes, None, None),
        ]
    ):
        folder = tmp_path / str(number)
        with pytest.raises(RuntimeError):
            Index.build(failing(codes), folder, segment_rows=40)
        if message is None:
            assert len(Index.build(rows, folder, resume=True)) == ROWS
        else:
            with pytest.raises(ValueError, match=message):
                Index.build(rows, folder, ids=ids, resume=True)
    with pytest.raises(ValueError, match="`ids` must be as many as the 400 rows"):
        Index.build([codes], tmp_path / "more", ids=range(ROWS + 1))
    for rows in ({"a", "b"}, {"text": ["a"]}, "text"):
        with pytest.raises(ValueError, match="`rows` must be sentences or blocks of codes"):
            Index.build(rows, tmp_path / "unordered")
    index = Index.build([codes], tmp_path / "named", ids=range(7, 7 + ROWS))
    index.add(codes[:1])
    assert index.search(codes[:1], k=2)[0][1].id == 7 + ROWS and index.search([]) == []


def test_words_and_codes_are_fused_by_rank(codes):
    pytest.importorskip("bm25s", reason="bm25s, of the extra `search`, is missing")

    class Encoder:
        """Gives the code of a text's number."""

        similarity_fn_name = "cosine"

        def encode_document(self, texts, **options):
            return torch.from_numpy(codes[[int(text.split()[-1]) - 100 for text in texts]].toarray()).to_sparse()

        encode_query = encode_document

        def modules(self):
            return []

    texts = [f"{'apple' if row % 3 else 'pear'} number {row + 100}" for row in range(60)]
    index = Index(Encoder())
    index.add(texts)
    hybrid = HybridIndex(index)
    query = ["apple 105"]
    by_codes = [hit.id for hit in index.search(query, k=100)[0]]
    by_words = [row for row in [5] + [row for row in range(60) if row % 3 and row != 5]]
    scores = {
        row: sum(1 / (60 + ranks.index(row) + 1) for ranks in (by_codes, by_words) if row in ranks) for row in range(60)
    }
    hits = hybrid.search(query, k=8)[0]
    assert hits[0].id == 5 and hits[0].text == texts[5]
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores.values(), reverse=True)[:8])
    assert [hit.id for hit in hybrid.search(["nothing 101"], k=1)[0]] == [1]
    index.remove([5])
    index.add(["apple tart 109"], ids=[5])
    assert hybrid.by_words(["tart"], 3)[0][0].text == "apple tart 109"
    empty = Index(Encoder())
    assert HybridIndex(empty).search(["word 101"]) == [[]]
    bare = Index()
    bare.add(codes)
    with pytest.raises(ValueError, match="`index` must have the text of every row"):
        HybridIndex(bare)


def test_approximate_hits_have_exact_scores():
    pytest.importorskip("seismic", reason="pyseismic-lsr, of the extra `seismic`, is missing")
    draw = np.random.default_rng(5)
    centres = sparse.random(60, WIDTH, 0.15, "csr", dtype=np.float32, random_state=6)
    centres.data = draw.standard_normal(centres.nnz).astype(np.float32)
    codes = sparse.vstack([centres] * 20, format="csr")
    codes.data *= 1 + 0.3 * draw.standard_normal(codes.nnz).astype(np.float32)
    index = Index(precision="float32")
    index.add(codes)
    index.remove([3])
    approximate = ApproximateIndex(index)
    wanted, found = index.search(codes[:30]), approximate.search(codes[:30], candidates=40)
    kept = [len({hit.id for hit in a} & {hit.id for hit in b}) / 10 for a, b in zip(wanted, found, strict=True)]
    assert np.mean(kept) > 0.9 and all(hit.id != 3 for hits in found for hit in hits)
    scores = {hit.id: hit.score for hit in index.search(codes[4], k=len(index))[0]}
    for hit in found[4]:
        assert hit.score == pytest.approx(scores[hit.id], abs=1e-5)
    assert approximate.search(np.zeros((1, WIDTH))) == [[]]
    index.remove([4])
    assert all(hit.id != 4 for hits in approximate.search(codes[:30]) for hit in hits)
    assert ApproximateIndex(Index()).search(np.zeros((0, WIDTH))) == []
    with pytest.raises(ValueError, match="`summary_energy` must be above 0"):
        ApproximateIndex(index, summary_energy=0)
