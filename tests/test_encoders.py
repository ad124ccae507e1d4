"""Pretrained text encoders: any of transformers, their own tokenizers, everything in one folder."""

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, AutoTokenizer
from vector_models import script

import hsvae_hf
from hsvae_hf.models.vocabulary import special_token_ids

SENTENCES = ["the cat sees a dog", "one", "", "two dog"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "the", "cat", "sees", "a", "dog", "one", "two", "rome"]
KINDS = {
    "bert": transformers.BertConfig(**SIZES, vocab_size=13, max_position_embeddings=20),
    "distilbert": transformers.DistilBertConfig(
        dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=13, max_position_embeddings=20
    ),
    "roberta": transformers.RobertaConfig(**SIZES, vocab_size=13, max_position_embeddings=21, pad_token_id=0),
    "modernbert": transformers.ModernBertConfig(
        **SIZES, vocab_size=13, max_position_embeddings=20, pad_token_id=0, cls_token_id=1, sep_token_id=2
    ),
}


@pytest.fixture(params=KINDS)
def encoder(request, tmp_path):
    """Folder of a tiny encoder with its tokenizer."""
    folder = tmp_path / request.param
    AutoModel.from_config(KINDS[request.param]).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk", "mask")}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=20, **special)
    tokenizer.save_pretrained(folder)
    return folder


def batch(tokenizer, side="right"):
    return tokenizer(SENTENCES, padding=True, padding_side=side, return_tensors="pt")


def test_features_are_the_mean_over_real_tokens(encoder):
    model = hsvae_hf.HSVAEModel.from_encoder_pretrained(str(encoder), latent_size=6, feature_std=0).eval()
    alone, tokenizer = AutoModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)
    ids = [tokenizer(text, return_tensors="pt").input_ids for text in SENTENCES]
    expected = torch.cat([alone(row).last_hidden_state.mean(1) for row in ids])
    for side in ("right", "left"):
        inputs = batch(tokenizer, side)
        features = model(inputs.input_ids, inputs.attention_mask).features
        torch.testing.assert_close(features, expected, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(model(inputs.input_ids).features, expected, atol=2e-6, rtol=1e-5)


def test_a_saved_model_needs_no_second_download(encoder, tmp_path):
    model = hsvae_hf.VSCForPreTraining.from_encoder_pretrained(
        str(encoder), latent_size=6, embedding_size=8, hidden_size=12
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model.save_pretrained(tmp_path / "saved")
    for path in encoder.iterdir():
        path.unlink()
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path / "saved").eval()
    inputs = batch(tokenizer)
    for one, other in zip(model.model(**inputs).values(), loaded.model(**inputs).values(), strict=True):
        assert torch.equal(one, other)
    assert type(loaded.config.encoder_config) is type(model.config.encoder_config)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", num_labels=3)
    assert classifier(**inputs).logits.shape == (4, 3)


def test_the_start_token_is_given_not_predicted_and_too_many_tokens_are_named(encoder):
    model = hsvae_hf.HSVAEForPreTraining.from_encoder_pretrained(str(encoder), latent_size=6, hidden_size=12).eval()
    inputs = batch(AutoTokenizer.from_pretrained(encoder))
    model.model(torch.full((1, 20), 5))
    with pytest.raises(ValueError, match="`input_ids` must have at most 20 tokens"):
        model.model(torch.full((1, 21), 5))
    assert model(**inputs).num_tokens == inputs.attention_mask.sum() - 4
    words = model.generate(**inputs, max_new_tokens=4)
    assert (words[:, 0] == 1).all()
    assert model.sample_prior(3, max_new_tokens=4).shape[0] == 3


@pytest.mark.parametrize("frozen", [True, False])
def test_freezing_the_encoder(encoder, frozen):
    model = hsvae_hf.HSVAEForPreTraining.from_encoder_pretrained(
        str(encoder), latent_size=6, hidden_size=12, freeze_text_encoder=frozen
    ).train()
    inputs = batch(AutoTokenizer.from_pretrained(encoder))
    assert model.model.encoder.transformer.training != frozen
    model(**inputs).loss.backward()
    assert all((p.grad is None) == frozen for p in model.model.encoder.parameters() if p.requires_grad or frozen)
    assert all(p.grad is not None for p in model.model.latent_head.parameters())
    features = [model.model(**inputs).features for _ in range(2)]
    if frozen:
        assert torch.equal(*features)


def test_missing_encoders_and_special_tokens_are_named(encoder, tmp_path):
    with pytest.raises(ValueError, match="`encoder_name_or_path` must be the folder"):
        hsvae_hf.HSVAEModel.from_encoder_pretrained(str(tmp_path / "none"))
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="`pad_token_id` must be known"):
        special_token_ids(tokenizer)


def test_train_script_builds_on_an_encoder(encoder, tmp_path):
    corpus, run = tmp_path / "corpus.txt", tmp_path / "run"
    corpus.write_text("the cat sees a dog\none two\nrome\na cat\nthe dog\n" * 4)
    command = ["--dataset", corpus, "--encoder_name_or_path", encoder, "--output_dir", run, "--latent_size", 6]
    command += ["--hidden_size", 12, "--num_train_epochs", 1, "--per_device_train_batch_size", 4, "--max_length", 10]
    script("train", *command, "--report_to", "none")
    config = json.loads((run / "config.json").read_text())
    assert config["encoder_config"]["model_type"] == encoder.name
    state = json.loads(next(run.glob("checkpoint-*/trainer_state.json")).read_text())
    assert all(look["eval_loss"] > 0 for look in state["log_history"] if "eval_runtime" in look)
    assert any("eval_active_dims" in look for look in state["log_history"])
    codes = hsvae_hf.encode(AutoModel.from_pretrained(run), AutoTokenizer.from_pretrained(run), ["a cat", ""])
    assert codes.shape == (2, 6)


def test_an_encoder_without_a_limit_of_positions_reads_any_length():
    transformer = transformers.XLNetConfig(vocab_size=13, d_model=16, n_layer=1, n_head=2, d_inner=24)
    config = {"encoder_type": "transformer", "encoder_config": transformer, "tie_word_embeddings": False}
    model = hsvae_hf.HSVAEModel(hsvae_hf.HSVAEConfig(**config, vocab_size=13, latent_size=6)).eval()
    for length in (1, 60):
        assert model(input_ids=torch.ones(2, length, dtype=torch.long)).sparse_embedding.shape == (2, 6)
