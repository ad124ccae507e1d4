"""Batch normalisation of features and scores."""

import json

import pytest
import torch
from families import SIZES
from torch import nn
from transformers import AutoConfig

import hsvae_hf
from hsvae_hf.models.normalization import BatchNorm


def test_it_is_that_of_torch_for_values_laid_end_to_end_but_for_their_means():
    torch.manual_seed(0)
    ours, means = BatchNorm(6, 0.5), []
    variances = nn.BatchNorm1d(1, eps=1e-6, affine=False, momentum=None)  # None: the plain mean of all batches
    for _ in range(8):
        values = 3 * torch.randn(50, 6) * torch.arange(1.0, 7) + torch.arange(6.0)
        centred = values - values.mean(0)
        expected = 0.5 * variances(centred.reshape(-1, 1)).reshape(50, 6)
        torch.testing.assert_close(ours(values, learning=True), expected, rtol=1e-4, atol=1e-5)
        means.append(values.mean(0))
    torch.testing.assert_close(ours.mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.variance * 300 / 299, variances.running_var[0], rtol=1e-4, atol=1e-5)
    kept = {name: value.clone() for name, value in ours.state_dict().items()}
    found = ours(values, learning=False)
    torch.testing.assert_close(found, 0.5 * (values - kept["mean"]) / (kept["variance"] + 1e-6).sqrt())
    ours(values[:1], learning=True)  # a row alone says nothing
    assert all(torch.equal(value, kept[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("model_type", ["hsvae", "gaussian-vae"])
def test_features_are_normalised_in_training_and_statistics_are_saved(model_type, tmp_path):
    torch.manual_seed(0)
    classes = hsvae_hf.MODELS[model_type]
    config = classes.config(**SIZES, feature_std=0.5)
    model = classes.pretraining(config).train()
    ids = torch.randint(3, 40, (30, 7))
    ids[:, -1] = 1
    for _ in range(5):
        features = model.model(ids).features
        torch.testing.assert_close(features.mean(0), torch.zeros(12), rtol=0, atol=1e-4)
        torch.testing.assert_close(features.std(correction=0), torch.tensor(0.5), rtol=1e-2, atol=0)
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


@pytest.mark.parametrize("model_type", ["hsvae", "vsc"])
def test_a_file_of_0_1_0_and_vectors_keep_features_as_they_are(model_type, tmp_path):
    kind = hsvae_hf.MODELS[model_type].config
    assert kind().feature_std == 0.3
    assert kind(encoder_type="vector", decoder_type="vector", vector_size=4, tie_word_embeddings=False).feature_std == 0
    kind().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    assert saved.pop("feature_std") == 0.3
    path.write_text(json.dumps(saved))
    assert AutoConfig.from_pretrained(tmp_path).feature_std == 0


@pytest.mark.parametrize(("feature_std", "window"), [(0, 8), (0.3, 1)])
def test_batches_whose_mean_counts_are_not_grouped_by_length(feature_std, window, make_trainer, tokenizer):
    config = hsvae_hf.GaussianVAEConfig(**SIZES | {"vocab_size": len(tokenizer)}, feature_std=feature_std)
    trainer = make_trainer(model=lambda: hsvae_hf.GaussianVAEForPreTraining(config))
    assert trainer.get_train_dataloader().batch_sampler.sampler.window == window
