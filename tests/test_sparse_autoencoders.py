"""Published sparse autoencoders: each against its formula, written out in dense tensors."""

import numpy as np
import pytest
import torch
from peer_coders import train
from sparse_autoencoders import CSR, METHODS, BatchTopK, CSRv2, JumpReLU, Matryoshka, TopK, geometric_median
from sparse_entries import (
    Entries,
    above,
    decode_at,
    encode_at,
    jump_relu,
    largest_in_batch,
    largest_per_row,
    step_function,
)
from torch import nn
from torch.nn import functional as F

ROWS, SIZE, WIDTH, K = 12, 7, 20, 3
PARAMETERS = ("encoder", "decoder", "latent_bias", "pre_bias")


@pytest.fixture
def vectors():
    return torch.randn(ROWS, SIZE)


def moved(method, vectors, **options):
    """A model whose parameters are not those of its start."""
    model = METHODS[method](vectors, WIDTH, K, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def dense_codes(model, vectors, keep):
    """`max(p, 0)` where `keep(p)`, by dense tensors alone."""
    preactivations = (vectors - model.pre_bias) @ model.encoder.T + model.latent_bias
    return preactivations.relu() * keep(preactivations)


def top(preactivations, count):
    return torch.zeros_like(preactivations).scatter(1, preactivations.topk(count).indices, 1.0)


def top_of_batch(preactivations, count):
    least = preactivations.flatten().topk(count * len(preactivations)).values.min()
    return (preactivations >= least).float()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: getattr(model, name).grad.clone() for name in PARAMETERS}


def assert_same(model, loss, expected):
    """Two losses are equal, and their gradients."""
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    first, second = gradients(model, loss), gradients(model, expected)
    for name in PARAMETERS:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [0.05, 0.6])  # of entries: few have sparse products, many dense ones
def test_products_at_entries_and_their_gradients(share):
    places = torch.rand(ROWS, WIDTH) < share
    places[3], places[5, 4] = False, True  # an empty row
    entries = Entries(*places.nonzero(as_tuple=True), (ROWS, WIDTH))
    assert entries.many == (share > 0.5)
    vectors = torch.randn(ROWS, SIZE)
    weight, bias = torch.randn(WIDTH, SIZE, requires_grad=True), torch.randn(WIDTH, requires_grad=True)
    decoder, target = torch.randn(WIDTH, SIZE, requires_grad=True), torch.randn(ROWS, SIZE)
    learnt = (weight, bias, decoder)

    with torch.no_grad():
        preactivations = vectors @ weight.T + bias
    values = encode_at(vectors, weight, bias, preactivations, entries)
    made = decode_at(values.tanh(), decoder, entries)
    found = torch.autograd.grad((made * target).sum(), learnt)
    dense = (vectors @ weight.T + bias).tanh() * places
    torch.testing.assert_close(made, dense @ decoder)
    for first, second in zip(found, torch.autograd.grad((dense @ decoder * target).sum(), learnt), strict=True):
        torch.testing.assert_close(first, second)


def test_what_is_kept():
    preactivations = torch.randn(ROWS, WIDTH)

    def places(entries):
        assert (entries.rows.diff() >= 0).all()
        return entries.matrix(torch.ones(len(entries.rows)))

    torch.testing.assert_close(places(largest_per_row(preactivations, K)), top(preactivations, K))
    batch = places(largest_in_batch(preactivations, K))
    assert batch.sum() == K * ROWS
    torch.testing.assert_close(batch, top_of_batch(preactivations, K))
    assert len(set(batch.sum(1).tolist())) > 1  # rows differ in number
    threshold = torch.rand(WIDTH)
    torch.testing.assert_close(places(above(preactivations, threshold)), (preactivations > threshold).float())


def test_topk_starts_as_its_paper_says(vectors):
    model = TopK(vectors, WIDTH, K)
    torch.testing.assert_close(model.decoder.norm(dim=1), torch.ones(WIDTH))
    torch.testing.assert_close(model.encoder, model.decoder)
    assert model.encoder is not model.decoder
    point = geometric_median(vectors, iterations=500).requires_grad_()
    (vectors - point).norm(dim=1).sum().backward()
    torch.testing.assert_close(point.grad, torch.zeros(SIZE), atol=1e-3, rtol=0)
    torch.testing.assert_close(model.pre_bias, point.detach(), atol=1e-2, rtol=0)


