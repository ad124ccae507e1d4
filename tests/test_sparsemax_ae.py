"""The sparsemax autoencoder: its head against torch, what its norm keeps, the source's objective, files of 0.1.0."""

import json
import math

import pytest
import torch
from families import SIZES
from transformers import AutoConfig

from hsvae_hf import SparsemaxAEConfig, SparsemaxAEForSequenceClassification, SparsemaxAEModel
from hsvae_hf.models.distributions import sparsemax
from hsvae_hf.models.modeling_sparsemax_ae import SparsemaxAEHead

SOURCE = {"score_std": 0, "code_sum": 1}  # of Trifonov et al. 2018


def head(**options):
    torch.manual_seed(0)
    return SparsemaxAEHead(SparsemaxAEConfig(**SIZES, **options)).double()


def features(rows=9):
    return torch.randn(rows, 12, dtype=torch.float64)


def test_the_source_has_the_projection_of_the_scores():
    latent_head, h = head(**SOURCE), features()
    expected = sparsemax(h @ latent_head.scores.weight.T + latent_head.scores.bias)
    torch.testing.assert_close(latent_head.train()(h).latent, expected)
    torch.testing.assert_close(latent_head.eval()(h).latent, expected)
    assert not latent_head.needs_even_batches


def test_scores_have_mean_0_by_dimension_and_one_deviation_together_and_codes_sum_to_what_is_asked():
    latent_head = head(score_std=0.7, code_sum=5)
    h = features().requires_grad_()
    latent = latent_head.train()(h).latent
    scores = h @ latent_head.scores.weight.T
    centred = scores - scores.mean(0)  # so the deviation of all of them together has one mean, 0
    expected = 5 * sparsemax(0.7 * centred / (centred.square().mean() + 1e-6).sqrt())
    torch.testing.assert_close(latent, expected)
    torch.testing.assert_close(latent.sum(-1), torch.full((9,), 5.0, dtype=torch.float64))
    assert 0 < (latent > 0).double().mean() < 1
    target = torch.randn_like(latent)
    for found, wanted in zip(
        *(torch.autograd.grad((z * target).sum(), (h, latent_head.scores.weight)) for z in (latent, expected)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)
    assert latent_head.needs_even_batches


def test_what_all_sentences_share_puts_no_dimension_ahead():
    h, shared = features(), 50 * torch.randn(12, dtype=torch.float64)
    assert len((head(**SOURCE)(h + shared).latent != 0).unique(dim=0)) == 1
    latent_head = head().train()
    torch.testing.assert_close(latent_head(h + shared).latent, latent_head(h).latent)


def test_evaluation_takes_the_mean_of_the_batches_so_far():
    latent_head, batches = head(), [features(), 3 + 2 * features()]
    for batch in batches:
        latent_head.train()(batch)
    scores = [batch @ latent_head.scores.weight.T for batch in batches]
    mean = sum(part.mean(0) for part in scores) / 2
    variance = sum(part.var(0, correction=0).mean() for part in scores) / 2
    h = features()
    normed = 1 / math.sqrt(6) * (h @ latent_head.scores.weight.T - mean) / (variance + 1e-6).sqrt()
    expected = math.sqrt(6) * sparsemax(normed)
    torch.testing.assert_close(latent_head.eval()(h).latent, expected)
    torch.testing.assert_close(torch.cat([latent_head(row).latent for row in h.split(1)]), expected)
    for _ in range(200):  # later batches count more, so that early ones are forgotten
        latent_head.train()(batches[0])
    torch.testing.assert_close(latent_head.norm.mean, scores[0].mean(0), rtol=1e-6, atol=1e-6)


def test_a_single_row_and_a_frozen_head_change_no_statistics():
    latent_head = head()
    latent_head.train()(features())
    before = [buffer.clone() for buffer in latent_head.buffers()]
    h = features(1)
    torch.testing.assert_close(latent_head(h).latent, latent_head.eval()(h).latent)
    latent_head.train().requires_grad_(False)
    h = features()
    torch.testing.assert_close(latent_head(h).latent, latent_head.eval()(h).latent)
    for buffer, old in zip(latent_head.buffers(), before, strict=True):
        assert torch.equal(buffer, old)


def test_statistics_travel_with_the_model(tmp_path):
    model = SparsemaxAEModel(SparsemaxAEConfig(**SIZES))
    ids = torch.randint(3, 40, (8, 5))
    model.train()(ids)
    model.eval().save_pretrained(tmp_path)
    assert torch.equal(SparsemaxAEModel.from_pretrained(tmp_path)(ids)[0], model(ids)[0])
    classifier = SparsemaxAEForSequenceClassification.from_pretrained(tmp_path, num_labels=2).train()
    classifier(ids, labels=torch.zeros(8, dtype=torch.long))
    assert torch.equal(classifier.model.latent_head.norm.mean, model.latent_head.norm.mean)


def test_a_file_of_0_1_0_is_the_source(tmp_path):
    model = SparsemaxAEModel(SparsemaxAEConfig(**SIZES, **SOURCE)).eval()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in saved.items() if name not in SOURCE}))
    ids = torch.randint(3, 40, (8, 5))
    assert torch.equal(SparsemaxAEModel.from_pretrained(tmp_path)(ids)[0], model(ids)[0])
    config = SparsemaxAEConfig(**SIZES)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).score_std == config.score_std == pytest.approx(1 / math.sqrt(6))
