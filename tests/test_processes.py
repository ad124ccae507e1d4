"""Training in several processes: the objective and its gradient are those of one process with the whole batch."""

from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing

from hsvae_hf.models.configuration_hsvae import HSVAEConfig
from hsvae_hf.models.modeling_hsvae import HSVAEForPreTraining

ROOT = Path(__file__).parents[1]
SIZES = {"encoder_type": "vector", "decoder_type": "vector", "vector_size": 6, "freeze_text_encoder": False}
SIZES |= {"latent_size": 24, "tie_word_embeddings": False, "target_active_dims": 3, "kl_estimator": "collapsed"}
SIZES |= {"gate_balance_weight": 1.0, "similarity_weight": 2.0, "code_reconstruction_weight": 0.5}
SIZES |= {"revival_weight": 0.5, "min_active_dims": 3, "max_active_dims": 3}


def objective(model: HSVAEForPreTraining, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """All terms that are statistics of a batch, and their weighted sum; nothing in them is drawn."""
    posterior = model.model(vectors=rows, return_dict=True)
    costs = {"penalty": model.model.costs(posterior, model.model.sample(posterior))["penalty"]}
    costs |= model.model.code_costs(posterior, 3)
    return costs, model._weighted(costs)


def gradients(model: HSVAEForPreTraining, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}


def compare(rank: int, count: int, folder: str) -> None:
    """Run in each of several processes: the averages of their terms and gradients beside those of one."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = HSVAEForPreTraining(HSVAEConfig(**SIZES)).train()
    rows = torch.randn(20, 6) * torch.linspace(0.5, 2, 20).unsqueeze(1)
    expected, loss = objective(model, rows)
    whole = gradients(model, loss)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    costs, loss = objective(model, rows.chunk(count)[rank])
    for found, wanted in ((gradients(model, loss), whole), (costs, expected)):
        assert found.keys() == wanted.keys()
        for name, value in found.items():
            mean = value.detach().clone()
            distributed.all_reduce(mean)
            torch.testing.assert_close(mean / count, wanted[name].detach(), rtol=1e-4, atol=1e-5, msg=name)
    assert costs["revival"] > 0 and costs["similarity"] > 0 and costs["penalty"] > 0
    distributed.destroy_process_group()


def test_terms_of_a_batch_and_their_gradients_are_those_of_one_process(tmp_path):
    multiprocessing.spawn(compare, (2, str(tmp_path)), nprocs=2)
