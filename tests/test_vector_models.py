"""Models that reconstruct sentence vectors: the decoder, the similarity term, the light form, reports."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import BY_NAME, each
from torch.distributions import Normal
from transformers import AutoModelForPreTraining, AutoModelForSequenceClassification
from vector_models import SENTENCES, VECTOR_FAMILIES, small, vector_model

from hsvae_hf.encoding import encode, encode_vectors, sentence_vectors
from hsvae_hf.loading import load_for_inference
from hsvae_hf.models.distributions import neighbour_kl
from hsvae_hf.models.modeling_decoder import VectorDecoder
from hsvae_hf.probes import probe_accuracy
from hsvae_hf.report import evaluate_model
from hsvae_hf.statistics import corpus_statistics, neighbours_kept
from hsvae_hf.trainer import TextVAETrainer
from hsvae_hf.training_arguments import TextVAETrainingArguments

family = each(VECTOR_FAMILIES)


def test_reconstruction_is_a_gaussian_log_density():
    decoder = small(latent_size=3, decoder_std=0.7).decoder.double()
    assert isinstance(decoder, VectorDecoder)
    z, vectors = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    nats, terms = decoder(z, vectors)
    mean = z @ decoder.output.weight.T + decoder.output.bias
    expected = -Normal(mean, 0.7).log_prob(vectors).sum()
    torch.testing.assert_close(nats, expected, check_dtype=False, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms, {"squared_error": ((mean - vectors) ** 2).mean()}, check_dtype=False)


def test_vectors_text_and_the_light_form_agree(family, tmp_path):
    model = family.pretraining(family.config()).eval()
    ids = torch.tensor([[5, 6, 7, 1], [9, 1, 0, 0]])
    vectors = model.model.encoder(ids, ids != 0).pooler_output
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
    data[:, 3] = 7.0  # a dimension that never varies
    model.model.standardizer.fit(data)
    assert model(vectors=data).loss.isfinite()
    assert model.model.standardizer(data)[:, 3].abs().max() == 0


def test_wrong_vectors_are_named():
    model = VECTOR_FAMILIES[0].model(VECTOR_FAMILIES[0].config())
    for shape in ((2, 5), (0, 16)):
        with pytest.raises(ValueError, match=rf"`vectors` must be \(batch, 16\), got \({shape[0]}, {shape[1]}\)"):
            model(vectors=torch.zeros(shape))
    with pytest.raises(NotImplementedError, match="no text encoder, so no word embeddings"):
        small().get_input_embeddings()
    with pytest.raises(ValueError, match="`vectors` must come without text"):
        model(input_ids=torch.tensor([[1]]), vectors=torch.zeros(1, 16))
    assert model(vectors=torch.full((1, 16), torch.nan)).sparse_embedding.isnan().any()  # it shows in the code


def test_features_that_are_there_already_reconstruct_the_same_words():
    family = BY_NAME["hsvae-bert"]
    model = family.pretraining(family.config(freeze_text_encoder=True)).eval()
    ids = torch.tensor([[5, 6, 7, 1], [9, 1, 0, 0]])
    vectors = model.model.encoder(ids, ids != 0).pooler_output
    losses = []
    for inputs in ({"input_ids": ids}, {"vectors": vectors, "labels": ids.masked_fill(ids == 0, -100)}):
        torch.manual_seed(0)
        losses.append(model(**inputs).loss)
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="`labels` must be given"):
        model(vectors=vectors)


def test_the_report_is_of_the_codes_as_they_are_given():
    model, vectors = small(max_active_dims=2), torch.randn(130, 5)
    model.model.code_scale.fill_(3.0)
    report = corpus_statistics(model, [{"vectors": part} for part in vectors.split(70)])
    codes = encode_vectors(model, vectors.numpy())
    assert codes.getnnz(axis=1).max() == 2
    error = (model.decoder.mean(torch.tensor(codes.toarray()) / 3) - vectors).square().mean()
    assert report["squared_error_code"] == pytest.approx(error.item(), rel=1e-5)
    assert report["neighbours_kept"] == pytest.approx(
        neighbours_kept(vectors.numpy(), codes, similarity_fn_name="cosine")
    )
    assert "neighbours_kept" not in corpus_statistics(model, [{"vectors": vectors[:99]}])


def test_the_report_of_vectors_and_of_text_is_the_same(encoder, sentences, labels, tokenizer):
    model, classes = vector_model(encoder), np.unique(labels, return_inverse=True)[1]
    vectors = sentence_vectors(model, tokenizer, sentences)
    texts = Dataset.from_dict({"text": sentences, "label": classes})
    by_vector = evaluate_model(model, None, None, Dataset.from_dict({"vectors": vectors.tolist()}))
    by_text = evaluate_model(model, tokenizer, texts.select(range(0, 12, 2)), texts)
    accuracy = by_text.pop("accuracy")["dense"]  # of the vectors themselves
    assert accuracy == probe_accuracy(vectors[::2], classes[::2], vectors, classes)
    assert by_text.pop("dimensions")  # which words switch them on, where there are words
    assert {name: by_text[name] for name in by_vector} == by_vector


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


def test_pseudo_inputs_do_not_decay(tmp_path):
    model = small("vsc")
    options = {"report_to": "none", "eval_strategy": "no"}
    trainer = TextVAETrainer(model, TextVAETrainingArguments(output_dir=str(tmp_path), **options))
    decaying = set(trainer.get_decay_parameter_names(model))
    assert {"model.decoder.output.weight", "model.latent_head.posterior.weight"} <= decaying
    assert "model.latent_head.pseudo_inputs" in {name for name, _ in model.named_parameters()} - decaying


def test_the_light_form_takes_its_encoder_back(encoder, tokenizer, tmp_path):
    model = vector_model(encoder, code_ridge=0.1, max_active_dims=3)
    model.model.standardizer.fit(torch.randn(50, 16) * 3 + 1)
    again = model.without_encoder().with_encoder(str(encoder))
    assert again.config.max_active_dims == 3
    assert not again.training
    codes, expected = (encode(each, tokenizer, SENTENCES) for each in (again, model))
    assert (codes != expected).nnz == 0
    with pytest.raises(ValueError, match="`encoder_name_or_path` must be left out for a model with an encoder"):
        model.with_encoder(str(encoder))
    with pytest.raises(
        ValueError, match="`encoder_name_or_path` must give vectors of 5 numbers, got .* of 16; use the"
    ):
        small().with_encoder(str(encoder))
