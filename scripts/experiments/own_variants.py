"""HSVAE as it is compared on the page of codes: by the defaults of `fit`, for each budget alone, and step by step.

The steps lead from the codes of version 0.1.0 to those of today. Two more are no options and left out: half as many
dimensions more that compete for each place (`CANDIDATES` of `modeling_text_vae.py`), and which gates learn (`REACH`).
Training without draws of z is none either.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from peers import Peer

from hsvae_hf.evaluation import model_systems
from hsvae_hf.evaluation_systems import System

OWN = "HSVAE"
TARGET = 16  # non-zeros that a model is trained for, if it serves all budgets; where the steps are compared


@dataclass(frozen=True)
class Variant:
    """A way to train HSVAE.

    Attributes:
        label: of the system in tables.
        options: of `hsvae_hf.fit`, given the width of codes and the wanted number of non-zeros; what is left out is
            the default.
        each: whether a model is trained for each budget alone.
        own_rule: whether codes of the model's own lengths are measured too.
        step: whether it is a step on the way, which is measured at `TARGET` alone.
    """

    label: str
    options: Callable[[int, int], dict[str, Any]] = lambda width, wanted: {}
    each: bool = False
    own_rule: bool = False
    step: bool = False


VARIANTS: dict[str, Variant] = {
    OWN: Variant("HSVAE, one for all budgets"),
    "HSVAE-each": Variant("HSVAE, one for each budget", lambda width, wanted: {"code_budgets": [wanted]}, each=True),
    "HSVAE-threshold": Variant(
        "codes by threshold in training, the strongest in use (0.1.0)",
        lambda width, wanted: {
            "max_active_dims": width,
            "code_budgets": None,
            "code_ridge": None,
            "code_reconstruction_weight": 0.0,
        },
        own_rule=True,
        step=True,
    ),
    "HSVAE-neighbours": Variant(
        "the neighbour term on codes of 2, 4, ... 64 non-zeros",
        lambda width, wanted: {"code_ridge": None, "code_reconstruction_weight": 0.0},
        step=True,
    ),
    "HSVAE-encoder-values": Variant(
        "their reconstruction, too; values by the encoder", lambda width, wanted: {"code_ridge": None}, step=True
    ),
    "HSVAE-no-reconstruction": Variant(
        "of these, without reconstruction by codes",
        lambda width, wanted: {"code_reconstruction_weight": 0.0},
        step=True,
    ),
    "HSVAE-lengths": Variant(
        "of these, gates decide the length, from half to twice",
        lambda width, wanted: {"min_active_dims": max(1, wanted // 2), "max_active_dims": min(width, 2 * wanted)},
        own_rule=True,
        step=True,
    ),
}

# In the order of the table: each has what those before it have, but for the last two, which are today's changed.
STEPS = (
    "HSVAE-threshold",
    "HSVAE-neighbours",
    "HSVAE-encoder-values",
    OWN,
    "HSVAE-no-reconstruction",
    "HSVAE-lengths",
)
TODAY = "values at the posterior mean given what is on: the defaults of `fit`"


def measured_systems(
    name: str, peer: Peer, vectors: np.ndarray, active_dims: Sequence[int], bytes_per_code: Sequence[int]
) -> Iterator[System]:
    """What is measured of one run of a variant.

    Args:
        name: of the variant.
        peer: trained by it.
        vectors: of training, `(rows, size)`; the last 2,000 choose the bits of a quantised value.
        active_dims: the budgets; the one that it was trained for, where it was trained for one.
        bytes_per_code: budgets of bytes, of the defaults of `fit` alone.
    """
    variant = VARIANTS[name]
    budgets: list[int | None] = [TARGET] if variant.step else list(active_dims)
    if variant.own_rule:
        budgets.append(None)
    coder: Any = peer.coder
    yield from model_systems(coder.model, vectors[-2000:], budgets, bytes_per_code if name == OWN else (), name=name)
