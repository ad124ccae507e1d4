"""No NaN: thousands of steps on real text at the released settings."""

import pytest
import torch
from datasets import load_dataset

from hsvae_hf import MODELS, RELEASED
from hsvae_hf.batching import LengthGroupedSampler, TextCollator
from hsvae_hf.tokenization import train_tokenizer


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(
    ("model_type", "options", "steps", "autocast"),
    [
        *(
            ("hsvae", RELEASED | {"kl_estimator": estimator}, steps, autocast)
            for steps, autocast in ((10_000, False), (2_000, True))
            for estimator in ("rao_blackwell", "mc")
        ),
        *((name, {}, 1_000, autocast) for name in MODELS if name != "hsvae" for autocast in (False, True)),
    ],
)
def test_released_settings_never_give_nan(data_dir, model_type, options, steps, autocast):
    texts = load_dataset(str(data_dir / "yahoo"), split="train")["text"][:]
    tokenizer = train_tokenizer(texts, vocab_size=2_000, max_length=30)
    rows = [{"input_ids": ids} for ids in tokenizer(texts, truncation=True)["input_ids"]]
    config_class, _, model_class, _ = MODELS[model_type]
    config = config_class(vocab_size=2_000, embedding_size=32, hidden_size=32, latent_size=32, **options)
    model = model_class(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-4)
    collate, step = TextCollator(tokenizer), 0
    while step < steps:
        order = list(LengthGroupedSampler([len(row["input_ids"]) for row in rows], 32, seed=step))
        for start in range(0, len(order), 32):
            batch = collate([rows[index] for index in order[start : start + 32]])
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(**batch).loss
            loss.backward()
            norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()])
            assert loss.isfinite(), step
            assert norm.isfinite().all(), step
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step == steps:
                break
        assert all(parameter.isfinite().all() for parameter in model.parameters()), step
