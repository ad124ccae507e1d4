"""What every model family must do, through the public interface."""

import pytest
import torch
from families import DENSE, DETERMINISTIC, FAMILIES, each
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForPreTraining

from hsvae_hf.models import modeling_decoder
from hsvae_hf.models.modeling_decoder import is_bare_linear, vocabulary_loss

SENTENCES = [[5, 6, 7, 8, 1], [9, 1], [10, 11, 12, 1], [1]]


family = each(FAMILIES)
gru_family = each([family for family in FAMILIES if family.gru])
word_family = each([family for family in FAMILIES if family.words])
random_family = each([family for family in FAMILIES if family.name not in DETERMINISTIC])


def term(output, name):
    return 0.0 if output.get(name) is None else output[name]


def padded(rows, side="right", width=None, pad=0):
    width = width or max(map(len, rows))
    ids = [row + [pad] * (width - len(row)) if side == "right" else [pad] * (width - len(row)) + row for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor([row if side == "right" else row[::-1] for row in mask])


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_every_parameter_learns(family, autocast):
    model = family.pretraining(family.config()).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(*padded(SENTENCES))
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert not family.words, name
            assert name.startswith("model.encoder.")
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_codes_and_loss_do_not_depend_on_padding_or_company(family):
    model = family.pretraining(family.config()).eval()
    alone = torch.cat([model.model(torch.tensor([row])).sparse_embedding for row in SENTENCES])
    losses = []
    for side in ("right", "left"):
        for width in (None, 11):
            batch = padded(SENTENCES, side, width)
            torch.testing.assert_close(model.model(*batch).sparse_embedding, alone, atol=1e-6, rtol=1e-5)
            torch.manual_seed(3)
            losses.append(model(*batch).reconstruction_loss)
            torch.testing.assert_close(losses[-1], losses[0])


def test_codes_are_deterministic_with_exact_zeros_and_the_loss_is_sampled(family):
    model = family.pretraining(family.config()).eval()
    batch = padded(SENTENCES)
    with torch.no_grad():
        for parameter in model.model.latent_head.parameters():
            parameter.mul_(100)  # an untrained head leaves every dimension undecided
    first, again = model.model(*batch), model.model(*batch)
    assert torch.equal(first[0], first.sparse_embedding)
    assert torch.equal(first.sparse_embedding, again.sparse_embedding)
    assert (first.sparse_embedding == 0).any() == (family.name not in DENSE)
    losses = [model(*batch).reconstruction_loss for _ in range(2)]
    assert (losses[0] != losses[1]) == (family.name not in DETERMINISTIC)


def test_loss_is_the_sum_of_its_weighted_terms(family):
    model = family.pretraining(family.config(z_kl_weight=0.3, gamma_kl_weight=0.7, penalty_weight=0.2)).eval()
    output = model(*padded(SENTENCES))
    weighted = 0.3 * term(output, "z_kl") + 0.7 * term(output, "gamma_kl") + 0.2 * term(output, "penalty")
    expected = output.reconstruction_loss + weighted
    torch.testing.assert_close(output.loss, expected)
    assert output.get("num_tokens") == (12 if family.words else None)
    assert (output.get("squared_error") is None) == family.words


def test_annealing_scales_the_kl_in_training_only_and_free_bits_floor_the_cost_alone(random_family):
    weights = {"z_kl_weight": 1.0, "gamma_kl_weight": 0.0, "penalty_weight": 0.0}
    model = random_family.pretraining(random_family.config(**weights, free_bits=500.0)).eval()
    output = model(*padded(SENTENCES))
    torch.testing.assert_close(output.loss - output.reconstruction_loss, torch.tensor(6 * 500.0), rtol=1e-4, atol=1e-3)
    assert output.z_kl < 500
    model = random_family.pretraining(random_family.config(**(weights | {"gamma_kl_weight": 1.0})))
    model.kl_scale = 0.0
    torch.manual_seed(0)
    output = model.train()(*padded(SENTENCES))
    torch.testing.assert_close(output.loss, output.reconstruction_loss)
    torch.manual_seed(0)
    assert model.eval()(*padded(SENTENCES)).loss > output.loss


def test_word_dropout_hides_words_in_training_only(word_family):
    model = word_family.pretraining(word_family.config(word_dropout=0.99))
    seen = []
    model.decoder.embed_tokens.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    ids, mask = padded([[5, 6, 7, 8, 9, 10, 11, 12, 13, 1]])
    model.train()(ids, mask)
    model.eval()(ids, mask)
    assert seen[0][0, 0] == 1
    assert (seen[0][0, 1:] == 2).float().mean() > 0.7
    assert seen[1].tolist() == [[1, *ids[0, :-1].tolist()]]


def test_labels_may_be_given_and_padded_with_minus_100(word_family):
    model = word_family.pretraining(word_family.config()).eval()
    ids, mask = padded(SENTENCES)
    outputs = []
    for labels in (None, ids.masked_fill(mask == 0, -100)):
        torch.manual_seed(0)
        outputs.append(model(ids, mask, labels=labels).loss)
    assert outputs[0] == outputs[1]


def test_decoder_loss_is_that_of_a_naive_loop(word_family):
    model = word_family.pretraining(word_family.config()).double().eval()
    decoder, z = model.decoder, torch.randn(4, word_family.latent_size, dtype=torch.float64)
    cell = torch.nn.GRUCell(8 + word_family.latent_size, 12).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in decoder.gru.state_dict().items()})
    total = 0.0
    for row, code in zip(SENTENCES, z, strict=True):
        state, previous = torch.zeros(12, dtype=torch.float64), 1
        for word in row:
            state = cell(torch.cat([decoder.embed_tokens.weight[previous], code]), state)
            total -= decoder.lm_head(state).log_softmax(-1)[word]
            previous = word
    ids, mask = padded(SENTENCES, "left")
    loss, terms = decoder(z, ids, mask == 0)
    torch.testing.assert_close(loss, total)
    assert terms == {"num_tokens": 12}


