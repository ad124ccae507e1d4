"""Codes of an ONNX graph against those of the model that it was made of."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from families import BY_NAME, EVERY
from vector_models import SENTENCES, script, small

import hsvae_hf
from hsvae_hf import encode, encode_vectors
from hsvae_hf.loading import load_for_inference
from hsvae_hf.models.modeling_decoder import eliminate
from hsvae_hf.models.modeling_encoders import real_tokens_first

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package)
CARDS = Path(__file__).parent.parent / "model_cards"
RIDGE = {"latent_size": 24, "code_ridge": 0.1, "max_active_dims": 6}
QUICK = {"hsvae"}  # the others take some seconds each
CODERS = {
    "gates": RIDGE,
    "one number": RIDGE | {"min_active_dims": 6},
    "nonnegative": RIDGE | {"nonnegative_codes": True},
}


def padded(batch, length, left):
    """Random ids from 3 on, at least one in each row, padded on one side with 0."""
    ids = torch.randint(3, 40, (batch, length))
    real = torch.randint(1, length + 1, (batch, 1))
    mask = torch.arange(length).expand(batch, length) < real
    mask = mask.flip(1) if left else mask
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def assert_equal_codes(model, codes, inputs):
    """The same dimensions on, but for gates at the threshold, and the same values."""
    with torch.inference_mode():
        posterior = model(**inputs)
        expected = posterior.sparse_embedding.numpy()
        gates = model.latent_head.diagnostics(posterior).get("spike_probability")
    differ = (codes != 0) != (expected != 0)
    if differ.any():
        assert gates is not None
        near = np.abs(gates.numpy() - getattr(model.config, "active_threshold", np.inf)) < 1e-5
        assert near[differ].all()
        codes, expected = codes * ~differ.any(1, keepdims=True), expected * ~differ.any(1, keepdims=True)
    np.testing.assert_allclose(codes, expected, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [family.name if family.name in QUICK else pytest.param(family.name, marks=pytest.mark.slow) for family in EVERY],
)
def test_graphs_give_the_codes_of_the_model_for_any_batch_and_length(name, tokenizer, tmp_path):
    family = BY_NAME[name]
    model = family.model(family.config()).eval()
    hsvae_hf.export_onnx(model, None if family.given else tokenizer, tmp_path / "onnx")
    encoder = hsvae_hf.OnnxEncoder(tmp_path / "onnx", num_threads=1)
    for batch in (1, 2, 64):
        if family.given:
            given = [{"vectors": torch.randn(batch, 5)}]
        else:
            given = [padded(batch, length, left) for length in (1, 7, 60, 200) for left in (False, True)]
        for inputs in given:
            codes = encoder.run(**{name: tensor.numpy() for name, tensor in inputs.items()})
            assert codes.dtype == np.float32
            assert_equal_codes(model, codes, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", CODERS)
def test_values_by_regression_are_those_of_the_model(name, tmp_path):
    model, vectors = small(**CODERS[name]), np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    for number in (None, 3):
        hsvae_hf.export_onnx(model, None, tmp_path / "onnx", active_dims=number)  # the second replaces the first
        codes = hsvae_hf.OnnxEncoder(tmp_path / "onnx").encode_vectors(vectors, batch_size=32)
        expected = encode_vectors(model, vectors, active_dims=number)
        assert codes.dtype == np.float32
        assert expected.nnz > 0
        differ = np.abs((codes - expected).toarray()).max(1) > 1e-5
        # Where the steps to values that are not negative do not reach their end, rounding decides on which they stop.
        assert differ.mean() <= (0.02 if name == "nonnegative" else 0)
        assert (codes[~differ] != 0).nnz == (expected[~differ] != 0).nnz or name == "nonnegative"


def test_sentences_give_the_codes_of_encode_and_no_weights_are_needed(saved_model, tmp_path):
    model, tokenizer = load_for_inference(saved_model)
    settings = hsvae_hf.export_onnx(model, tokenizer, tmp_path / "onnx", calibration=SENTENCES)
    files = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert files == {"config.json", "model.onnx", "onnx_settings.json", "tokenizer.json", "tokenizer_config.json"}
    assert settings == json.loads((tmp_path / "onnx/onnx_settings.json").read_text())
    assert settings["measured"]["equal_supports"] == 1.0
    encoder = hsvae_hf.OnnxEncoder(tmp_path / "onnx")
    for options in ({}, {"max_active_dims": 1, "normalize": True}, {"batch_size": 1}):
        codes, expected = encoder.encode(SENTENCES, **options), encode(model, tokenizer, SENTENCES, **options)
        np.testing.assert_allclose(codes.toarray(), expected.toarray(), atol=1e-6)
    assert encoder.encode([]).shape == (0, 6)
    with pytest.raises(ValueError, match="`vectors` must be left out for an export that reads text"):
        encoder.encode_vectors(np.ones((2, 5)))
    for wrong, message in (
        ("one", "`sentences` must be several strings"),
        ([1], "`sentences` must be strings, got int"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.encode(wrong)


def test_an_export_indexes_and_asks_in_place_of_its_model(saved_model, tmp_path, capsys, refused):
    model, tokenizer = load_for_inference(saved_model)
    ends = {f"{dimension}{sign}": {"share": 0.5, "words": ["word"]} for dimension in range(6) for sign in "+-"}
    hsvae_hf.DimensionNames(6, 9, ends).attach(model)
    hsvae_hf.export_onnx(model, tokenizer, tmp_path / "onnx")
    one, other = hsvae_hf.Index(hsvae_hf.OnnxEncoder(tmp_path / "onnx")), hsvae_hf.Index((model, tokenizer))
    for index in (one, other):
        index.add(SENTENCES)
    assert one.settings.similarity == other.settings.similarity
    for found, wanted in zip(one.search(SENTENCES[:2]), other.search(SENTENCES[:2]), strict=True):
        assert [hit.id for hit in found] == [hit.id for hit in wanted]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted], abs=1e-3)
    assert any("word" in name for name in one.explain(SENTENCES[0], 0).names)
    (tmp_path / "in.txt").write_text("\n".join(SENTENCES))
    options = ["--input", tmp_path / "in.txt", "--encoder", tmp_path / "onnx", "--index", tmp_path / "index"]
    assert "`codes` must be left out for an ONNX export" in refused("search", "index", *options, "--codes", saved_model)
    script("search", "index", *options)
    capsys.readouterr()
    script("search", "query", "--index", tmp_path / "index", "--query", SENTENCES[3], "--json", "--k", 1)
    (hit,) = json.loads(capsys.readouterr().out)["hits"]
    assert hit["text"] == SENTENCES[3]
    hsvae_hf.export_onnx(small(), None, tmp_path / "vectors")
    with pytest.raises(ValueError, match="`encoder` must read sentences, got an ONNX export for vectors"):
        hsvae_hf.Index(hsvae_hf.OnnxEncoder(tmp_path / "vectors"))


def test_a_damaged_graph_is_refused(saved_model, tmp_path):
    model, tokenizer = load_for_inference(saved_model)
    hsvae_hf.export_onnx(model, tokenizer, tmp_path / "onnx")
    graph = tmp_path / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(ValueError, match="`folder` must hold a graph that ONNX Runtime reads.*export it again"):
        hsvae_hf.OnnxEncoder(tmp_path / "onnx")


@pytest.mark.slow
def test_int8_keeps_the_number_of_non_zeros_and_most_neighbours(tmp_path):
    model, tokenizer = load_for_inference(CARDS / "hsvae-dbpedia-16")
    sentences = list(hsvae_hf.load_text_dataset("docstrings")["test"]["text"])[:400]
    settings = hsvae_hf.export_onnx(model, tokenizer, tmp_path / "small", quantize="int8", calibration=sentences)
    hsvae_hf.export_onnx(model, tokenizer, tmp_path / "whole")
    small, whole = (hsvae_hf.OnnxEncoder(tmp_path / name) for name in ("small", "whole"))
    assert (tmp_path / "small/model.onnx").stat().st_size < 0.6 * (tmp_path / "whole/model.onnx").stat().st_size
    expected = encode(model.float(), tokenizer, sentences)
    np.testing.assert_allclose(whole.encode(sentences).toarray(), expected.toarray(), atol=1e-4)
    codes, measured = small.encode(sentences), settings["measured"]
    equal = ((codes != 0).toarray() == (expected != 0).toarray()).all(axis=1).mean()
    assert measured["equal_supports"] == pytest.approx(equal)
    assert equal > 0.7
    assert measured["neighbours_kept"] > 0.9
    assert codes.nnz == pytest.approx(expected.nnz, rel=0.01)
    assert small.config.active_threshold != whole.config.active_threshold


def damage(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())


def test_inputs_of_the_graph_are_checked(saved_model, tmp_path):
    model, tokenizer = load_for_inference(saved_model)
    hsvae_hf.export_onnx(model, tokenizer, tmp_path / "onnx")
    encoder, ids, mask = hsvae_hf.OnnxEncoder(tmp_path / "onnx"), torch.tensor([[3, 1], [4, 1]]), torch.ones(2, 2)
    expected = encoder.run(input_ids=ids.numpy(), attention_mask=mask.long().numpy())
    for kind in (np.int32, np.uint8, bool):
        found = encoder.run(input_ids=ids.int(), attention_mask=mask.numpy().astype(kind))
        np.testing.assert_array_equal(found, expected)
    for inputs, message in (
        ({"input_ids": ids}, "`inputs` must be input_ids and attention_mask, got input_ids; pass these"),
        ({"input_ids": ids, "attention_mask": mask, "x": ids}, "`inputs` must be input_ids and attention_mask, got"),
        ({"input_ids": ids[0], "attention_mask": mask[0].int()}, r"must be whole numbers, \(batch, length\) both, got"),
        ({"input_ids": ids, "attention_mask": mask}, "got int64 of .2, 2. and float32 of .2, 2."),
        ({"input_ids": ids, "attention_mask": ids[:1]}, "got int64 of .2, 2. and int64 of .1, 2."),
        ({"input_ids": ids[:0], "attention_mask": ids[:0]}, "`input_ids` must hold at least one token"),
        ({"input_ids": ids[:, :0], "attention_mask": ids[:, :0]}, "`input_ids` must hold at least one token"),
        ({"input_ids": ids, "attention_mask": ids * 0}, "`input_ids` must have a token in every row"),
        ({"input_ids": ids * 1000, "attention_mask": ids}, "`input_ids` must hold ids from 0 to .*, got 4000"),
        ({"input_ids": -ids, "attention_mask": ids}, "`input_ids` must hold ids from 0 to .*, got -4"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.run(**inputs)


def test_files_that_do_not_fit_each_other_are_refused(tmp_path):
    for name, sizes in (("onnx", {}), ("wide", {"latent_size": 9}), ("long", {"vector_size": 7})):
        hsvae_hf.export_onnx(small(**sizes), None, tmp_path / name, active_dims=np.int64(2))
    encoder = hsvae_hf.OnnxEncoder(tmp_path / "onnx")
    assert encoder.run(vectors=np.ones((2, 5))).shape == (2, 6)
    for rows, message in ((np.ones((2, 4)), r"`vectors` must be numbers, \(rows, 5\)"), ([[np.nan] * 5], "be finite")):
        with pytest.raises(ValueError, match=message):
            encoder.run(vectors=rows)
    for name, content in (
        ("model.onnx", tmp_path / "wide/model.onnx"),
        ("model.onnx", tmp_path / "long/model.onnx"),
        ("onnx_settings.json", b"{}"),
        ("onnx_settings.json", b'{"half'),
        ("config.json", b'{"half'),
        ("config.json", b'{"model_type": "bert"}'),
    ):
        shutil.copytree(tmp_path / "onnx", tmp_path / "other")
        damage(tmp_path / "other", name, content)
        with pytest.raises(ValueError, match="`folder` must be as `export_onnx` wrote it, got .*; export the model"):
            hsvae_hf.OnnxEncoder(tmp_path / "other")
        shutil.rmtree(tmp_path / "other")


@pytest.mark.slow
def test_more_tokens_than_a_transformer_has_positions_are_refused(encoder, tokenizer, tmp_path):
    model = hsvae_hf.HSVAEModel.from_encoder_pretrained(str(encoder), decoder_type="vector", latent_size=6).eval()
    hsvae_hf.export_onnx(model, tokenizer, tmp_path / "onnx")
    sentence = ["a cat " * 2500]
    for call in (hsvae_hf.OnnxEncoder(tmp_path / "onnx").encode, partial(encode, model, tokenizer)):
        with pytest.raises(ValueError, match="`input_ids` must have at most 4000 tokens for this encoder, got 5000"):
            call(sentence, max_length=5000)


def test_bad_arguments_are_refused_before_anything_is_written(saved_model, tmp_path):
    model, tokenizer = load_for_inference(saved_model)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/model.safetensors").write_text("")
    for arguments, message in (
        ({"quantize": "int4"}, "`quantize` must be None or 'int8', got 'int4'; choose one"),
        ({"quantize": "int8"}, "`calibration` must be given with `quantize='int8'`, got None; give some hundred"),
        ({"model": small(), "quantize": "int8"}, "`quantize` must be None for a model without an encoder, got 'int8'"),
        ({"active_dims": 7}, r"`active_dims` must be at most `latent_size` \(6\), got 7; choose fewer"),
        ({"calibration": "a sentence"}, "`calibration` must be several strings, got the single string"),
        ({"calibration": ["one"]}, "`calibration` must hold some hundred rows, got 1; give more"),
        ({"tokenizer": None}, "`tokenizer` must be the model's, got None"),
        ({"model": "runs/model"}, "`model` must be a loaded model of this package, got the path 'runs/model'"),
        ({"folder": tmp_path / "used"}, "`folder` must be new, empty or an export, got .*; choose another name"),
    ):
        options = {"model": model, "tokenizer": tokenizer, "folder": tmp_path / "onnx"} | arguments
        with pytest.raises(ValueError, match=message):
            hsvae_hf.export_onnx(**options)
    assert not (tmp_path / "onnx").exists()
    with pytest.raises(ValueError, match="`folder` must be one that `export_onnx` wrote, got .* without model.onnx"):
        hsvae_hf.OnnxEncoder(tmp_path / "used")


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hsvae_hf.export_onnx(small(), None, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.slow
def test_the_script_puts_an_encoder_before_a_coder(encoder, tokenizer, tmp_path, capsys):
    model = hsvae_hf.HSVAEModel.from_encoder_pretrained(str(encoder), decoder_type="vector", **RIDGE).eval()
    model.without_encoder().save_pretrained(tmp_path / "coder")
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES[:2] * 20))
    options = ["--encoder_name_or_path", encoder, "--calibration", tmp_path / "text.txt", "--quantize", "int8"]
    script("export_onnx", "--model_name_or_path", tmp_path / "coder", "--output_dir", tmp_path / "onnx", *options)
    assert "equal_supports" in capsys.readouterr().out
    codes, expected = hsvae_hf.OnnxEncoder(tmp_path / "onnx").encode(SENTENCES), encode(model, tokenizer, SENTENCES)
    assert codes.shape == expected.shape
    assert (codes.multiply(expected).sum(axis=1) > 0).all()


@pytest.mark.parametrize("name", ["gates", *(pytest.param(name, marks=pytest.mark.slow) for name in list(CODERS)[1:])])
def test_exported_and_compiled_coders_take_other_batches(name):
    model, vectors = small(**CODERS[name]).model, torch.randn(7, 5)
    expected = model(vectors=vectors).sparse_embedding
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (), {"vectors": torch.ones(3, 5)}, dynamic_shapes={"vectors": {0: batch}})
    torch.testing.assert_close(exported.module()(vectors=vectors).sparse_embedding, expected, atol=1e-5, rtol=1e-4)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(vectors=vectors).sparse_embedding, expected)


@pytest.mark.parametrize("size", [1, 24, 96])
def test_elimination_is_as_exact_as_the_solution_in_double_precision(size):
    columns, products = torch.randn(5, size, 384) / 384**0.5, torch.randn(5, size)
    system = columns @ columns.mT + 0.1 * torch.eye(size)
    expected = torch.linalg.solve(system.double(), products.double()).float()
    torch.testing.assert_close(eliminate(system, products), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 7, 60])
def test_real_tokens_come_first_in_their_order(length):
    mask = torch.rand(20, length) < 0.6
    expected = [[*row.nonzero().flatten().tolist(), *(~row).nonzero().flatten().tolist()] for row in mask]
    assert real_tokens_first(mask).tolist() == expected