@pytest.mark.parametrize(("method", "keep"), [("TopK", top), ("BatchTopK", top_of_batch)])
def test_topk_loss(method, keep, vectors):
    model = moved(method, vectors)
    codes = dense_codes(model, vectors, lambda preactivations: keep(preactivations, K))
    expected = (vectors - codes @ model.decoder - model.pre_bias).square().mean()
    assert_same(model, model.loss(vectors, 0.0), expected)


def test_dead_dimensions_alone_learn_from_the_residual(vectors):
    model = moved("TopK", vectors, aux_weight=0.5, dead_rows=100)
    dead = torch.tensor([1, 4, 9, 13, 17])
    model.idle_rows[dead] = 100
    with torch.no_grad():
        model.latent_bias[dead] -= 2.0  # they stay dead, and some of their values are positive
        model.encoder[dead] *= 2.0
    residual = torch.randn(ROWS, SIZE)
    loss = model.revival_loss(vectors, residual)
    codes = dense_codes(model, vectors, lambda preactivations: torch.ones(WIDTH))[:, dead]
    codes = codes * top(codes, model.most_revived)
    wanted = (codes @ model.decoder[dead] - residual).square().mean() / residual.var(0, correction=0).mean()
    assert model.most_revived == SIZE // 2 < len(dead)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    model.zero_grad()
    loss.backward()
    alive = torch.ones(WIDTH, dtype=torch.bool)
    alive[dead] = False
    for name in ("encoder", "decoder", "latent_bias"):
        gradient = getattr(model, name).grad
        assert gradient[alive].abs().max() == 0 < gradient[dead].abs().max()
    assert model.pre_bias.grad is None


def test_idle_rows_are_counted(vectors):
    model = TopK(vectors, WIDTH, K, dead_rows=2 * ROWS)
    model.loss(vectors, 0.0)
    model.loss(vectors, 0.0)
    kept = dense_codes(model, vectors, lambda preactivations: top(preactivations, K)) > 0
    torch.testing.assert_close(model.idle_rows, torch.where(kept.any(0), 0, 2 * ROWS))


@pytest.mark.parametrize("method", ["TopK", "BatchTopK", "Matryoshka", "JumpReLU"])
def test_decoder_rows_have_norm_1_after_every_step(method, vectors, monkeypatch):
    norms, along = [], []
    after = METHODS[method].after_step

    def watched(model):
        along.append((model.decoder.grad * before[-1]).sum(1).abs().max().item())
        after(model)
        norms.append(model.decoder.norm(dim=1).detach())
        before.append(model.decoder.detach().clone())

    model = METHODS[method](vectors, WIDTH, K)
    before = [model.decoder.detach().clone()]
    monkeypatch.setattr(METHODS[method], "after_step", watched)
    train(model, vectors, steps=4, batch_size=5, learning_rate=0.1, decay=0.2, seed=0)
    assert len(norms) == 4
    torch.testing.assert_close(torch.stack(norms), torch.ones(4, WIDTH))
    assert max(along) < 1e-6  # no gradient along the rows
    assert (before[0] - before[-1]).abs().max() > 0.1


def test_batch_topk_threshold(vectors):
    model = moved("BatchTopK", vectors)
    least = []
    for batch in (vectors, vectors[:8], vectors[4:]):
        codes = dense_codes(model, batch, lambda preactivations: top_of_batch(preactivations, K))
        least.append(codes[codes > 0].min().item())
        model.loss(batch, 0.0)
    expected = 0.99 * (0.99 * least[0] + 0.01 * least[1]) + 0.01 * least[2]
    assert model.threshold.item() == pytest.approx(expected)
    codes = model.encode(vectors).toarray()
    dense = dense_codes(model, vectors, lambda preactivations: preactivations > expected)
    np.testing.assert_allclose(codes, dense.detach().numpy(), rtol=1e-5)
    assert (model.encode(vectors, active_dims=2).getnnz(axis=1) == 2).all()
    with pytest.raises(ValueError, match="`steps` must be at least 1"):
        BatchTopK(vectors, WIDTH, K).encode(vectors)