def test_encoder_features_are_those_of_a_naive_loop(gru_family):
    encoder = gru_family.model(gru_family.config()).double().eval().encoder
    cell = torch.nn.GRUCell(8, 12).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in encoder.gru.state_dict().items()})
    states = []
    for row in SENTENCES:
        state = torch.zeros(12, dtype=torch.float64)
        for word in row:
            state = cell(encoder.embed_tokens.weight[word], state)
        states.append(state)
    torch.testing.assert_close(encoder(*padded(SENTENCES)).pooler_output, torch.stack(states))


def test_saved_models_come_back_bit_for_bit(family, tmp_path):
    model = family.pretraining(family.config()).eval()
    model.save_pretrained(tmp_path)
    batch = padded(SENTENCES)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path).eval()
    assert type(loaded) is family.pretraining
    torch.manual_seed(0)
    expected = model(*batch).loss
    torch.manual_seed(0)
    assert loaded(*batch).loss == expected
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert type(base) is family.model
    assert torch.equal(base(*batch).sparse_embedding, model.model(*batch).sparse_embedding)
    if family.gru:  # word embeddings are shared and saved once
        assert model.decoder.embed_tokens.weight is model.model.encoder.embed_tokens.weight
        assert sum("embed_tokens" in name for name in load_file(tmp_path / "model.safetensors")) == 1


def test_inputs_embeds_equal_input_ids(family):
    model = family.model(family.config()).eval()
    ids, mask = padded(SENTENCES, "left")
    embeds = model.get_input_embeddings()(ids)
    expected = model(ids, mask).sparse_embedding
    torch.testing.assert_close(model(inputs_embeds=embeds, attention_mask=mask).sparse_embedding, expected)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[40, 1]], None, "`input_ids` must hold ids from 0 to 39, got 40"),
        ([[-1, 1]], None, "`input_ids` must hold ids from 0 to 39, got -1"),
        ([[0, 0], [5, 1]], [[0, 0], [1, 1]], "a row of padding alone"),
        ([[]], None, "at least one token"),
    ],
)
def test_bad_ids_are_named(family, ids, mask, message):
    model = family.model(family.config())
    with pytest.raises(ValueError, match=message):
        model(torch.tensor(ids, dtype=torch.long), None if mask is None else torch.tensor(mask))


@pytest.mark.parametrize("extreme", [[[1]], [[2, 2, 2, 1]], [[5] * 3000 + [1]]], ids=["empty", "unknown", "long"])
def test_odd_sentences_have_codes_and_finite_losses(family, extreme):
    model = family.pretraining(family.config()).train()
    loss = model(torch.tensor(extreme)).loss
    loss.backward()
    assert loss.isfinite()
    assert model.model(torch.tensor(extreme)).sparse_embedding.isfinite().all()


def test_max_active_dims_keeps_the_largest(family):
    model = family.model(family.config()).eval()
    full = model(*padded(SENTENCES)).sparse_embedding
    model.config.max_active_dims = 2
    kept = model(*padded(SENTENCES)).sparse_embedding
    for row, short in zip(full, kept, strict=True):
        top = row.abs().sort(descending=True).values[:2]
        assert short.abs().sort(descending=True).values[:2].tolist() == top.tolist()
        assert short.count_nonzero() <= 2


def test_classifier_marginalises_over_samples(family):
    model = family.classification(family.config(num_labels=3, num_samples=4)).eval()
    batch = padded(SENTENCES)
    seen = []
    model.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output))
    output = model(*batch, labels=torch.tensor([0, 1, 2, 0]))
    expected = seen[0].view(4, 4, 3).softmax(-1).mean(1)
    torch.testing.assert_close(output.logits.exp(), expected)
    torch.testing.assert_close(output.loss, F.nll_loss(expected.log(), torch.tensor([0, 1, 2, 0])))
    with pytest.raises(ValueError, match="`labels` must be from 0 to 2, got 3"):
        model(*batch, labels=torch.tensor([0, 1, 2, 3]))


