"""Batch normalisation of features and scores."""

import pytest
import torch
from families import SIZES
from torch import nn

import hsvae_hf
from hsvae_hf.models.normalization import BatchNorm


def test_it_is_that_of_torch_without_scale_and_shift():
    torch.manual_seed(0)
    ours = BatchNorm(6)
    theirs = nn.BatchNorm1d(6, eps=1e-6, affine=False, momentum=None)  # None: the plain mean of all batches
    for _ in range(8):
        values = 3 * torch.randn(50, 6) + torch.arange(6.0)
        torch.testing.assert_close(ours(values, learning=True), theirs(values), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.mean, theirs.running_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.variance * 50 / 49, theirs.running_var, rtol=1e-4, atol=1e-5)
    kept = {name: value.clone() for name, value in ours.state_dict().items()}
    found = ours(values, learning=False)
    torch.testing.assert_close(found, (values - kept["mean"]) / (kept["variance"] + 1e-6).sqrt())
    ours(values[:1], learning=True)  # a row alone says nothing
    assert all(torch.equal(value, kept[name]) for name, value in ours.state_dict().items())
    torch.testing.assert_close(BatchNorm(6, std=0.5)(values, learning=True), 0.5 * ours(values, learning=True))


@pytest.mark.parametrize("model_type", ["hsvae", "gaussian-vae"])
def test_features_are_normalised_in_training_and_statistics_are_saved(model_type, tmp_path):
    torch.manual_seed(0)
    classes = hsvae_hf.MODELS[model_type]
    config = classes.config(**SIZES, normalize_features=True)
    model = classes.pretraining(config).train()
    ids = torch.randint(3, 40, (30, 7))
    ids[:, -1] = 1
    for _ in range(5):
        features = model.model(ids).features
        torch.testing.assert_close(features.mean(0), torch.zeros(12), rtol=0, atol=1e-4)
        torch.testing.assert_close(features.var(0, correction=0), torch.ones(12), rtol=0.1, atol=0)
    seen = model.model.feature_norm.batches.item()
    assert seen == 5
    one, all_of_them = model.eval().model(ids[:1]).features, model.model(ids).features[:1]
    torch.testing.assert_close(one, all_of_them, rtol=1e-4, atol=1e-5)  # whatever the batch
    model.save_pretrained(tmp_path)
    loaded = classes.pretraining.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.model(ids).features[:1], all_of_them)
    classifier = classes.classification.from_pretrained(tmp_path, num_labels=2).train()  # on a frozen encoder
    classifier(ids, labels=torch.zeros(30, dtype=torch.long)).loss.backward()
    assert classifier.model.feature_norm.batches.item() == seen
