"""DoRA: a LoRA that turns the weight, and the length of each output feature (arXiv:2402.09353)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.dora import Dora as DoraDelta
from sdkit.streaming.expression import Read
from sdkit.training.algorithms.algorithm import Draw, Shape, Shapes, Site
from sdkit.training.algorithms.lora import Lora
from sdkit.training.option_sets import LoraOptions

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Dora:
    """``lengths · (W + ΔW) / ‖W + ΔW‖``, with a LoRA's ΔW."""

    direction: Lora

    @property
    def raised(self) -> frozenset[str]:
        """The LoRA's."""
        return self.direction.raised

    def shapes(self, weight: Shape, rank: int) -> Shapes:
        """The LoRA's, and ``lengths`` of the output features, shaped as LyCORIS writes them."""
        return {**self.direction.shapes(weight, rank), "lengths": (weight[0], *[1] * len(weight[1:]))}

    def has_scale(self, shapes: Shapes) -> bool:
        """Always."""
        return True

    def start(self, base: nn.Module, shapes: Shapes, draw: Draw) -> Mapping[str, torch.Tensor]:
        """A LoRA's start, and the lengths the base has."""
        from sdkit.adapters.deltas.dora import row_norms

        weight: torch.Tensor = base.weight.detach().float()  # type: ignore[operator]
        lengths = row_norms(weight.flatten(1)).reshape(shapes["lengths"])
        return {**self.direction.start(base, shapes, draw), "lengths": lengths}

    def layer(self, base: nn.Module, factors: Mapping[str, nn.Parameter], scale: float, site: Site) -> nn.Module:
        """See `DoraLayer`."""
        from sdkit.runtime.layers.dora import DoraLayer

        return DoraLayer(base, factors["down"], factors["up"], factors["lengths"], scale)

    def delta(self, factors: Mapping[str, Read], scale: float, site: Site) -> Delta:
        """See `sdkit.adapters.deltas.dora.Dora`."""
        return DoraDelta(self.direction.delta(factors, scale, site), factors["lengths"], by_input=False)

    def factors(self, delta: Delta, weight: Shape) -> Mapping[str, torch.Tensor] | None:
        """Those of a LoRA whose lengths are of output features."""
        if not isinstance(delta, DoraDelta) or delta.by_input:
            return None
        direction = self.direction.factors(delta.change, weight)
        if direction is None:
            return None
        return {**direction, "lengths": delta.lengths.load().reshape(weight[0], *[1] * len(weight[1:]))}


def algorithm(options: LoraOptions) -> Dora:
    """It has no settings of its own."""
    return Dora(Lora())
