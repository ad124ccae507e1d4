"""Generation as users call it: its inputs, the decoder's state under both names, code of other versions."""

import pytest
import torch
from families import BY_NAME
from transformers import AutoModelForPreTraining

WORDS, VECTORS = BY_NAME["hsvae"], BY_NAME["hsvae-vector"]
IDS = torch.tensor([[5, 6, 1], [7, 8, 1]])


@pytest.fixture
def model():
    return WORDS.pretraining(WORDS.config()).eval()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.generate(), "`input_ids` or `latents` must be given, got neither"),
        (lambda model: model.generate(latents=torch.full((1, 6), torch.nan)), "`latents` must be finite"),
        (lambda model: model.generate(latents=torch.ones(1, 6).long()), "`latents` must be a tensor of floats.*int64"),
        (lambda model: model.generate(latents=[[0.0] * 6]), "`latents` must be a tensor of floats.*got list"),
        (lambda model: model.generate(latents=torch.ones(0, 6)), r"`latents` must be \(batch, 6\), got \(0, 6\)"),
        (lambda model: model.generate(latents=torch.ones(2, 5)), r"`latents` must be \(batch, 6\), got \(2, 5\)"),
        (lambda model: model.sample_prior(0), "`num_samples` must be a whole number of at least 1, got 0"),
        (lambda model: model.sample_prior(True), "`num_samples` must be a whole number"),
        (lambda model: model.interpolate("a", "b", 3), "`a` must be a tensor of token ids or a latent, got str 'a'"),
        (lambda model: model.interpolate(IDS[:1], IDS, 3), "`b` must be one sentence"),
        (lambda model: model.interpolate(IDS[:1], torch.full((1, 6), torch.inf), 3), "`b` must be finite"),
        (lambda model: model.interpolate(IDS[:1], IDS[1:], 1), "`steps` must be a whole number of at least 2, got 1"),
        (lambda model: model.interpolate(IDS[:1], IDS[1:], "3"), "`steps` must be a whole number.*got '3'"),
        (lambda model: model(IDS, labels=IDS, decoder_input_ids=IDS), "`labels` must come without `decoder_input_ids`"),
        (lambda model: model.decode_vectors(torch.ones(1, 6)), "`decoder_type` must be 'vector' to decode vectors"),
        (lambda model: model(IDS, torch.ones(2, 2)), r"`attention_mask` must be \(2, 3\), as the tokens, got"),
        (lambda model: model(IDS, torch.ones(1, 3)), r"`attention_mask` must be \(2, 3\), as the tokens, got"),
    ],
)
def test_bad_input_is_named(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


def test_only_a_decoder_of_words_can_generate(tmp_path):
    assert WORDS.pretraining.can_generate()
    assert WORDS.pretraining(WORDS.config()).can_generate()
    vectors = VECTORS.pretraining(VECTORS.config())
    assert not vectors.can_generate()
    for latents in (torch.ones(6), torch.full((1, 6), torch.nan)):
        with pytest.raises(ValueError, match="`latents` must be"):
            vectors.decode_vectors(latents)
    vectors.save_pretrained(tmp_path)
    assert not (tmp_path / "generation_config.json").exists()
    assert not AutoModelForPreTraining.from_pretrained(tmp_path).can_generate()


def test_the_state_goes_by_both_names_and_is_kept_where_the_configuration_says(model):
    latents = model.model(IDS)
    whole = model(decoder_input_ids=IDS, encoder_outputs=latents).logits
    first = model(decoder_input_ids=IDS[:, :1], encoder_outputs=latents)
    for name in ("cache", "past_key_values"):
        rest = model(decoder_input_ids=IDS[:, 1:], encoder_outputs=latents, **{name: first.cache}).logits
        torch.testing.assert_close(torch.cat([first.logits, rest], dim=1), whole)
    model = WORDS.pretraining(WORDS.config(use_cache=False))
    assert model(IDS, decoder_input_ids=IDS).cache is None
    assert model(IDS, decoder_input_ids=IDS, use_cache=True).cache is not None
    assert model.generation_config.use_cache is False


def test_several_tokens_may_end_a_sentence():
    model = WORDS.pretraining(WORDS.config(eos_token_id=list(range(1, 40)))).eval()
    words = model.generate(IDS, max_new_tokens=6)
    assert words.shape[1] == 2 or (words[:, 2:] == 0).all()  # every word but padding ends it
    endless = WORDS.pretraining(WORDS.config(eos_token_id=None)).eval()
    assert endless.generate(IDS, max_new_tokens=6).shape == (2, 7)
    assert torch.isfinite(endless(IDS).loss)


def test_posteriors_and_pairs_are_decoded(model):
    torch.testing.assert_close(
        model.generate(encoder_outputs=model.model(IDS), num_beams=2, max_new_tokens=4),
        model.generate(IDS, num_beams=2, max_new_tokens=4),
    )
    pairs = BY_NAME["hsvae-bert"].pretraining(BY_NAME["hsvae-bert"].config()).eval()
    types = torch.tensor([[0, 1, 1], [0, 0, 1]])
    one, other = (pairs.model(IDS, token_type_ids=kind).features for kind in (types, torch.zeros_like(types)))
    assert not torch.allclose(one, other)
    torch.testing.assert_close(other, pairs.model(IDS).features)
    assert pairs.generate(input_ids=IDS, token_type_ids=types, max_new_tokens=3).shape == (2, 4)


@pytest.mark.parametrize("labels", [torch.eye(3)[:2], torch.eye(3).long()[:2]], ids=str)
def test_several_classes_at_once_are_remembered(labels, tmp_path):
    classifier = WORDS.classification(WORDS.config(num_labels=3, num_samples=0)).eval()
    trained = classifier(IDS, labels=labels)
    assert trained.loss.isfinite()
    classifier.save_pretrained(tmp_path)
    loaded = WORDS.classification.from_pretrained(tmp_path)
    assert loaded.config.problem_type == "multi_label_classification"
    torch.testing.assert_close(loaded(IDS).logits, trained.logits)


def test_labels_in_a_column_and_labels_of_none():
    classifier = WORDS.classification(WORDS.config(num_labels=3, num_samples=0)).eval()
    flat = classifier(IDS, labels=torch.tensor([2, 0])).loss
    torch.testing.assert_close(classifier(IDS, labels=torch.tensor([[2], [0]])).loss, flat)
    first = classifier(IDS[:1], labels=torch.tensor([2])).loss
    torch.testing.assert_close(classifier(IDS, labels=torch.tensor([2, -100])).loss, first)
