"""What transformers promises of every model: building, loading, saving, outputs, embeddings."""

import pytest
import torch
from families import BY_NAME, EVERY, FAMILIES, each
from safetensors.torch import save_file
from test_modeling_contract import SENTENCES, padded
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

HALVES = [torch.float16, torch.bfloat16]
KEPT = ("latent_head", "standardizer", "feature_norm", "classifier", "code_scale", "gamma_kl_scale")
AUTO = {
    "model": AutoModel,
    "pretraining": AutoModelForPreTraining,
    "classification": AutoModelForSequenceClassification,
}


family = each(EVERY)
text_family = each(FAMILIES)
word_family = each([family for family in FAMILIES if family.words])


@pytest.fixture(params=AUTO)
def kind(request):
    return request.param


def inputs(family):
    """A batch of four for a model of `family`."""
    if family.given:
        return {"vectors": torch.linspace(-1, 1, 20).view(4, 5)}
    return dict(zip(("input_ids", "attention_mask"), padded(SENTENCES), strict=True))


def build(family, kind, **changes):
    torch.manual_seed(0)
    return getattr(family, kind)(family.config(num_labels=3, num_samples=0, **changes)).eval()


def run(model, batch, **options):
    torch.manual_seed(0)
    return model(**batch, **options)


def kept_in_fp32(name):
    return any(part in KEPT for part in name.split("."))


def test_what_must_be_exact_is_fp32_whatever_the_dtype(family, kind, tmp_path):
    model = build(family, kind)
    model.save_pretrained(tmp_path)
    for dtype in HALVES:
        loaded = AUTO[kind].from_pretrained(tmp_path, dtype=dtype)
        for half in (loaded, AUTO[kind].from_config(model.config, dtype=dtype)):
            for name, value in half.state_dict().items():
                assert value.dtype == (torch.float32 if kept_in_fp32(name) else dtype), name
        for half in (loaded, build(family, kind).to(dtype)):
            output = run(half, inputs(family))
            assert output[0].dtype == torch.float32
            assert output[0].isfinite().all()
    names = {part for name in model.state_dict() for part in name.split(".")}
    assert model._keep_in_fp32_modules_strict <= names
    assert model._keep_in_fp32_modules_strict == names & set(KEPT)


