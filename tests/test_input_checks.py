"""What the public functions refuse before the work: wrong objects, tables, other words, vectors of another scale."""

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from scipy import sparse
from vector_models import as_sentence_transformers, small, vector_model

import hsvae_hf
from hsvae_hf.active_dims import calibrate_threshold, fit_code_scale, hold_target
from hsvae_hf.decoding import code_lengths, decode_codes, encode_queries
from hsvae_hf.embedding_cache import embed_dataset, load_encoder_tokenizer
from hsvae_hf.encoding import encode, encode_stream, encode_vectors, sentence_vectors
from hsvae_hf.evaluation_systems import ModelCoder
from hsvae_hf.explanation import decode_switched, explain
from hsvae_hf.loading import load_for_inference, load_tokenizer
from hsvae_hf.models.vocabulary import tokenizer_checksum
from hsvae_hf.sentence_transformers import SparseCodes
from hsvae_hf.tokenization import train_tokenizer


@pytest.fixture
def model(small_config):
    return hsvae_hf.HSVAEForPreTraining(small_config).eval()


ROWS = ["the cat sees a dog", "paris has a river"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pd.DataFrame({"text": ROWS}), "be one column of strings, got a DataFrame with text; pass a column"),
        (Dataset.from_dict({"text": ROWS, "label": [0, 1]}), "got a Dataset with text, label; pass a column"),
        ("one string", "several strings, got the single string 'one string'; pass a list"),
        ({"text": ROWS}, "got a dict with text; pass a column"),
        (b"bytes", "several strings, got the single bytes b'bytes'; pass a list"),
        ([*ROWS, b"bytes"], "strings, got bytes .* at index 2"),
        (np.array([ROWS]), r"got a ndarray of shape \(1, 2\)"),
        (set(ROWS), "have an order, got a set; pass a list"),
        (7, "a list of strings, got a int 7"),
        (pd.Series([*ROWS, None]), "strings, got .* at index 2"),
        (np.array([1.0, 2.0]), "strings, got float64 '1.0' at index 0"),
        ([ROWS], "strings, got list .* at index 0"),
    ],
)
def test_what_is_no_column_of_strings_is_refused_before_work(model, tokenizer, given, message, monkeypatch):
    monkeypatch.setattr(type(model.model), "forward", lambda *a, **k: pytest.fail("work was done"))
    for encoded in (encode, encode_stream):
        with pytest.raises(ValueError, match=f"`sentences` must .*{message}"):
            encoded(model, tokenizer, given)
    with pytest.raises(ValueError, match="`dataset` must (be|have)"):
        calibrate_threshold(model, tokenizer, given if not isinstance(given, Dataset) else {}, 3)


def test_columns_of_every_kind_are_taken(model, tokenizer):
    expected = encode(model, tokenizer, ROWS)
    columns = [tuple(ROWS), np.array(ROWS), np.array(ROWS, dtype=object), pd.Series(ROWS), iter(ROWS)]
    columns += [Dataset.from_dict({"text": ROWS})["text"], dict.fromkeys(ROWS).keys()]
    for column in columns:
        assert (encode(model, tokenizer, column) != expected).nnz == 0


@pytest.mark.parametrize(
    ("takes", "call"),
    [
        ("text", lambda m, t: encode(m, t, ROWS)),
        ("text", lambda m, t: encode_stream(m, t, ROWS)),
        ("text", lambda m, t: sentence_vectors(m, t, ROWS)),
        ("text", lambda m, t: explain(m, t, *ROWS)),
        ("text", lambda m, t: decode_switched(m, t, ROWS, 1)),
        ("text", lambda m, t: calibrate_threshold(m, t, ROWS, 3)),
        ("batches", lambda m, t: hold_target(m, [])),
        ("vectors", lambda m, t: encode_vectors(m, np.ones((2, 5)))),
        ("vectors", lambda m, t: fit_code_scale(m, np.ones((2, 5)))),
    ],
)
def test_paths_and_other_objects_are_refused_for_models_and_tokenizers(model, tokenizer, takes, call):
    for wrong in ("runs/model", Path("runs/model"), None, tokenizer, type(model), model.config, torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="`model` must be a loaded model of this package, got .* load one with"):
            call(wrong, tokenizer)
    wrongs = ("runs/model", Path("runs/model"), tokenizer.backend_tokenizer, model, None)
    for wrong in wrongs if takes == "text" else ():
        with pytest.raises(ValueError, match="`tokenizer` must be"):
            call(model, wrong)


