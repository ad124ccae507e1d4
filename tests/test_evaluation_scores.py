"""Scores against naive loops and the libraries that others measure with."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse
from sklearn.neighbors import KNeighborsClassifier

from hsvae_hf import evaluation_scores as scores_of
from hsvae_hf.statistics import neighbours_kept


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.fixture
def ranking(generator):
    """Similarities of 20 queries and 150 documents, and a graded relevance; the last query has no answer."""
    similarity = generator.normal(size=(20, 150)).astype(np.float32)
    relevance = generator.choice([0, 1, 2, 4], p=[0.9, 0.05, 0.03, 0.02], size=(20, 150))
    relevance[-1] = 0
    return similarity, sparse.csr_matrix(relevance)


def test_rankings_are_scored_as_by_a_naive_loop(ranking):
    similarity, relevance = ranking
    ndcg, recall = [], []
    for scores, gains in zip(similarity[:-1], relevance.toarray()[:-1], strict=True):
        order = sorted(range(150), key=lambda document: -scores[document])
        found = sum(gains[order[rank]] / math.log2(rank + 2) for rank in range(10))
        best = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(sorted(gains, reverse=True)[:10]))
        ndcg.append(found / best)
        recall.append(sum(gains[document] > 0 for document in order[:100]) / (gains > 0).sum())
    expected = {"ndcg@10": pytest.approx(np.mean(ndcg)), "recall@100": pytest.approx(np.mean(recall))}
    assert scores_of.ranking_scores(similarity, relevance) == expected
    with pytest.raises(ValueError, match="`relevance` must have a relevant document"):
        scores_of.ranking_scores(similarity, relevance * 0)


def test_rankings_are_scored_as_by_trec_eval(ranking):
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="pytrec-eval-terrier, of the extra `eval`, is missing")
    similarity, relevance = ranking
    rows, columns = relevance.nonzero()
    qrels, run = {}, {}
    for query, document in zip(rows, columns, strict=True):
        qrels.setdefault(str(query), {})[str(document)] = int(relevance[query, document])
    for query, scores in enumerate(similarity):
        run[str(query)] = {str(document): float(score) for document, score in enumerate(scores)}
    judged = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100"}).evaluate(run)
    assert len(judged) == 19
    found = scores_of.ranking_scores(similarity, relevance)
    assert found["ndcg@10"] == pytest.approx(np.mean([query["ndcg_cut_10"] for query in judged.values()]))
    assert found["recall@100"] == pytest.approx(np.mean([query["recall_100"] for query in judged.values()]))


@pytest.mark.parametrize("count", [1, 3, 20, 40, 60])
def test_of_equals_the_first_is_nearest(generator, count):
    similarity = generator.integers(0, 4, size=(30, 40)).astype(float)
    expected = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    assert (scores_of.nearest(similarity, count) == expected).all()


def test_similarities_are_the_same_for_dense_and_sparse_codes(generator):
    first, second = (generator.normal(size=(6, 50)) * (generator.random((6, 50)) < 0.2) for _ in range(2))
    first[0] = 0
    norms = np.linalg.norm(first, axis=1)[:, None] * np.linalg.norm(second, axis=1)
    expected = first @ second.T / np.where(norms > 0, norms, 1)
    wide = [
        sparse.csr_matrix((part.data, part.indices, part.indptr), (6, 9000))
        for part in map(sparse.csr_matrix, (first, second))
    ]
    for pair in ((first, second), (sparse.csr_matrix(first), sparse.csr_matrix(second)), wide):
        np.testing.assert_allclose(scores_of.cosine(*pair), expected, atol=1e-6)
        np.testing.assert_allclose(scores_of.dot(*pair), first @ second.T, atol=1e-5)


def test_neighbours_are_those_of_neighbours_kept(generator):
    vectors = generator.normal(size=(120, 8))
    codes = sparse.csr_matrix(vectors * (np.abs(vectors) > 0.6))
    reference = scores_of.reference_neighbours(vectors)
    similarity = scores_of.dot(codes, codes)
    found = scores_of.neighbour_scores(similarity, reference, candidates=30)
    assert found["neighbours@10"] == pytest.approx(neighbours_kept(vectors, codes))
    kept = 0
    for row in range(120):
        order = [other for other in np.argsort(-similarity[row], kind="stable") if other != row][:30]
        kept += len(set(order) & set(reference[row]))
    assert found["candidates@30"] == pytest.approx(kept / 1200)
    assert scores_of.neighbour_scores(scores_of.cosine(vectors, vectors), reference)["neighbours@10"] == 1.0


def test_nearest_rows_vote_as_in_sklearn(generator):
    train, test = generator.normal(size=(200, 4)), generator.normal(size=(80, 4))
    labels, truth = generator.integers(0, 2, 200), generator.integers(0, 2, 80)
    judge = KNeighborsClassifier(9, metric="cosine").fit(train, labels)  # of two classes nine votes are never equal
    found = scores_of.knn_accuracy(scores_of.cosine(test, train), labels, truth, count=9)
    assert found == pytest.approx(judge.score(test, truth))


def test_equal_votes_go_to_the_more_similar_class():
    similarity = np.array([[0.9, 0.1, 0.4, 0.5], [-0.1, -0.9, -0.2, -0.3]])
    labels = np.array([0, 0, 1, 1])
    assert scores_of.knn_accuracy(similarity, labels, np.array([0, 1]), count=4) == 1.0


def test_clusters_of_codes_that_are_classes_have_v_measure_one(generator):
    labels = np.repeat([0, 1, 2], 40)
    codes = np.eye(3)[labels] * generator.uniform(0.1, 9, size=(120, 1))  # lengths must not matter
    assert scores_of.v_measure(sparse.csr_matrix(codes), labels) == pytest.approx(1)
    assert scores_of.v_measure(generator.normal(size=(120, 3)), labels) < 0.2


def test_probing_finds_the_dimension_of_a_class(generator):
    labels, truth = generator.integers(0, 3, 300), generator.integers(0, 3, 150)

    def code(classes):
        codes = 0.01 * generator.normal(size=(len(classes), 20))
        codes[np.arange(len(classes)), 5 + classes] += 3.0
        return sparse.csr_matrix(codes)

    assert scores_of.sparse_probing(code(labels), labels, code(truth), truth, 1) == pytest.approx(1)
    noise = generator.normal(size=(300, 20)), generator.normal(size=(150, 20))
    assert scores_of.sparse_probing(noise[0], labels, noise[1], truth, 1) == pytest.approx(0.5, abs=0.1)
    shared = np.column_stack([labels == 0, labels == 0, generator.random(300) < 0.5]).astype(float)
    found = scores_of.sparse_probing(shared, labels, shared, labels, 1)
    assert found == pytest.approx((1 + 0.75 + 0.75) / 3, abs=0.05)  # class 0 exactly, of the others that it is not 0


def test_explained_variance_of_principal_components_is_their_share(generator):
    vectors = generator.normal(size=(50, 6)) * [5, 3, 1, 1, 1, 1] + 4
    _, values, directions = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    decoded = vectors.mean(0) + (vectors - vectors.mean(0)) @ directions[:2].T @ directions[:2]
    expected = (values[:2] ** 2).sum() / (values**2).sum()
    assert scores_of.explained_variance(vectors, decoded) == pytest.approx(expected)


def test_sparsity_is_counted_as_by_hand(generator):
    codes = (generator.random((200, 30)) < np.linspace(0, 0.5, 30)) * generator.normal(size=(200, 30))
    codes[:, -1] = 1.0
    codes[7] = 0
    lengths = generator.permutation(200)
    found = scores_of.sparsity_scores(sparse.csr_matrix(codes), lengths)
    active = (codes != 0).sum(1)
    assert found["active_dims"] == pytest.approx(active.mean())
    assert found["active_dims_std"] == pytest.approx(active.std())
    assert [found["active_dims_p5"], found["active_dims_p95"]] == pytest.approx(np.percentile(active, [5, 95]))
    assert (found["min_active_dims"], found["max_active_dims"]) == (0, active.max())
    assert (found["empty_rows"], found["dead_dims"], found["always_on_dims"]) == (1 / 200, 1, 1)
    shortest = active[np.isin(lengths, np.arange(20))]
    assert found["by_length"][0]["words"] == pytest.approx(9.5)
    assert found["by_length"][0]["active_dims"] == pytest.approx(shortest.mean())
    assert sum(group["empty_rows"] for group in found["by_length"]) == pytest.approx(1 / 20)
    share = (codes != 0).mean(0)
    edges = [0, *found["density"]["up_to"]]
    expected = [((share > low) & (share <= high)).sum() for low, high in pairwise(edges)]
    assert found["density"]["dimensions"] == expected
    assert sum(expected) == 29
    assert "by_length" not in scores_of.sparsity_scores(codes)


def test_postings_are_those_of_an_inverted_index(generator):
    queries, documents = (generator.random((rows, 15)) * (generator.random((rows, 15)) < 0.3) for rows in (9, 40))
    index = {dimension: np.flatnonzero(documents[:, dimension]) for dimension in range(15)}
    expected = np.mean([sum(len(index[dimension]) for dimension in np.flatnonzero(query)) for query in queries])
    for kind in (np.asarray, sparse.csr_matrix):
        assert scores_of.postings_touched(kind(queries), kind(documents)) == pytest.approx(expected)