def test_every_tensor_is_saved_and_models_are_built_without_memory_and_from_a_state_dict(family, kind):
    model = build(family, kind)
    known = {id(value) for value in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        for name, value in vars(module).items():
            assert not isinstance(value, torch.Tensor) or id(value) in known, name
    missing = {name for name, _ in (*model.named_parameters(), *model.named_buffers())} - model.state_dict().keys()
    assert all(".transformer." in name for name in missing), missing
    with torch.device("meta"):
        assert {value.device.type for value in type(model)(model.config).state_dict().values()} == {"meta"}
    loaded = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict()).eval()
    for one, other in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_whatever_a_checkpoint_lacks_is_initialised(family, tmp_path):
    build(family, "pretraining").save_pretrained(tmp_path)
    save_file({"none": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    model, fresh = AutoModelForPreTraining.from_pretrained(tmp_path), build(family, "pretraining")
    for (name, value), new in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert value.isfinite().all(), name
        assert value.float().abs().mean() <= 3 * new.float().abs().mean() + 0.1, name
        if kept_in_fp32(name) and "latent_head" not in name:  # scales, which nothing draws
            assert torch.equal(value, new), name
        assert value.is_contiguous()


def test_models_are_saved_in_shards_variants_and_other_weights(family, tmp_path):
    model = build(family, "pretraining")
    other = {name: value + 1 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "shards", max_shard_size=100)
    model.save_pretrained(tmp_path / "variant", variant="other", state_dict=dict(other))
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    assert (tmp_path / "shards/modules.json").exists() == (not family.given)
    shards = AutoModelForPreTraining.from_pretrained(tmp_path / "shards").state_dict()
    variant = AutoModelForPreTraining.from_pretrained(tmp_path / "variant", variant="other").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(shards[name], value)
        assert torch.equal(variant[name], value + 1)


def test_return_dict_changes_the_form_alone_and_loading_not_what_learns(family, kind, tmp_path):
    model = build(family, kind)
    model.save_pretrained(tmp_path)
    tuples = AUTO[kind].from_pretrained(tmp_path, return_dict=False).eval()
    batch = inputs(family)
    learned = {name: value.requires_grad for name, value in model.named_parameters()}
    assert {name: value.requires_grad for name, value in tuples.named_parameters()} == learned
    expected, found = run(model, batch), run(tuples, batch)
    assert isinstance(found, tuple)
    for one, other in zip(expected.to_tuple(), found, strict=True):
        assert torch.equal(one, other)
    assert run(tuples, batch, return_dict=True).keys() == expected.keys()


def test_hidden_states_are_the_encoders_in_the_order_of_the_input(family, kind):
    model, batch = build(family, kind), inputs(family)
    name = "encoder_hidden_states" if kind == "pretraining" else "hidden_states"
    assert getattr(run(model, batch), name) is None
    if family.given:
        with pytest.raises(ValueError, match="`output_hidden_states` must be False with `vectors`, got True"):
            run(model, batch, output_hidden_states=True)
        return
    right = getattr(run(model, batch, output_hidden_states=True), name)
    ids, mask = padded(SENTENCES, "left", 7)
    left = getattr(run(model, {"input_ids": ids, "attention_mask": mask}, output_hidden_states=True), name)
    assert len(right) == (2 if family.gru else 3)
    for layer, other in zip(right, left, strict=True):
        assert layer.shape[:2] == batch["input_ids"].shape
        torch.testing.assert_close(layer[batch["attention_mask"] == 1], other[mask == 1], atol=1e-5, rtol=1e-4)
    assert torch.equal(right[0], model.get_input_embeddings()(batch["input_ids"])) or not family.gru
    model.config.output_hidden_states = True
    assert len(getattr(run(model, batch), name)) == len(right)


def test_attentions_are_the_encoders_or_refused(family, kind):
    model, batch = build(family, kind), inputs(family)
    name = "encoder_attentions" if kind == "pretraining" else "attentions"
    with pytest.raises(ValueError, match="`output_attentions` must be False"):
        run(model, batch, output_attentions=True)
    if family.gru or family.given:
        return
    model.set_attn_implementation("eager")
    ids, mask = padded(SENTENCES, "left")
    for side in (batch, {"input_ids": ids, "attention_mask": mask}):
        weights = getattr(run(model, side, output_attentions=True), name)
        assert [layer.shape for layer in weights] == [(4, 2, 5, 5)] * 2
        padding = side["attention_mask"][:, None, None, :] == 0
        assert all(layer.masked_select(padding).abs().max() == 0 for layer in weights)


def test_attention_is_chosen_for_the_encoder(tmp_path):
    family = BY_NAME["hsvae-bert"]
    build(family, "pretraining").save_pretrained(tmp_path)
    for choice in ("eager", "sdpa", "flex_attention", {"": "sdpa", "encoder_config": "eager"}):
        model = AutoModelForPreTraining.from_pretrained(tmp_path, attn_implementation=choice)
        expected = choice["encoder_config"] if isinstance(choice, dict) else choice
        assert model.model.encoder.transformer.config._attn_implementation == expected
    model.set_attn_implementation("sdpa")
    assert model.model.encoder.transformer.config._attn_implementation == "sdpa"
    eager = AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    sdpa, batch = AutoModel.from_pretrained(tmp_path, attn_implementation="sdpa").eval(), inputs(family)
    torch.testing.assert_close(run(eager, batch).features, run(sdpa, batch).features)
    with pytest.raises(ImportError, match="FlashAttention2"):
        AutoModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


def test_other_label_counts_load_only_if_asked(family, tmp_path):
    build(family, "classification").save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    logits = run(model, inputs(family)).logits
    assert logits.shape == (4, 5)
    assert logits.isfinite().all()


def test_embeddings_are_got_set_and_resized(text_family, kind, tmp_path):
    new_words = {"input_ids": torch.tensor([[43, 1]])}
    for changes in ({}, {"tie_word_embeddings": False}):
        model = build(text_family, kind, **changes)
        grown = model.resize_token_embeddings(44)
        assert model.get_input_embeddings() is grown
        head = model.state_dict().get("decoder.lm_head.weight", torch.zeros(0)).clone()
        model.post_init()  # what was resized is not initialised again
        assert torch.equal(model.state_dict().get("decoder.lm_head.weight", head), head)
        model.save_pretrained(tmp_path)
        loaded = AUTO[kind].from_pretrained(tmp_path).eval()
        torch.testing.assert_close(run(loaded, new_words)[0], run(model, new_words)[0])
    new = torch.nn.Embedding(44, grown.embedding_dim)
    model.set_input_embeddings(new)
    assert model.base_model.get_input_embeddings() is new
    shrunk = model.resize_token_embeddings(10)
    assert shrunk.num_embeddings == model.config.vocab_size == 10


def test_gradient_checkpointing_changes_no_gradient(family):
    changes = {"freeze_encoder": False}
    plain, saving = (build(family, "classification", **changes).train() for _ in range(2))
    if family.gru or family.given:
        with pytest.raises(ValueError, match="does not support"):
            saving.gradient_checkpointing_enable()
        return
    saving.gradient_checkpointing_enable()
    assert saving.is_gradient_checkpointing
    for model in (plain, saving):
        run(model, inputs(family), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.allclose(one.grad, other.grad, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}, {"use_cache": False}], ids=str)
def test_generation_tells_how_it_went(word_family, options):
    model, (ids, mask) = build(word_family, "pretraining"), padded(SENTENCES)
    wanted = {"output_scores": True, "output_logits": True, "output_hidden_states": True}
    lengths = {"max_new_tokens": 3, "min_new_tokens": 3}
    found = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **wanted, **lengths, **options)
    rows = 4 * options.get("num_beams", 1)
    assert len(found.scores) == len(found.logits) == len(found.decoder_hidden_states) == 3
    last = found.decoder_hidden_states[-1][0]
    assert last.shape == (rows, 3 if options.get("use_cache") is False else 1, 12)
    torch.testing.assert_close(model.decoder.lm_head(last[:, -1]), found.logits[-1])
    assert len(found.encoder_hidden_states) == (2 if word_family.gru else 3)
    tuples = build(word_family, "pretraining", return_dict=False)
    assert torch.equal(tuples.generate(ids, max_new_tokens=3), model.generate(ids, max_new_tokens=3))
    assert len(tuples.interpolate(ids[:1], ids[1:2], 3, max_new_tokens=3)) == 3
