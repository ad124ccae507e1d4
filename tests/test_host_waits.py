"""A training step never waits for the device: no value is read, nothing has a shape that depends on values."""

from contextlib import contextmanager

import pytest
import torch
from families import EVERY, each
from torch.utils._python_dispatch import TorchDispatchMode

from hsvae_hf.callbacks import ActiveDimsController
from hsvae_hf.models import modeling_decoder, modeling_encoders

# Training on vectors does not run the encoder. Where a transformer itself is trained, its library reads a value of the
# attention mask.
family = each([family for family in EVERY if family.gru or not family.words])
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "item", "is_nonzero", "equal", "_unique2", "unique_dim")
READING = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")


class Waits(TorchDispatchMode):
    """Records operations that would wait for a CUDA device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        tensors = [part for part in (args[1] if name.startswith("index") and len(args) > 1 else []) if part is not None]
        masks = name in ("index", "index_put", "index_put_") and any(part.dtype == torch.bool for part in tensors)
        if name in WAITING or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded(monkeypatch):
    """What would wait, on a CPU, by the code that runs on an accelerator."""
    for module in (modeling_encoders, modeling_decoder):
        monkeypatch.setattr(module, "at_hand", lambda tensor: False)
    with Waits() as waits, monkeypatch.context() as patch:
        for name in READING:
            own = getattr(torch.Tensor, name)
            patch.setattr(torch.Tensor, name, lambda *args, own=own, name=name: waits.found.append(name) or own(*args))
        yield waits.found


def batch_of(family, device="cpu"):
    if not family.words:
        return {"vectors": torch.randn(6, family.config().feature_size, device=device)}
    ids = torch.randint(3, 40, (6, 7), device=device)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def trained_model(family):
    model = family.pretraining(family.config()).train()
    if not family.words and family.name.startswith("hsvae"):
        changes = {"similarity_weight": 1.0, "code_reconstruction_weight": 1.0, "revival_weight": 1.0}
        changes |= {"code_budgets": [1, 2], "min_active_dims": 2, "max_active_dims": 2, "target_active_dims": 2.0}
        model = family.pretraining(family.config(**changes)).train()
    return model


def step(model, batch, optimizer):
    model(**batch).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def prepared(family, device="cpu"):
    model = trained_model(family).to(device)
    ActiveDimsController().on_train_begin(None, None, None, model=model)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    return model, batch_of(family, device), optimizer


def test_no_training_step_reads_a_value(family, monkeypatch):
    parts = prepared(family)
    with recorded(monkeypatch) as found:
        step(*parts)
    assert found == []


def test_what_waits_is_found(monkeypatch):
    with recorded(monkeypatch) as found:
        values = torch.arange(3.0)
        values[values > 1].sum().item()
    assert "index" in found and "item" in found


def test_padding_costs_nothing_where_its_place_is_not_known(family, monkeypatch):
    if not family.words:
        pytest.skip("there is no padding among vectors")
    model, batch = family.pretraining(family.config()).eval(), batch_of(family)
    torch.manual_seed(0)
    expected = model(**batch)
    monkeypatch.setattr(modeling_decoder, "at_hand", lambda tensor: False)
    torch.manual_seed(0)
    found = model(**batch)
    torch.testing.assert_close(found.loss, expected.loss)
    assert found.num_tokens == expected.num_tokens


@pytest.mark.gpu
def test_no_training_step_waits_for_the_gpu(family):
    parts = prepared(family, "cuda")
    step(*parts)  # the first sets up libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(*parts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