def test_text_and_vectors_are_not_taken_for_each_other(model, tokenizer):
    with pytest.raises(ValueError, match="`model` must have a text encoder.*use `encode_vectors`"):
        encode(small(), tokenizer, ROWS)
    with pytest.raises(ValueError, match="`model` must be one of `decoder_type='vector'`"):
        encode_vectors(model, np.zeros((2, 12), dtype=np.float32))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((2, 4)), r"numbers, \(rows, 5\), got a ndarray of shape \(2, 4\)"),
        (np.array([["a"] * 5]), "and type <U1"),
        (np.ones((2, 5), dtype=bool), "and type bool"),
        ([[1.0, 2.0], [1.0]], "got a list"),
        ("vectors.npy", "got the path 'vectors.npy'"),
        (sparse.csr_matrix(np.ones((2, 5))), "got a csr_matrix of shape"),
        (np.array([[0.0] * 5, [1, 2, 3, 4, np.inf]]), "finite, got NaN or infinity in row 1"),
        (np.full((2, 5), 1e300), "finite, got NaN or infinity in row 0"),  # not in float32
    ],
)
def test_vectors_that_the_model_does_not_take_are_refused(vectors, message):
    model = small()
    with pytest.raises(ValueError, match=f"`vectors` must be .*{message}"):
        encode_vectors(model, vectors)
    with pytest.raises(ValueError, match=f"`vectors` must be .*{message}"):
        fit_code_scale(model, vectors)


def test_vectors_of_every_kind_are_taken():
    model, rows = small(), np.random.default_rng(0).normal(size=(7, 5))
    expected = encode_vectors(model, rows)
    tensor = torch.from_numpy(rows).requires_grad_()
    for vectors in (rows.tolist(), rows.astype(np.float32), tensor, pd.DataFrame(rows), rows[::-1][::-1]):
        assert (encode_vectors(model, vectors) != expected).nnz == 0
    assert encode_vectors(model, tensor.bfloat16()).shape == (7, 6)
    assert encode_vectors(model, np.ones((0, 5))).shape == (0, 6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["reversed rows", "one reversed row", "reversed columns", "read-only", "big-endian"])
def test_arrays_that_torch_does_not_take_as_they_are_are_taken(kind):
    rows = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    given = {
        "reversed rows": rows[::-1],
        "one reversed row": rows[:1][::-1],
        "reversed columns": rows[:, ::-1],
        "read-only": np.frombuffer(rows.tobytes(), np.float32).reshape(7, 5),
        "big-endian": rows.astype(">f4"),
    }[kind]
    model, plain = small(), given.astype(np.float32).copy()
    assert (encode_vectors(model, given) != encode_vectors(model, plain)).nnz == 0
    np.testing.assert_array_equal(encode_queries(model, given), encode_queries(model, plain))
    fit_code_scale(model, given)
    if len(given) > 1:
        hsvae_hf.fit(given, validation=given, latent_size=6, max_steps=1, eval_strategy="no", report_to="none")


@pytest.mark.parametrize("number", [0, -1, 7, 1.5, True, "3"])
def test_a_number_of_non_zeros_that_no_code_has_is_refused(number):
    model, vectors = small(), torch.randn(3, 5)
    codes = SparseCodes(small())
    for call in (
        lambda: encode_vectors(model, vectors, active_dims=number),
        lambda: model(vectors=vectors, active_dims=number),
        lambda: model.model(vectors=vectors, active_dims=number),
        lambda: ModelCoder(model, number),
        lambda: codes({"sentence_embedding": vectors}, max_active_dims=number),
    ):
        with pytest.raises(ValueError, match=r"active_dims` must be (at|a whole number from 1 to `latent_size` \(6\))"):
            call()
    with pytest.raises(ValueError, match=r"`active_dims` must be at most `latent_size` \(6\), got 7; choose fewer"):
        encode_vectors(model, vectors, active_dims=7)
    assert (encode_vectors(model, vectors, active_dims=np.int64(6)).getnnz(axis=1) == 6).all()


def test_the_number_of_non_zeros_goes_into_an_exported_model():
    model, vectors = small().model, torch.randn(3, 5)
    expected = model(vectors=vectors, active_dims=2).sparse_embedding
    exported = torch.export.export(model, (), {"vectors": vectors, "active_dims": 2}).module()
    assert torch.equal(exported(vectors=vectors, active_dims=2).sparse_embedding, expected)


