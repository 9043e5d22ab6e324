"""LoRA: two thin matrices (arXiv:2106.09685), for convolutions too (LoCon, arXiv:2309.14859)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.lightweight import Lightweight
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.streaming.expression import Read
from sdkit.training.algorithms.algorithm import Draw, Shape, Shapes, Site
from sdkit.training.option_sets import LoraOptions

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Lora:
    """``scale · up @ down``."""

    @property
    def raised(self) -> frozenset[str]:
        """``up``."""
        return frozenset({"up"})

    def shapes(self, weight: Shape, rank: int) -> Shapes:
        """``down`` and ``up``."""
        return {"down": (rank, *weight[1:]), "up": (weight[0], rank, *[1] * len(weight[2:]))}

    def has_scale(self, shapes: Shapes) -> bool:
        """Always."""
        return True

    def start(self, base: nn.Module, shapes: Shapes, draw: Draw) -> Mapping[str, torch.Tensor]:
        """`down` as a linear layer begins, `up` zero."""
        import torch

        return {"down": draw.as_linear(shapes["down"], "lora"), "up": torch.zeros(shapes["up"])}

    def layer(self, base: nn.Module, factors: Mapping[str, nn.Parameter], scale: float, site: Site) -> nn.Module:
        """See `LowRankLayer`."""
        from sdkit.runtime.layers.low_rank import LowRankLayer

        return LowRankLayer(base, factors["down"], factors["up"], scale)

    def delta(self, factors: Mapping[str, Read], scale: float, site: Site) -> Delta:
        """See `LowRank`."""
        return LowRank(factors["up"], factors["down"], scale)

    def factors(self, delta: Delta, weight: Shape) -> Mapping[str, torch.Tensor] | None:
        """The pair of a change without a Tucker core; a LiDB's is its factors times its bases."""
        if isinstance(delta, Lightweight):
            import torch

            up, down = delta.factors(torch.float32)
            shapes = self.shapes(weight, delta.rank)
            return {"down": down.reshape(shapes["down"]), "up": up.reshape(shapes["up"])}
        if not isinstance(delta, LowRank) or delta.mid is not None:
            return None
        shapes = self.shapes(weight, delta.rank)
        return {"down": delta.down.load().reshape(shapes["down"]), "up": delta.up.load().reshape(shapes["up"])}


def algorithm(options: LoraOptions) -> Lora:
    """It has no settings of its own."""
    return Lora()
