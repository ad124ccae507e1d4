"""Vectors of a frozen encoder: its pooling and prompts, what is computed once, vectors from files."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SparseEncoder
from vector_models import SENTENCES, as_sentence_transformers, vector_model

import hsvae_hf
from hsvae_hf import embedding_cache as vectors_module
from hsvae_hf.embedding_cache import embed_dataset, load_encoder_tokenizer
from hsvae_hf.encoding import sentence_vectors
from hsvae_hf.files import load_vectors
from hsvae_hf.loading import load_for_inference
from hsvae_hf.models.pooling import read_pooling


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_vectors_are_those_of_sentence_transformers(encoder, pooling, normalize):
    as_sentence_transformers(encoder, pooling, normalize)
    expected = SentenceTransformer(str(encoder), device="cpu").encode(SENTENCES)
    model, tokenizer = vector_model(encoder), load_encoder_tokenizer(str(encoder))
    assert tokenizer.model_max_length == 7
    np.testing.assert_allclose(sentence_vectors(model, tokenizer, SENTENCES), expected, atol=1e-5)


def test_prompts_are_kept_and_used_everywhere(encoder, tmp_path):
    prompts = {"query": "one two ", "document": ""}
    as_sentence_transformers(encoder, prompts=prompts, default_prompt_name="query")
    model, tokenizer = vector_model(encoder), load_encoder_tokenizer(str(encoder))
    expected = SentenceTransformer(str(encoder), device="cpu").encode(SENTENCES)  # with its default prompt
    np.testing.assert_allclose(sentence_vectors(model, tokenizer, SENTENCES), expected, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    codes = hsvae_hf.encode(*load_for_inference(tmp_path / "saved"), SENTENCES)
    found = SparseEncoder(str(tmp_path / "saved"), device="cpu", trust_remote_code=True).encode(SENTENCES)
    np.testing.assert_allclose(found.to_dense().numpy(), codes.toarray(), atol=1e-6)
    bare = [f"one two {sentence}" for sentence in SENTENCES]
    model.config.default_prompt_name = None
    assert (hsvae_hf.encode(model, tokenizer, bare) != codes).nnz == 0
    assert (hsvae_hf.encode(model, tokenizer, SENTENCES, prompt_name="query") != codes).nnz == 0
    model.config.default_prompt_name = "query"
    assert (hsvae_hf.encode(model, tokenizer, bare, prompt_name="document") != codes).nnz == 0
    with pytest.raises(ValueError, match=r"`prompt_name` must be one of \['document', 'query'\], got 'passage'"):
        hsvae_hf.encode(model, tokenizer, SENTENCES, prompt_name="passage")


def test_a_transformer_in_a_subfolder_is_found(encoder):
    as_sentence_transformers(encoder)
    modules = json.loads((encoder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (encoder / "modules.json").write_text(json.dumps(modules))
    (encoder / "0_Transformer").mkdir()
    for path in list(encoder.iterdir()):
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            shutil.move(path, encoder / "0_Transformer" / path.name)
    expected = SentenceTransformer(str(encoder), device="cpu").encode(SENTENCES)
    model, tokenizer = vector_model(encoder), load_encoder_tokenizer(str(encoder))
    np.testing.assert_allclose(sentence_vectors(model, tokenizer, SENTENCES), expected, atol=1e-5)


def test_what_cannot_be_honoured_is_refused(encoder):
    as_sentence_transformers(encoder)
    modules = json.loads((encoder / "modules.json").read_text())
    for place in ("../outside", "/etc", "1_Pooling/../../outside", "..\\outside", "C:/outside"):
        modules[1]["path"] = place
        (encoder / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ValueError, match="`encoder_name_or_path` must be .* with a module outside its folder"):
            read_pooling(str(encoder))
    as_sentence_transformers(encoder, "max")
    with pytest.raises(ValueError, match="`encoder_name_or_path` must be a transformer with mean.*with max pooling"):
        vector_model(encoder)
    as_sentence_transformers(encoder)
    modules = json.loads((encoder / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (encoder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="the modules Transformer, Pooling, Dense, Normalize"):
        read_pooling(str(encoder))
    as_sentence_transformers(encoder, prompts={"query": "query: "})
    settings = json.loads((encoder / "1_Pooling/config.json").read_text()) | {"include_prompt": False}
    (encoder / "1_Pooling/config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="prompts that its pooling leaves out"):
        read_pooling(str(encoder))
    as_sentence_transformers(encoder)
    (encoder / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    with pytest.raises(ValueError, match="lower-casing outside its tokenizer"):
        read_pooling(str(encoder))


def test_vectors_are_computed_once_and_again_for_what_differs_or_is_damaged(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors_module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    runs = []

    def counted(model, tokenizer, sentences, *args, **options):
        runs.append(len(sentences))
        return sentence_vectors(model, tokenizer, sentences, *args, **options)

    monkeypatch.setattr(vectors_module, "sentence_vectors", counted)
    model, tokenizer = vector_model(encoder), load_encoder_tokenizer(str(encoder))
    data = Dataset.from_dict({"text": SENTENCES, "label": [0, 1, 0, 1]})
    first = embed_dataset(data, model, tokenizer)
    np.testing.assert_array_equal(first, sentence_vectors(model, tokenizer, SENTENCES))
    again = vector_model(encoder)  # another object, the same encoder; another head
    np.testing.assert_array_equal(embed_dataset(data.remove_columns("label"), again, tokenizer), first)
    assert runs == [4]
    (cache,) = (tmp_path / "cache/sentence_vectors").glob("*.npy")
    cache.write_bytes(cache.read_bytes()[:40])
    np.testing.assert_array_equal(embed_dataset(data, model, tokenizer), first)
    other = embed_dataset(data.select([2, 0]), model, tokenizer)
    np.testing.assert_allclose(other, first[[2, 0]], atol=1e-6)
    assert runs == [4, 4, 2]
    joined, texts = (Dataset.from_dict({"text": rows}) for rows in (["one\0two"], ["one", "two"]))
    assert [len(embed_dataset(rows, model, tokenizer)) for rows in (joined, texts)] == [1, 2]
    model.config.normalize_vectors = True
    assert not np.allclose(embed_dataset(data, model, tokenizer), first)
    with torch.no_grad():
        again.model.encoder.get_word_embeddings().weight.add_(1.0)
    embed_dataset(data, again, tokenizer)
    tokenizer.model_max_length = 3
    shorter = embed_dataset(data, vector_model(encoder), tokenizer)
    tokenizer.truncation_side = "left"
    assert not np.allclose(embed_dataset(data, vector_model(encoder), tokenizer), shorter)
    assert runs == [4, 4, 2, 1, 2, 4, 4, 4, 4]


def test_vectors_are_read_from_files_and_bad_files_are_named(tmp_path):
    rows, path = np.random.default_rng(0).normal(size=(10, 4)), tmp_path / "rows.npy"
    with pytest.raises(ValueError, match="`vectors` must be a .npy, .parquet or .arrow file"):
        load_vectors(path)
    np.save(path, rows)
    Dataset.from_dict({"vectors": rows.tolist(), "id": list(range(10))}).to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.npy", "rows.parquet"):
        vectors = load_vectors(tmp_path / name)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, rows, rtol=1e-6)
    for content, message in (
        (rows[:0], "shape"),
        (rows[0], "shape"),
        ([[1, np.nan]], "NaN"),
        ([["a"]], "holds <U1"),
    ):
        np.save(path, content)
        with pytest.raises(ValueError, match=message):
            load_vectors(path)
    path.write_bytes(b"not numpy")
    with pytest.raises(ValueError, match="`vectors` must hold finite numbers"):
        load_vectors(path)


def test_encoders_without_an_unknown_word_and_old_files(encoder):
    as_sentence_transformers(encoder)
    (encoder / "sentence_bert_config.json").rename(encoder / "sentence_distilbert_config.json")
    assert load_encoder_tokenizer(str(encoder)).model_max_length == 7
    settings = json.loads((encoder / "tokenizer_config.json").read_text())
    settings.pop("unk_token", None)
    (encoder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert vector_model(encoder).config.decoder_type == "vector"
    (encoder / "modules.json").write_text("{}x")
    with pytest.raises(ValueError, match="`encoder_name_or_path` must be intact, got a damaged"):
        read_pooling(str(encoder))
    (encoder / "modules.json").write_text('[{"idx": 0}]')
    with pytest.raises(ValueError, match="files that cannot be understood"):
        read_pooling(str(encoder))


def test_half_an_encoder_is_refused(encoder):
    weights = load_file(encoder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, encoder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="`encoder_name_or_path` must hold all weights of its encoder"):
        vector_model(encoder)