NAN = np.eye(6)
NAN[4, 2] = np.nan


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (NAN, "finite, got NaN or infinity in row 4"),
        (sparse.csr_matrix(NAN), "finite, got NaN or infinity in row 4"),
        (torch.from_numpy(NAN).to_sparse(), "finite, got NaN or infinity in row 4"),
        (np.full((1, 6), 1e300), "finite, got NaN or infinity in row 0"),  # not in float32
        (np.eye(6) * 1j, "numbers, .* type complex128"),
        (None, "numbers, .* got a NoneType"),
        ("codes.npz", "numbers, .* got the path"),
        ([["a"] * 6], "numbers, .* got a list"),
        (np.ones(6), r"numbers, \(rows, 6\), got a ndarray of shape \(6,\)"),
        (torch.ones(6).to_sparse(), r"numbers, \(rows, 6\), got a Tensor of shape \(6,\)"),
        (sparse.csr_matrix(np.eye(5)), r"numbers, \(rows, 6\), got a csr_matrix of shape \(5, 5\)"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_codes_that_are_none_of_the_model_s_are_refused(codes, message):
    for call in (decode_codes, code_lengths):
        with pytest.raises(ValueError, match=f"`codes` must be {message}"):
            call(small(), codes)


def test_codes_of_every_kind_are_taken():
    model, rows = small(), np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    expected, tensor = decode_codes(model, sparse.csr_matrix(rows)), torch.from_numpy(rows).requires_grad_()
    kinds = [sparse.coo_matrix(rows), sparse.csc_array(rows), rows, rows.tolist(), tensor, tensor.to_sparse()]
    for codes in [*kinds, tensor.to_sparse_csr(), tensor.to_sparse_csc()]:
        np.testing.assert_array_equal(decode_codes(model, codes), expected)
    assert decode_codes(model, rows[:0]).shape == (0, 5)


def changed(path, **fields):
    """Change fields of a JSON file; returns what was in it."""
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | fields))
    return before


def fitted(vectors):
    model = small(vector_size=vectors.shape[1])
    model.model.standardizer.fit(torch.from_numpy(vectors))
    return model


def unit(rows, shift, seed):
    vectors = np.random.default_rng(seed).normal(size=(rows, 32)) + shift
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_vectors_of_another_scale_are_warned_of_with_both_scales(caplog):
    trained = unit(500, 0.2, 0)
    model = fitted(trained)
    encode_vectors(model, trained)
    encode_vectors(model, unit(300, np.linspace(-1, 1, 32), 1))  # other subjects
    encode_vectors(model, unit(1, -0.4, 2).astype(np.float16))
    assert caplog.records == []
    for factor in (0.0, 0.1, 0.5, 2.0, 10.0):
        caplog.clear()
        encode_vectors(model, factor * trained)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert f"their length is {factor:.3g}, not 1. " in record.getMessage()
        assert "divide each by its length" in record.getMessage()


def test_lengths_may_differ_where_the_encoder_leaves_them_and_reports_warn_too(caplog):
    trained = np.random.default_rng(0).normal(size=(500, 32)) * np.random.default_rng(1).uniform(1, 9, size=(500, 1))
    model = fitted(trained)
    for factor in (0.4, 1.0, 2.5):
        encode_vectors(model, factor * trained)
    encode_vectors(small(), 100 * np.ones((3, 5)))  # without training there is no scale
    assert caplog.records == []
    tables = Dataset.from_dict({"vectors": list(10 * trained)})
    for call in (
        lambda: encode_vectors(model, 10 * trained),
        lambda: embed_dataset(tables, model, None),
        lambda: calibrate_threshold(model, None, 10 * trained, 2),
    ):
        caplog.clear()
        call()
        assert "scale them alike" in caplog.text


def test_a_tokenizer_of_other_words_is_refused_by_encode_and_by_loading(small_config, tokenizer, tmp_path):
    small_config.tokenizer_checksum = tokenizer_checksum(tokenizer)
    model = hsvae_hf.HSVAEModel(small_config)
    expected = encode(model, tokenizer, ROWS)
    for texts in (["cat dog"], ["other words"] * 3):  # fewer words, which all have ids that the model knows
        foreign = train_tokenizer(texts)
        assert len(foreign) < len(tokenizer)
        with pytest.raises(ValueError, match="`tokenizer` must be the one that the model was trained with, got one of"):
            encode(model, foreign, ROWS)
    model.save_pretrained(tmp_path)
    foreign.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`model_name_or_path` must hold the tokenizer that the model was trained"):
        load_for_inference(tmp_path)
    assert load_for_inference(tmp_path, tokenizer_checksum=None)[1].get_vocab() == foreign.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    assert (encode(*load_for_inference(tmp_path), ROWS) != expected).nnz == 0