def test_matryoshka_loss_is_the_mean_over_prefixes(vectors):
    model = moved("Matryoshka", vectors, prefixes=(0.1, 0.5, 1.0))
    codes = dense_codes(model, vectors, lambda preactivations: top_of_batch(preactivations, K))
    errors = [
        (vectors - codes[:, :prefix] @ model.decoder[:prefix] - model.pre_bias).square().mean()
        for prefix in (2, 10, 20)
    ]
    assert_same(model, model.loss(vectors, 0.0), sum(errors) / 3)
    assert Matryoshka(vectors, 64, K).prefixes.tolist() == [2, 6, 14, 30, 64]


def test_jump_relu_gradients_are_those_of_the_smoothed_functions():
    """The expectation over the kernel has the gradient: here its integral, by finite differences."""
    bandwidth, step = 0.4, 1e-4
    value = torch.linspace(0.2, 2.0, 181)  # of a step of 0.01; none at an edge of the kernel
    value = value + 0.0033
    threshold = torch.full_like(value, 1.0).requires_grad_()
    weight = torch.randn(len(value))

    def smoothed(at, height):  # of the step at `at`: the share of the kernel that is above
        return height * ((value - at) / bandwidth + 0.5).clamp(0, 1)

    (found,) = torch.autograd.grad((weight * step_function(value, threshold, bandwidth)).sum(), threshold)
    difference = (smoothed(1.0 + step, 1.0) - smoothed(1.0 - step, 1.0)) / (2 * step)
    torch.testing.assert_close(found, weight * difference, atol=5e-3, rtol=1e-3)
    value.requires_grad_()
    codes = jump_relu(value, threshold, bandwidth)
    to_value, found = torch.autograd.grad((weight * codes).sum(), (value, threshold))
    torch.testing.assert_close(codes, torch.where(value > 1.0, value, 0.0))
    torch.testing.assert_close(found, weight * difference.detach(), atol=5e-3, rtol=1e-3)  # times the threshold, 1
    torch.testing.assert_close(to_value, torch.where(value > 1.0, weight, 0.0))
    threshold = (2 * threshold).detach().requires_grad_()
    (found,) = torch.autograd.grad(jump_relu(2 * value, threshold, bandwidth)[80], threshold)
    assert found[80].item() == pytest.approx(-2.0 / bandwidth)  # the height of the jump over the bandwidth


