"""LoHa: the elementwise product of two low-rank products, of a rank up to the square (arXiv:2108.06098)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.hadamard import Hadamard
from sdkit.streaming.expression import Read
from sdkit.training.algorithms.algorithm import Draw, Shape, Shapes, Site
from sdkit.training.option_sets import LoraOptions

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Loha:
    """``scale · (w1_a @ w1_b) ∘ (w2_a @ w2_b)``, a kernel flattened into the columns."""

    @property
    def raised(self) -> frozenset[str]:
        """None: LoRA+ is about LoRAs."""
        return frozenset()

    def shapes(self, weight: Shape, rank: int) -> Shapes:
        """Both pairs."""
        a, b = (weight[0], rank), (rank, math.prod(weight[1:]))
        return {"w1_a": a, "w1_b": b, "w2_a": a, "w2_b": b}

    def has_scale(self, shapes: Shapes) -> bool:
        """Always."""
        return True

    def start(self, base: nn.Module, shapes: Shapes, draw: Draw) -> Mapping[str, torch.Tensor]:
        """As LyCORIS begins: the second pair's product is zero."""
        import torch

        return {
            "w1_a": draw.normal(shapes["w1_a"], "w1_a", 0.1),
            "w1_b": draw.normal(shapes["w1_b"], "w1_b", 1.0),
            "w2_a": torch.zeros(shapes["w2_a"]),
            "w2_b": draw.normal(shapes["w2_b"], "w2_b", 1.0),
        }

    def layer(self, base: nn.Module, factors: Mapping[str, nn.Parameter], scale: float, site: Site) -> nn.Module:
        """See `HadamardLayer`."""
        from sdkit.runtime.layers.hadamard import HadamardLayer

        return HadamardLayer(base, **factors, scale=scale)

    def delta(self, factors: Mapping[str, Read], scale: float, site: Site) -> Delta:
        """See `Hadamard`."""
        return Hadamard(**factors, scale=scale)

    def factors(self, delta: Delta, weight: Shape) -> Mapping[str, torch.Tensor] | None:
        """Both pairs of a change without Tucker cores."""
        if not isinstance(delta, Hadamard) or delta.t1 is not None:
            return None
        return {name: getattr(delta, name).load() for name in self.shapes(weight, delta.rank)}


def algorithm(options: LoraOptions) -> Loha:
    """It has no settings of its own."""
    return Loha()
