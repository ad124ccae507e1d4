"""How each of the peers trains, codes and decodes: autoencoders, models of this package, and what needs no training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import sparse_autoencoders
import torch
from scipy import sparse

import hsvae_hf
from hsvae_hf.command_line import choose
from hsvae_hf.encoding import keep_largest

ADAM_EPSILON = 6.25e-10  # of Gao et al. 2024, and of the released code of CSR and CSRv2


class Scaler:
    """Vectors to the units in which a system is trained, and back.

    Args:
        vectors: `(rows, size)`.
        inputs: `raw` leaves them; `centred` takes their mean and divides by one number, so that the mean square is 1;
            `standardised` divides each dimension by its own deviation.
    """

    def __init__(self, vectors: np.ndarray, inputs: str) -> None:
        choose("inputs", inputs, ("raw", "centred", "standardised"))
        size = vectors.shape[1]
        self.mean = np.zeros(size, np.float32) if inputs == "raw" else vectors.mean(0)
        std = (vectors - self.mean).std(0) if inputs == "standardised" else np.ones(size, np.float32)
        if inputs == "centred":
            std = np.full(size, np.sqrt(np.square(vectors - self.mean).mean()), np.float32)
        self.std = np.where(std > 1e-8, std, 1.0).astype(np.float32)  # a dimension that never varies keeps its scale

    def forward(self, vectors: np.ndarray) -> torch.Tensor:
        """To the units of training."""
        return torch.from_numpy((vectors - self.mean) / self.std)

    def back(self, vectors: np.ndarray) -> np.ndarray:
        """To the units of the encoder."""
        return vectors * self.std + self.mean


def train(
    model: sparse_autoencoders.TopK,
    vectors: torch.Tensor,
    steps: int,
    batch_size: int,
    learning_rate: float,
    decay: float,
    seed: int,
) -> None:
    """Train by Adam on batches of rows that are shuffled anew for every pass over them.

    Args:
        model: one of `sparse_autoencoders.METHODS`.
        vectors: `(rows, size)`.
        steps: batches.
        batch_size: rows of each.
        learning_rate: constant, then linear to zero over the last `decay` of the steps (0 to 1).
        decay: see there.
        seed: of the order of the rows.
    """
    generator = torch.Generator().manual_seed(seed)
    passes = -(-steps * batch_size // len(vectors))
    order = torch.cat([torch.randperm(len(vectors), generator=generator) for _ in range(passes)])
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=model.betas, eps=ADAM_EPSILON, fused=True)
    for step in range(steps):
        rows = order[step * batch_size : (step + 1) * batch_size]
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (1 - step / steps) / max(decay, 1e-9))
        loss = model.loss(vectors[rows], step / steps)
        optimizer.zero_grad()
        loss.backward()
        model.before_step()
        optimizer.step()
        model.after_step()


class Autoencoder:
    """A sparse autoencoder of scaled vectors.

    Args:
        name: one of `sparse_autoencoders.METHODS`.
        vectors: to train on, `(rows, size)`.
        width: of the codes.
        active_dims: non-zeros, on average.
        seed: of the weights and the order of the rows.
        steps: to train.
        batch_size: rows of a step.
        inputs: units, as of `Scaler`.
        learning_rate: of Adam.
        decay: share of the steps, the last ones, over which the rate falls to zero.
        options: of the method.
    """

    def __init__(
        self,
        name: str,
        vectors: np.ndarray,
        width: int,
        active_dims: int,
        seed: int,
        steps: int,
        batch_size: int,
        inputs: str = "centred",
        learning_rate: float = 1e-3,
        decay: float = 0.2,
        **options: Any,
    ) -> None:
        torch.manual_seed(seed)
        self.scaler = Scaler(vectors, inputs)
        scaled = self.scaler.forward(vectors)
        self.model = sparse_autoencoders.METHODS[name](scaled, width, active_dims, **options)
        train(self.model, scaled, steps, batch_size, learning_rate, decay, seed)

    def encode(self, vectors: np.ndarray, active_dims: int | None = None) -> sparse.csr_matrix:
        """As `peers.Coder.encode`."""
        return self.model.encode(self.scaler.forward(vectors), active_dims)

    def decode(self, codes: sparse.csr_matrix) -> np.ndarray:
        """As `peers.Coder.decode`."""
        return self.scaler.back(self.model.decode(codes))


class CSRModel(torch.nn.Module):
    """What sentence-transformers' CSRLoss asks of a SparseEncoder: its SparseAutoEncoder, and dot products."""

    def __init__(self, autoencoder: torch.nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The autoencoder's outputs."""
        return self.autoencoder(features)

    def similarity(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Dot products."""
        return a @ b.T


def csr_loss(autoencoder: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """sentence-transformers' own CSRLoss of a batch `(rows, size)`; a sentence is its own positive.

    `sparse_autoencoders.CSR` has the same loss and is several times faster; the tests compare them.
    """
    from sentence_transformers.sparse_encoder.losses import CSRLoss

    model: Any = CSRModel(autoencoder)
    loss = CSRLoss(model)
    return lambda batch: sum(loss([{"sentence_embedding": batch}, {"sentence_embedding": batch}]).values())


class OwnModel:
    """A model of this package, by `hsvae_hf.fit`.

    Args:
        name: HSVAE, VSC or SDLGM.
        vectors: to train on, `(rows, size)`.
        width: of the codes.
        active_dims: non-zeros wanted.
        seed: of the run.
        steps: to train.
        batch_size: rows of a step.
        options: of `hsvae_hf.fit`.
    """

    def __init__(
        self,
        name: str,
        vectors: np.ndarray,
        width: int,
        active_dims: int,
        seed: int,
        steps: int,
        batch_size: int,
        **options: Any,
    ) -> None:
        warmup = {"kl_warmup_steps": max(1, 3 * steps // 10)}
        own: dict[str, dict[str, Any]] = {
            "HSVAE": {"target_active_dims": active_dims},
            # Gates of VSC are fully on or off, so no threshold gives its codes a wanted number.
            "VSC": warmup
            | {"prior_activity": active_dims / width, "penalty_weight": 1.0, "max_active_dims": active_dims},
            "SDLGM": warmup | {"sparsity_cap": active_dims},
        }
        quiet = {"eval_strategy": "no", "disable_tqdm": True}
        sizes = {"latent_size": width, "max_steps": steps, "per_device_train_batch_size": batch_size, "seed": seed}
        settings = own[name] | quiet | sizes | options
        self.model: Any = hsvae_hf.fit(vectors, model_type=name.lower(), **settings)

    def encode(self, vectors: np.ndarray, active_dims: int | None = None) -> sparse.csr_matrix:
        """As `peers.Coder.encode`."""
        return hsvae_hf.encode_vectors(self.model, vectors, active_dims=active_dims)

    def decode(self, codes: sparse.csr_matrix) -> np.ndarray:
        """As `peers.Coder.decode`."""
        return hsvae_hf.decode_codes(self.model, codes)


class PrincipalComponents:
    """Coordinates on the principal components of the vectors: the first, or the largest of a row.

    Args:
        vectors: `(rows, size)`.
        width: components that are looked at, at most `size`.
        active_dims: coordinates that are kept.
        largest: keep the largest of a row by magnitude, rather than the first.
        whiten: divide each coordinate by its deviation, before the largest are chosen too.
    """

    def __init__(self, vectors: np.ndarray, width: int, active_dims: int, largest: bool, whiten: bool = False) -> None:
        self.active_dims, self.largest = active_dims, largest
        self.mean = vectors.mean(0)
        variances, components = np.linalg.eigh(np.cov(vectors, rowvar=False).astype(np.float64))
        count = min(width if largest else active_dims, len(variances))
        self.components = components[:, ::-1][:, :count].T.astype(np.float32)  # (count, size), the widest first
        deviations = np.sqrt(np.maximum(variances[::-1][:count], 1e-12))
        self.scale = deviations.astype(np.float32) if whiten else np.ones(count, np.float32)

    def encode(self, vectors: np.ndarray, active_dims: int | None = None) -> sparse.csr_matrix:
        """As `peers.Coder.encode`."""
        coordinates = ((vectors - self.mean) @ self.components.T) / self.scale
        count = min(active_dims or self.active_dims, len(self.scale))
        if self.largest:
            return sparse.csr_matrix(keep_largest(torch.from_numpy(coordinates), count).numpy())
        coordinates[:, count:] = 0.0
        return sparse.csr_matrix(coordinates)

    def decode(self, codes: sparse.csr_matrix) -> np.ndarray:
        """As `peers.Coder.decode`."""
        return np.asarray(codes @ (self.components * self.scale[:, None]) + self.mean)


class SignProjections:
    """The signs, 1 or -1, of random projections of the centred vectors; 16 for each non-zero of the others.

    The projections come in blocks that are orthonormal. No entry of a code is zero. Decoding is `mean + a P^T c`, with
    the a of the least squared error on the training rows.

    Args:
        vectors: `(rows, size)`.
        active_dims: the others' non-zeros.
        seed: of the projections.
        bits: number of projections; None takes 16 for each non-zero.
    """

    def __init__(self, vectors: np.ndarray, active_dims: int, seed: int, bits: int | None = None) -> None:
        generator, size = np.random.default_rng(seed), vectors.shape[1]
        count = 16 * active_dims if bits is None else bits
        blocks = [np.linalg.qr(generator.normal(size=(size, size)))[0].T for _ in range(-(-count // size))]
        self.mean = vectors.mean(0)
        self.projections = np.concatenate(blocks)[:count].astype(np.float32)  # (bits, size)
        made = self._signs(vectors) @ self.projections
        self.scale = float((made * (vectors - self.mean)).sum() / np.square(made).sum())

    def _signs(self, vectors: np.ndarray) -> np.ndarray:
        return np.where((vectors - self.mean) @ self.projections.T >= 0, 1.0, -1.0).astype(np.float32)

    def encode(self, vectors: np.ndarray, active_dims: int | None = None) -> sparse.csr_matrix:
        """As `peers.Coder.encode`, but that signs have no rank."""
        if active_dims is not None:
            raise ValueError(f"`active_dims` must be left out for signs, which have no rank, got {active_dims}.")
        return sparse.csr_matrix(self._signs(vectors))

    def decode(self, codes: sparse.csr_matrix) -> np.ndarray:
        """As `peers.Coder.decode`."""
        return np.asarray(self.scale * (codes @ self.projections) + self.mean)