def test_jump_relu_loss(vectors):
    model = moved("JumpReLU", vectors, penalty_weight=0.3, bandwidth=0.5, warmup=0.5)
    with torch.no_grad():
        model.log_threshold.copy_(torch.linspace(-1, 0, WIDTH))  # the kernels are above 0
    preactivations = (vectors - model.pre_bias) @ model.encoder.T + model.latent_bias
    threshold = model.log_threshold.exp().expand(ROWS, -1)
    codes = jump_relu(preactivations, threshold, 0.5)
    active = step_function(preactivations, threshold, 0.5).sum(1).mean()
    error = (vectors - codes @ model.decoder - model.pre_bias).square().mean()
    expected, loss = error + 0.3 * 0.5 * (active / K - 1).square(), model.loss(vectors, 0.25)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found, dense = (torch.autograd.grad(value, tuple(model.parameters())) for value in (loss, expected))
    for first, second in zip(found, dense, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)
    assert found[-1].abs().max() > 0  # of the thresholds
    np.testing.assert_allclose(model.encode(vectors).toarray(), codes.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_jump_relu_reaches_the_wanted_number():
    vectors = torch.randn(512, 12) @ torch.randn(12, 12)
    vectors = vectors / vectors.std()
    model = JumpReLU(vectors, 48, 4)
    start = model.encode(vectors).nnz / len(vectors)
    train(model, vectors, steps=300, batch_size=64, learning_rate=5e-3, decay=0.2, seed=0)
    assert start > 12
    assert model.encode(vectors).nnz / len(vectors) == pytest.approx(4, abs=0.5)


@pytest.mark.parametrize("dead", [[], [1, 4, 9]])
def test_csr_loss_is_that_of_sentence_transformers(dead, vectors):
    pytest.importorskip("sentence_transformers")
    from peer_coders import csr_loss
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

    reference = SparseAutoEncoder(SIZE, hidden_dim=WIDTH, k=K, k_aux=WIDTH).train()
    model = moved("CSR", vectors)
    with torch.no_grad():
        model.latent_bias[dead] -= 1.0
        reference.encoder.weight.copy_(model.encoder)
        reference.latent_bias.copy_(model.latent_bias)
        reference.pre_bias.copy_(model.pre_bias)
    reference.stats_last_nonzero[dead] = 1000
    model.idle_steps[dead] = 1000
    model.watch = lambda values, entries: None  # those are dead
    reference.top_k = frozen(reference)
    expected, loss = csr_loss(reference)(vectors), model.loss(vectors, 0.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    loss.backward()
    torch.testing.assert_close(model.encoder.grad, reference.encoder.weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.latent_bias.grad, reference.latent_bias.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.pre_bias.grad, reference.pre_bias.grad, rtol=1e-4, atol=1e-6)


def frozen(reference):
    """Its `top_k`, with the dead dimensions as they are."""
    kept, stats = reference.top_k, reference.stats_last_nonzero.clone()

    def top_k(*arguments, **options):
        latents, _ = kept(*arguments, **(options | {"compute_aux": False}))
        reference.stats_last_nonzero.copy_(stats)
        auxiliary = reference.auxk_mask_fn(arguments[0]).relu()  # k_aux is the width
        return latents, auxiliary

    return top_k


def test_csr_v2_anneals_and_contrasts_cosines(vectors):
    model = CSRv2(vectors, 256, 2, initial_active_dims=64, annealed=0.5)
    counts = [model.count_at(progress) for progress in (0.0, 0.125, 0.25, 0.375, 0.5, 0.9)]
    assert counts == [64, 48, 33, 18, 2, 2]
    assert CSRv2(vectors, 40, 2).count_at(0.0) == 10  # a quarter of the width
    model = moved("CSRv2", vectors, annealed=0.0, contrast_weight=0.7, temperature=0.2)
    codes = {
        count: dense_codes(model, vectors, lambda preactivations, count=count: top(preactivations, count))
        for count in (K, 4 * K)
    }
    errors = {count: (vectors - code @ model.decoder - model.pre_bias).square().mean() for count, code in codes.items()}
    unit = F.normalize(codes[K], dim=1)
    contrast = F.cross_entropy(unit @ unit.T / 0.2, torch.arange(ROWS))
    residual = (vectors - codes[K] @ model.decoder).detach()
    auxiliary = (model.pre_bias - residual).square().mean() / residual.var(0, correction=0).mean()
    expected = errors[K] + errors[4 * K] / 8 + 0.1 * auxiliary + 0.7 * contrast
    assert_same(model, model.loss(vectors, 0.0), expected)


def test_csr_dead_dimensions_are_counted(vectors):
    model = CSR(vectors, WIDTH, K)
    for _ in range(9):
        model.loss(vectors, 0.0)
    kept = dense_codes(model, vectors, lambda preactivations: top(preactivations, 4 * K)) > 1e-5
    torch.testing.assert_close(model.idle_steps > model.dead_steps, ~kept.any(0))


@pytest.mark.parametrize("method", METHODS)
def test_training_reconstructs(method):
    codes = torch.randn(400, 30).relu() * (torch.rand(400, 30) < 0.1)
    vectors = F.normalize(codes @ torch.randn(30, 16) + 0.1, dim=1) * 4
    torch.manual_seed(0)
    model = METHODS[method](vectors, 64, 4)

    def error():
        return float(np.square(model.decode(model.encode(vectors, active_dims=4)) - vectors.numpy()).mean())

    start = error()
    train(model, vectors, steps=150, batch_size=64, learning_rate=1e-2, decay=0.2, seed=0)
    assert error() < 0.4 * vectors.var().item() < start
    assert model.encode(vectors, active_dims=4).getnnz(axis=1).max() <= 4


def test_training_is_reproducible_and_sees_every_row(vectors):
    seen = []

    class Watched(nn.Module):
        betas = (0.9, 0.999)

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def loss(self, batch, progress):
            seen.append((batch, progress))
            return (self.weight - 1).square().sum()

        def before_step(self):
            rates.append(self.weight.item())

        def after_step(self):
            pass

    rates = []
    for _ in range(2):
        train(Watched(), vectors, steps=6, batch_size=4, learning_rate=0.1, decay=0.5, seed=3)
    rows = torch.cat([batch for batch, _ in seen])
    first, second = rows.split(24)
    torch.testing.assert_close(first, second)
    for part in first.split(12):  # two passes over 12 rows
        torch.testing.assert_close(part.sort(0).values, vectors.sort(0).values)
    assert [progress for _, progress in seen[:6]] == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    moves = np.diff(rates[:6])
    assert moves[0] == pytest.approx(0.1, rel=1e-2) and moves[-1] < 0.08  # the rate falls
