"""LoKr: the Kronecker product of a small matrix and a larger, low-rank one (arXiv:2309.14859)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.kronecker import Kronecker, Side, factorization
from sdkit.core.errors import UsageError
from sdkit.streaming.expression import Read
from sdkit.training.algorithms.algorithm import Draw, Shape, Shapes, Site
from sdkit.training.option_sets import LoraOptions

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Lokr:
    """``scale · w1 ⊗ w2``. A side is a product of two factors where that is smaller.

    Attributes:
        factor: about how large the outer side is; −1 makes both sides about equal.
        decompose_both: whether the outer side may be a product too.
    """

    factor: int = -1
    decompose_both: bool = False

    @property
    def raised(self) -> frozenset[str]:
        """None: LoRA+ is about LoRAs."""
        return frozenset()

    def shapes(self, weight: Shape, rank: int) -> Shapes:
        """Each side whole, or as `a` and `b`: the same choice as LyCORIS'."""
        (rows, inner_rows), (columns, inner_columns) = (factorization(size, self.factor) for size in weight[:2])
        split = self.decompose_both and rank < max(rows, columns) / 2
        outer = {"w1_a": (rows, rank), "w1_b": (rank, columns)} if split else {"w1": (rows, columns)}
        if rank >= max(inner_rows, inner_columns) / 2:
            return {**outer, "w2": (inner_rows, inner_columns, *weight[2:])}
        return {**outer, "w2_a": (inner_rows, rank), "w2_b": (rank, inner_columns * math.prod(weight[2:]))}

    def has_scale(self, shapes: Shapes) -> bool:
        """Two whole sides have no rank, hence no scale."""
        return not {"w1", "w2"} <= shapes.keys()

    def start(self, base: nn.Module, shapes: Shapes, draw: Draw) -> Mapping[str, torch.Tensor]:
        """As LyCORIS begins: the inner side is zero."""
        import torch

        return {
            name: torch.zeros(shape) if name in ("w2", "w2_b") else draw.as_linear(shape, name)
            for name, shape in shapes.items()
        }

    def layer(self, base: nn.Module, factors: Mapping[str, nn.Parameter], scale: float, site: Site) -> nn.Module:
        """See `KroneckerLayer`."""
        from sdkit.runtime.layers.kronecker import KroneckerLayer

        return KroneckerLayer(base, dict(factors), scale)

    def delta(self, factors: Mapping[str, Read], scale: float, site: Site) -> Delta:
        """See `Kronecker`."""
        sides = [Side(*(factors.get(f"{side}{part}") for part in ("", "_a", "_b"))) for side in ("w1", "w2")]
        return Kronecker(sides[0], sides[1], scale)

    def factors(self, delta: Delta, weight: Shape) -> Mapping[str, torch.Tensor] | None:
        """The sides of a change without a Tucker core, factored in any way."""
        if not isinstance(delta, Kronecker) or delta.w2.core is not None:
            return None
        parts = {"w1": delta.w1.whole, "w1_a": delta.w1.a, "w1_b": delta.w1.b}
        parts |= {"w2": delta.w2.whole, "w2_a": delta.w2.a, "w2_b": delta.w2.b}
        return {name: part.load() for name, part in parts.items() if part is not None}


def algorithm(options: LoraOptions) -> Lokr:
    """With ``factor`` and ``decompose_both``.

    Raises:
        UsageError: the factor is neither −1 nor a size.
    """
    if options.factor == 0:
        raise UsageError("factor=0: no side can have that size", "use -1 for sides about equally large, or 4, 8, 16")
    return Lokr(options.factor, options.decompose_both)