@pytest.mark.parametrize("frozen", [True, False])
def test_freezing_decides_what_learns(family, frozen):
    model = family.classification(family.config(num_labels=3, freeze_encoder=frozen)).train()
    assert model.model.training != frozen
    model(*padded(SENTENCES), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    assert all((p.grad is None) == (frozen or not family.words) for p in model.model.encoder.parameters())
    assert all(p.grad is not None for p in model.classifier.parameters())


def test_other_problem_types(family):
    batch = padded(SENTENCES)
    many = family.classification(family.config(num_labels=3)).eval()
    targets = torch.eye(4, 3)
    output = many(*batch, labels=targets)
    torch.testing.assert_close(output.loss, F.binary_cross_entropy(output.logits.sigmoid(), targets))
    one = family.classification(family.config(num_labels=1)).eval()
    output = one(*batch, labels=torch.ones(4))
    torch.testing.assert_close(output.loss, ((output.logits.squeeze(-1) - 1) ** 2).mean())


def test_generation_with_and_without_state_is_the_manual_argmax(word_family):
    model = word_family.pretraining(word_family.config()).eval()
    ids, mask = padded(SENTENCES)
    options = {"attention_mask": mask, "max_new_tokens": 7}
    for way in ({"do_sample": True}, {"num_beams": 3}, {}):
        generated = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            generated.append(model.generate(ids, use_cache=use_cache, **options, **way))
        assert torch.equal(*generated)
    cached = generated[0]
    assert torch.equal(cached, model.generate(latents=model.model(ids, mask).latent, max_new_tokens=7))
    words, latent = [1], model.model(ids, mask).latent[:1]
    for _ in range(7):
        logits, *_ = model.decoder.step(latent, torch.tensor([words]), None)
        words.append(int(logits[0, -1].argmax()))
        if words[-1] == 1:
            break
    assert cached[0, : len(words)].tolist() == words


def test_beam_search_finds_no_worse_sentence(word_family):
    model = word_family.pretraining(word_family.config()).eval()
    ids, mask = padded(SENTENCES)

    def score(words):
        latent = model.model(ids, mask).latent
        logits, *_ = model.decoder.step(latent, words[:, :-1], None)
        return logits.log_softmax(-1).gather(-1, words[:, 1:, None]).sum((1, 2))

    options = {"max_new_tokens": 4, "min_new_tokens": 4, "attention_mask": mask}
    beams = score(model.generate(ids, num_beams=30, length_penalty=0.0, **options))
    assert (beams >= score(model.generate(ids, **options)) - 1e-5).all()


def test_sampling_prior_and_interpolation(word_family):
    model = word_family.pretraining(word_family.config()).eval()
    torch.manual_seed(0)
    first = model.generate(torch.tensor([[5, 1]]), do_sample=True, num_return_sequences=3, max_new_tokens=5)
    torch.manual_seed(0)
    again = model.generate(torch.tensor([[5, 1]]), do_sample=True, num_return_sequences=3, max_new_tokens=5)
    assert torch.equal(first, again)
    assert len(first) == 3
    if word_family.name in DETERMINISTIC:
        with pytest.raises(ValueError, match="`sample_prior` needs a model with a prior"):
            model.sample_prior(5)
    else:
        assert model.sample_prior(5, max_new_tokens=4).shape[0] == 5
    a, b = torch.tensor([[5, 6, 1]]), torch.tensor([[9, 1]])
    path = model.interpolate(a, b, 4, max_new_tokens=5, min_new_tokens=5)
    assert len(path) == 4
    for row, end in ((0, a), (-1, b)):
        assert torch.equal(path[row], model.generate(end, max_new_tokens=5, min_new_tokens=5)[0])


@pytest.mark.parametrize("kind", ["bare", "an older torch", "hooked", "replaced"])
@pytest.mark.parametrize("chunk_size", [7, 10, 64])
def test_chunked_vocabulary_loss_equals_the_plain_formula(monkeypatch, kind, chunk_size):
    states, head = torch.randn(20, 5, dtype=torch.float64, requires_grad=True), torch.nn.Linear(5, 30).double()
    targets = torch.randint(0, 30, (20,))
    if kind == "an older torch":
        monkeypatch.delattr(modeling_decoder.nn, "LinearCrossEntropyOptions", raising=False)
    elif kind == "hooked":
        head.register_forward_hook(lambda module, given, output: 2 * output)
    elif kind == "replaced":  # as adapters and quantisation do
        head.forward = lambda given: 3 * F.linear(given, head.weight, head.bias)
    assert is_bare_linear(head) == (kind in ("bare", "an older torch"))
    results = []
    for loss in (
        vocabulary_loss(states, head, targets, chunk_size),
        F.cross_entropy(head(states), targets, reduction="sum"),
    ):
        results.append((loss, *torch.autograd.grad(3 * loss, (states, *head.parameters()))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