def test_words_may_be_added_and_old_configurations_compare_nothing(small_config, sentences, tmp_path):
    tokenizer = train_tokenizer(sentences, max_length=12)
    small_config.tokenizer_checksum = tokenizer_checksum(tokenizer)
    model = hsvae_hf.HSVAEForPreTraining(small_config)
    encode(model, tokenizer, ROWS)
    tokenizer.add_tokens(["zebra"])
    model.resize_token_embeddings(len(tokenizer))
    codes = encode(model, tokenizer, ["a zebra"])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    np.testing.assert_allclose(encode(*load_for_inference(tmp_path), ["a zebra"]).toarray(), codes.toarray(), atol=1e-6)
    changed(tmp_path / "config.json", tokenizer_checksum=None)  # as it is for models of 0.1.0
    train_tokenizer(["cat dog"]).save_pretrained(tmp_path)
    assert load_for_inference(tmp_path)[0].config.tokenizer_checksum is None
    for wrong in ("abc", "-5-0123456789abcdef"):
        with pytest.raises(StrictDataclassError, match=r"(?s)tokenizer_checksum.*must be a number of words"):
            hsvae_hf.HSVAEConfig(tokenizer_checksum=wrong)


def test_models_around_an_encoder_know_its_words(encoder, tokenizer):
    model = vector_model(encoder)
    assert model.config.tokenizer_checksum == tokenizer_checksum(tokenizer)
    with pytest.raises(ValueError, match="`tokenizer` must be the one"):
        sentence_vectors(model, train_tokenizer(["cat dog"]), ROWS)


@pytest.mark.parametrize("limit", [-5, 1, "512", 1.5, True, float("nan")])
def test_a_limit_of_tokens_that_is_none_is_refused_when_loading(tokenizer, encoder, limit, tmp_path):
    model, wrong = vector_model(encoder), load_tokenizer(str(encoder))
    wrong.model_max_length = limit
    with pytest.raises(ValueError, match="`model_max_length` of the tokenizer must be"):
        encode(model, wrong, ROWS)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    folders = {load_tokenizer: encoder, load_encoder_tokenizer: encoder, load_for_inference: tmp_path / "saved"}
    for load, folder in folders.items():
        changed(folder / "tokenizer_config.json", model_max_length=limit)
        with pytest.raises(ValueError, match="`model_max_length` of the tokenizer in .* must be a whole number"):
            load(str(folder))


def test_the_limits_of_an_encoder_are_checked_likewise_and_no_limit_is_no_limit(encoder):
    as_sentence_transformers(encoder)
    for file, name in (("sentence_bert_config.json", "max_seq_length"), ("config.json", "max_position_embeddings")):
        before = changed(encoder / file, **{name: 1})
        with pytest.raises(ValueError, match=f"`{name}` of .* must be a whole number above 1"):
            load_encoder_tokenizer(str(encoder))
        changed(encoder / file, **before)
    changed(encoder / "sentence_bert_config.json", max_seq_length=None)
    assert load_encoder_tokenizer(str(encoder)).model_max_length == 12  # the tokenizer's own
    for limit in (1e30, None):
        changed(encoder / "tokenizer_config.json", model_max_length=limit)
        assert load_encoder_tokenizer(str(encoder)).model_max_length == 4000  # the positions that the encoder has
        assert encode(vector_model(encoder), load_tokenizer(str(encoder)), ["cat " * 300]).shape == (1, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size`.*got 0"),
        ({"max_active_dims": -1}, "`max_active_dims`.*got -1"),
        ({"max_active_dims": 2.5}, "`max_active_dims` must be at least 1, a whole number, got 2.5"),
        ({"max_length": 1}, "`max_length` must be a whole number above 1, the tokenizer's special tokens"),
        ({"max_length": 2.5}, "`max_length` must be a whole number above 1"),
        ({"max_length": True}, "`max_length` must be a whole number above 1"),
    ],
)
def test_options_out_of_range_are_named(model, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        encode(model, tokenizer, ROWS, **options)
