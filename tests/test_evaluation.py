"""Systems and whole evaluations against naive computations, sentence-transformers' evaluators, and mteb."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import sparse, stats
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.evaluation import (
    SparseEmbeddingSimilarityEvaluator,
    SparseInformationRetrievalEvaluator,
)
from sentence_transformers.util import cos_sim, dot_score
from sklearn.datasets import make_blobs
from test_evaluation_tasks import suite  # noqa: F401 - a fixture
from vector_models import as_sentence_transformers, script, small

import hsvae_hf
from hsvae_hf import evaluation_systems as systems
from hsvae_hf.embedding_cache import load_encoder_tokenizer
from hsvae_hf.encoding import encode_vectors, sentence_vectors
from hsvae_hf.evaluation import EvaluationProtocol, TaskEvaluation, evaluate_codes, quantised_system
from hsvae_hf.evaluation_codings import Coding, coding, sides
from hsvae_hf.evaluation_tasks import ClassificationTask, RetrievalTask, SimilarityTask


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.fixture
def vectors(generator):
    """Correlated, and with a mean."""
    return (generator.normal(size=(150, 5)) @ generator.normal(size=(5, 5)) + 1).astype(np.float32)


@pytest.fixture
def model():
    """An untrained model whose gates move with the vector."""
    model = small(latent_size=12, active_threshold=0.5)
    torch.nn.init.normal_(model.model.latent_head.gate.weight, std=3.0)
    model.model.code_scale.copy_(torch.linspace(0.5, 2, 12))
    model.model.standardizer.fit(torch.randn(50, 5) * 2 + 1)
    return model


@pytest.fixture
def retrieval(vectors, generator):
    relevance = sparse.csr_matrix(generator.choice([0, 1, 2], p=[0.9, 0.06, 0.04], size=(30, 120)))
    return RetrievalTask(
        name="docs", split="all", vectors={"queries": vectors[:30], "corpus": vectors[30:]}, relevance=relevance
    )


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_decoded_codes_are_what_the_decoder_says_in_the_encoders_units(model, vectors):
    coder = systems.ModelCoder(model)
    codes = coder.encode(vectors)
    assert (codes != encode_vectors(model, vectors)).nnz == 0
    latents = codes.toarray() / model.model.code_scale.numpy()
    output, standardizer = model.model.decoder.output, model.model.standardizer
    expected = latents @ output.weight.detach().numpy().T + output.bias.detach().numpy()
    expected = expected * standardizer.std.numpy() + standardizer.mean.numpy()
    np.testing.assert_allclose(coder.decode(codes), expected, atol=1e-5)
    np.testing.assert_array_equal(systems.ModelCoder(model.model).decode(codes), coder.decode(codes))
    assert (np.diff(systems.ModelCoder(model, 3).encode(vectors).indptr) == 3).all()


def test_scorings_are_what_their_names_say(model, vectors):
    coder = systems.ModelCoder(model)
    queries, documents = (coding(coder, part, coder.encode(part)) for part in (vectors[:20], vectors[20:]))
    found = {name: first @ second.T for name, first, second in sides(queries, documents, [4, 11, 12])}
    q, c = queries.codes.toarray(), documents.codes.toarray()
    decoded, x = documents.decoded, unit(queries.vectors)
    assert list(found) == [
        "cosine",
        "dot",
        "decoded",
        "asymmetric",
        "asymmetric_dot",
        "asymmetric_top4",
        "asymmetric_top11",
    ]
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(
            found["cosine"].toarray(), np.nan_to_num(unit(q)) @ np.nan_to_num(unit(c)).T, atol=1e-5
        )
    np.testing.assert_allclose(found["dot"].toarray(), q @ c.T, atol=1e-4)
    np.testing.assert_allclose(found["decoded"], unit(queries.decoded) @ unit(decoded).T, atol=1e-5)
    np.testing.assert_allclose(found["asymmetric"], x @ unit(decoded).T, atol=1e-5)
    lengths = hsvae_hf.code_lengths(model, documents.codes)
    public = hsvae_hf.encode_queries(model, x) @ c.T / lengths
    np.testing.assert_allclose(found["asymmetric_dot"], public, atol=1e-4)
    constant = x @ coder.decode(np.zeros((1, 12)))[0]
    np.testing.assert_allclose(found["asymmetric"], public + constant[:, None] / lengths, atol=1e-4)
    offset = coder.decode(np.zeros((1, 12)))[0]
    matrix = coder.decode(np.eye(12)) - offset
    for count in (4, 11):
        expected = np.zeros((20, 130))
        for row, vector in enumerate(x):
            weights = matrix @ vector
            weights[np.argsort(np.abs(weights))[: 12 - count]] = 0
            expected[row] = (c @ weights + vector @ offset) / np.linalg.norm(decoded, axis=1)
        np.testing.assert_allclose(found[f"asymmetric_top{count}"], expected, atol=1e-4)


def test_a_decoder_that_is_not_linear_gets_no_cut_queries(vectors):
    class Squares:
        def encode(self, rows):
            return rows

        def decode(self, codes):
            return np.square(codes)

    code = coding(Squares(), vectors, vectors)
    assert code.decoder is None
    assert [name for name, *_ in sides(code, code, [2])] == ["cosine", "dot", "decoded", "asymmetric"]
    assert [name for name, *_ in sides(Coding(vectors, vectors), code, [2])] == ["cosine", "dot"]


@pytest.mark.parametrize("bits", systems.VALUE_BITS)
def test_values_in_few_bits(generator, bits):
    codes = generator.normal(size=(30, 20)) * (generator.random((30, 20)) < 0.4)
    codes[3] = 0
    found = systems.quantize(sparse.csr_matrix(codes), bits).toarray()
    assert (np.sign(found) == np.sign(codes)).all()
    assert len(np.unique(found[found != 0])) <= 2**bits
    largest = np.abs(codes).max(1, keepdims=True)
    assert np.abs(found * largest - codes)[codes != 0].max() <= (largest / 2**bits).max() + 1e-6
    steps = (np.abs(found[found != 0]) * 2 ** (bits - 1)) - 0.5
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-5)


def test_bytes_hold_indices_and_values(model, vectors):
    for size, width, bits in ((48, 512, 4), (16, 2048, 1), (96, 384, 8)):
        count = systems.active_dims_of_bytes(size, width, bits)
        costs = [math.ceil(math.log2(math.comb(width, number))) + number * bits for number in (count, count + 1)]
        assert costs[0] <= 8 * size < costs[1]
    assert systems.active_dims_of_bytes(100, 12, 8) == 12
    system = quantised_system(model, 4, vectors)
    codes = system.coder.encode(vectors)
    bits = system.budget["value_bits"]
    assert system.budget["active_dims"] == systems.active_dims_of_bytes(4, 12, bits)
    assert np.diff(codes.indptr).max() <= system.budget["active_dims"]
    lengths = np.linalg.norm(codes.toarray(), axis=1)
    assert np.ptp(lengths[lengths > 0]) < 1e-5, "a scale would have to be stored"
    with pytest.raises(ValueError, match="`bytes_per_code` must fit one of 12 dimensions, got 0"):
        quantised_system(model, 0, vectors)


def test_baselines_are_what_their_names_say(vectors):
    centred = vectors - vectors.mean(0)
    full = systems.PCA(vectors)
    np.testing.assert_allclose(full.decode(full.encode(vectors)), vectors, atol=1e-4)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:2]
    two = systems.PCA(vectors, components=2)
    expected = centred @ directions.T @ directions + vectors.mean(0)
    np.testing.assert_allclose(two.decode(two.encode(vectors)), expected, atol=1e-4)
    codes = systems.PCA(vectors, largest=2).encode(vectors)
    assert (np.diff(codes.indptr) == 2).all()
    kept = np.sort(np.abs(full.encode(vectors)), axis=1)[:, -2:]
    np.testing.assert_allclose(np.sort(np.abs(codes.data.reshape(-1, 2)), axis=1), kept, atol=1e-5)
    signs = systems.SignBits(vectors).encode(vectors)
    hamming = ((centred[:, None] > 0) != (centred > 0)).mean(2)
    np.testing.assert_allclose(signs @ signs.T / 5, 1 - 2 * hamming, atol=1e-6)
    step = (vectors.max(0) - vectors.min(0)) / 255
    assert (np.abs(systems.Int8(vectors).encode(vectors) - vectors) <= step * 0.501).all()
    assert systems.SignProjections(vectors, 16).encode(vectors).shape == (150, 16)
    many = systems.SignProjections(vectors, 4000)  # the angle between two rows is their share of different signs
    codes = many.encode(vectors)
    angles = np.arccos(np.clip(unit(centred) @ unit(centred).T, -1, 1)) / np.pi
    np.testing.assert_allclose((1 - codes @ codes.T / 4000) / 2, angles, atol=0.04)


def test_rows_of_a_model_are_what_naive_computations_give(model, retrieval, vectors):
    rows = evaluate_codes(
        model, [retrieval], [None, 3], [8], protocol=EvaluationProtocol(pool_rows=100, query_active_dims=[4])
    )
    json.dumps(rows, allow_nan=False)
    assert [row["budget"] for row in rows[:2]] == [{}, {"active_dims": 3}]
    assert rows[2]["budget"]["bytes"] == 8
    assert {row["task"] for row in rows} == {"docs"}
    codes = encode_vectors(model, vectors).toarray()
    found, scores = rows[0]["codes"], rows[0]["scores"]
    pool = codes[30:][retrieval.pool(100)]
    assert len(pool) == 100
    assert found["active_dims"] == pytest.approx((pool != 0).sum(1).mean())
    lists = (codes[30:] != 0).sum(0)
    assert scores["postings"] == pytest.approx(((codes[:30] != 0) @ lists).mean())
    assert scores["pool_postings"] == pytest.approx(((pool != 0) @ (pool != 0).sum(0)).mean())
    assert rows[0]["pool_rows"] == 100
    assert scores["asymmetric_top4_postings"] <= 4 * 120
    assert rows[1]["codes"]["max_active_dims"] <= 3
    decoded = systems.ModelCoder(model).decode(codes[30:])
    similarity = unit(vectors[:30]) @ unit(decoded).T
    gains = retrieval.relevance.toarray()
    order = np.argsort(-similarity, axis=1)[:, :100]
    recall = [(row[top] > 0).sum() / (row > 0).sum() for row, top in zip(gains, order, strict=True)]
    assert scores["asymmetric_recall@100"] == pytest.approx(np.mean(recall))
    assert {
        "cosine_ndcg@10",
        "dot_ndcg@10",
        "decoded_ndcg@10",
        "cosine_neighbours@10",
        "asymmetric_candidates@100",
    } <= set(scores)


def test_pairs_are_correlated_both_ways_round(model, vectors, generator):
    given = generator.random(75)
    pairs = {"first": vectors[:75], "second": vectors[75:]}
    task = SimilarityTask(name="pairs", split="test", vectors=pairs, scores=given)
    (row,) = evaluate_codes(model, [task], [None])
    codes = encode_vectors(model, vectors).toarray()
    decoded = unit(systems.ModelCoder(model).decode(codes))
    dense = unit(vectors)
    ways = [(dense[:75] * decoded[75:]).sum(1), (decoded[:75] * dense[75:]).sum(1)]
    expected = np.mean([stats.spearmanr(way, given).statistic for way in ways])
    assert row["scores"]["asymmetric_spearman"] == pytest.approx(expected, abs=1e-4)
    dots = (codes[:75] * codes[75:]).sum(1)
    assert row["scores"]["dot_spearman"] == pytest.approx(stats.spearmanr(dots, given).statistic, abs=1e-4)


def test_a_constant_similarity_has_no_correlation(vectors):
    pairs = {"first": np.ones((9, 2)), "second": np.ones((9, 2))}
    task = SimilarityTask(name="pairs", split="test", vectors=pairs, scores=np.arange(9.0))
    row = TaskEvaluation(task).row(systems.System("dense", {}, systems.Dense()))
    assert row["scores"]["cosine_spearman"] is None


def test_classes_and_baselines(model):
    rows, labels = make_blobs(240, 5, centers=3, cluster_std=0.4, random_state=0)
    parts = {"train": rows[:160].astype(np.float32), "test": rows[160:].astype(np.float32)}
    task = ClassificationTask(
        name="blobs", split="test", vectors=parts, labels={"train": labels[:160], "test": labels[160:]}
    )
    found = {row["system"]: row for row in evaluate_codes(model, [task], [4], with_baselines=True)}
    assert set(found) == {"dense", "int8", "sign bits", "PCA", "PCA, largest", "sign projections", "HSVAE"}
    dense = found["dense"]["scores"]
    names = ("cosine_knn@10", "logistic_accuracy", "v_measure", "sparse_probing@5", "cosine_neighbours@10")
    assert [dense[name] for name in names] == pytest.approx([1] * 5)
    assert found["PCA"]["scores"]["explained_variance"] > 0.95
    assert found["sign bits"]["budget"] == {"bytes": 1}
    few = evaluate_codes(model, [task], [4], protocol=EvaluationProtocol(measures=["knn"]))[0]["scores"]
    assert "cosine_knn@10" in few
    assert not any(word in name for name in few for word in ("logistic", "neighbours", "measure", "probing"))
    with pytest.raises(ValueError, match="`measures` must be of .*, got 'speed'"):
        EvaluationProtocol(measures=["speed"])


@pytest.fixture
def saved(encoder, sentences, tmp_path):
    """Folder of a model with its sentence encoder, and the model, its tokenizer, 150 sentences and their vectors."""
    as_sentence_transformers(encoder)
    torch.manual_seed(3)
    model = hsvae_hf.HSVAEForPreTraining.from_encoder_pretrained(str(encoder), decoder_type="vector", latent_size=24)
    torch.nn.init.normal_(model.model.latent_head.gate.weight, std=2.0)
    tokenizer = load_encoder_tokenizer(str(encoder))
    words = np.array(" ".join(sentences).split())
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(words, draw.integers(3, 7))) for _ in range(150)]
    vectors = sentence_vectors(model.eval(), tokenizer, texts)
    model.model.standardizer.fit(torch.from_numpy(vectors))
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, texts, vectors


@pytest.mark.parametrize("count", [None, 12])  # shorter codes share no dimension with many: ties
def test_evaluators_of_sentence_transformers_give_the_same(saved, count, generator):
    folder, model, texts, vectors = saved
    if count is not None:
        model.config.update({"min_active_dims": count, "max_active_dims": count})
        model.save_pretrained(folder)
    encoder = SparseEncoder(str(folder), device="cpu")
    given = generator.random(75)
    options = {"write_csv": False}
    evaluator = SparseEmbeddingSimilarityEvaluator(
        texts[:75], texts[75:], given.tolist(), similarity_fn_names=["cosine", "dot"], **options
    )
    judged = evaluator(encoder)
    pairs = {"first": vectors[:75], "second": vectors[75:]}
    task = SimilarityTask(name="pairs", split="test", vectors=pairs, scores=given)
    (row,) = evaluate_codes(model, [task], [None])
    for name in ("cosine", "dot"):
        assert row["scores"][f"{name}_spearman"] == pytest.approx(judged[f"spearman_{name}"], abs=1e-3)

    relevant = generator.random((30, 120)) < 0.08
    relevant[:, 0] = True
    evaluator = SparseInformationRetrievalEvaluator(
        {f"q{row}": text for row, text in enumerate(texts[:30])},
        {f"d{row}": text for row, text in enumerate(texts[30:])},
        {f"q{row}": {f"d{column}" for column in np.flatnonzero(relevant[row])} for row in range(30)},
        score_functions={"cosine": cos_sim, "dot": dot_score},
        precision_recall_at_k=[100],
        **options,
    )
    judged = evaluator(encoder)
    parts = {"queries": vectors[:30], "corpus": vectors[30:]}
    task = RetrievalTask(name="docs", split="all", vectors=parts, relevance=sparse.csr_matrix(relevant.astype(int)))
    (row,) = evaluate_codes(model, [task], [None])
    for name in ("cosine", "dot"):
        for score in ("ndcg@10", "recall@100"):
            assert row["scores"][f"{name}_{score}"] == pytest.approx(judged[f"{name}_{score}"], abs=2e-3)


def test_mteb_evaluates_a_saved_folder(saved):
    mteb = pytest.importorskip("mteb", reason="mteb, of the extra `eval`, is missing")
    from mteb.mocks import mock_tasks

    folder = saved[0]
    kinds = ("MockSTSTask", "MockRetrievalTask", "MockClassificationTask", "MockClusteringTask")
    tasks = [getattr(mock_tasks, kind)() for kind in kinds if hasattr(mock_tasks, kind)]
    assert len(tasks) >= 3
    encoder = SparseEncoder(str(folder), device="cpu")
    results = mteb.evaluate(encoder, tasks, cache=None, show_progress_bar=False, co2_tracker=False)
    assert {result.task_name for result in results.task_results} == {task.metadata.name for task in tasks}
    assert all(np.isfinite(result.get_score()) for result in results.task_results)
    by_path = mteb.models.SparseEncoderWrapper(str(folder), device="cpu")
    again = mteb.evaluate(by_path, tasks[:1], cache=None, show_progress_bar=False, co2_tracker=False)
    assert again.task_results[0].get_score() == results.task_results[0].get_score()


def test_the_script_measures_and_writes(saved, suite, encoder, tmp_path, monkeypatch, capsys, refused):  # noqa: F811
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = saved[0]
    output = tmp_path / "report.json"
    options = ["--suite", suite, "--output", output, "--model_name_or_path", folder, "--encoder_name_or_path", encoder]
    few = ["--active_dims", 4, "--bytes_per_code", 8, "--query_active_dims", 8, "--measures", "knn", "neighbours"]
    script("evaluate_codes", *options, *few)
    report = json.loads(output.read_text())
    budgets = [row["budget"].get("active_dims") for row in report["rows"] if row["task"] == "topics"]
    assert budgets[:2] == [None, 4]
    assert {row["task"] for row in report["rows"]} == {"docs", "pairs", "topics"}
    assert report["settings"]["split"] == "test"
    shown = capsys.readouterr().out
    assert "docs (all)" in shown
    assert "knn@10" in shown
    assert "add --overwrite to replace it" in refused("evaluate_codes", *options)
    assert "`active_dims` must be at least 1" in refused("evaluate_codes", *options, "--active_dims", 0)
    words = ["evaluate_codes", "--suite", suite, "--output", tmp_path / "r.json", "--model_name_or_path", folder]
    assert "exactly one of `encoder_name_or_path` and `vectors_dir`, got neither" in refused(*words)
    words += ["--encoder_name_or_path", encoder]
    assert "`active_dims` must be at most `latent_size`" in refused(*words, "--active_dims", 4000)
    assert "`training_vectors` must be a .npy" in refused(*words, "--training_vectors", tmp_path / "x")
    assert "name one, or add --baselines" in refused(
        "evaluate_codes", "--suite", suite, "--output", tmp_path / "r.json"
    )


@pytest.mark.data
def test_words_rank_real_abstracts(data_dir):
    pytest.importorskip("bm25s", reason="bm25s, of the extra `eval`, is missing")
    from hsvae_hf.evaluation_tasks import load_tasks

    (task,) = load_tasks(
        data_dir / "eval", lambda texts: np.random.default_rng(0).normal(size=(len(texts), 4)), tasks=["cranfield"]
    )
    measured = TaskEvaluation(task, EvaluationProtocol(measures=[]))
    rows = {row["system"]: row["scores"] for row in measured.baseline_rows(task.training, [])}
    assert rows["TF-IDF"]["cosine_ndcg@10"] > 0.35
    assert rows["BM25"]["dot_ndcg@10"] > 0.35
    assert rows["dense"]["cosine_ndcg@10"] < 0.1  # random vectors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"active_dims": 4}, "`active_dims` must be a list of whole numbers, got 4; write it as"),
        ({"active_dims": [2, 13]}, r"`active_dims` must be at most `latent_size` \(12\), got 13"),
        ({"bytes_per_code": 16}, "`bytes_per_code` must be a list of whole numbers, got 16"),
        ({"bytes_per_code": [1.5]}, "`bytes_per_code` must be at least 1, a whole number, got 1.5"),
        ({"with_baselines": "false"}, "`with_baselines` must be True or False, got 'false'"),
        ({"training": np.ones((1, 5))}, "`training` must be finite numbers, .* of at least 2 rows"),
        ({"training": np.ones(5)}, r"`training` must be numbers, \(rows, 5\)"),
        ({"training": np.full((4, 5), np.nan)}, "`training` must be finite, got NaN"),
        ({"training": np.ones((4, 3))}, r"`training` must be numbers, \(rows, 5\), got .* \(4, 3\)"),
        ({"tasks": "suite"}, "`tasks` must be several tasks, got str 'suite'; pass those of `load_tasks"),
        ({"tasks": ["suite"]}, "`tasks` must be several tasks, got str 'suite'"),
        ({"tasks": iter(["suite"])}, "`tasks` must be several tasks, got str 'suite'"),
        ({"tasks": None}, "`tasks` must be several tasks, got NoneType"),
    ],
)
def test_what_an_evaluation_cannot_measure_is_refused_before_the_first_row(
    model, retrieval, vectors, options, message, monkeypatch
):
    monkeypatch.setattr(TaskEvaluation, "row", lambda *a, **k: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=message):
        evaluate_codes(model, **{"tasks": [retrieval]} | options)
    with pytest.raises(ValueError, match="`tasks` must be several tasks, got RetrievalTask"):
        evaluate_codes(model, retrieval)
    narrow = SimilarityTask(
        name="narrow", split="all", vectors={"first": vectors[:, :3], "second": vectors[:, :3]}, scores=np.ones(150)
    )
    with pytest.raises(ValueError, match="vectors of 5 numbers for this model, got 3 in narrow, first"):
        evaluate_codes(model, [retrieval, narrow])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool_rows": 0}, "`pool_rows` must be at least 1"),
        ({"pool_rows": 1.5}, "`pool_rows` must be at least 1, a whole number, got 1.5"),
        ({"query_active_dims": [0]}, "`query_active_dims` must be at least 1"),
        ({"query_active_dims": 32}, "`query_active_dims` must be a list of whole numbers, got 32"),
        ({"measures": "knn"}, "`measures` must be several strings, got the single string 'knn'"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluationProtocol(**options)
