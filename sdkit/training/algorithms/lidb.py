"""LiDB: a LoRA within frozen orthogonal bases, about 100 kB of a base like SD1 (HyperDreamBooth, arXiv:2307.06949)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.lightweight import Basis, Lightweight
from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import Read
from sdkit.training.algorithms.algorithm import Draw, Shape, Shapes, Site
from sdkit.training.option_sets import LoraOptions

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Lidb:
    """``scale · (left @ up) @ (down @ right)``.

    Attributes:
        seed: the bases follow from it.
        a: columns of ``left``, where a weight has as many rows.
        b: rows of ``right``, where a weight has as many columns.
    """

    seed: int = 0
    a: int = 100
    b: int = 50

    @property
    def raised(self) -> frozenset[str]:
        """``up``, as of a LoRA."""
        return frozenset({"up"})

    def shapes(self, weight: Shape, rank: int) -> Shapes:
        """``down`` and ``up``, within the bases."""
        return {"down": (rank, min(self.b, math.prod(weight[1:]))), "up": (min(self.a, weight[0]), rank)}

    def has_scale(self, shapes: Shapes) -> bool:
        """Always."""
        return True

    def start(self, base: nn.Module, shapes: Shapes, draw: Draw) -> Mapping[str, torch.Tensor]:
        """As a LoRA begins: `down` as a linear layer, `up` zero."""
        import torch

        return {"down": draw.as_linear(shapes["down"], "lidb"), "up": torch.zeros(shapes["up"])}

    def layer(self, base: nn.Module, factors: Mapping[str, nn.Parameter], scale: float, site: Site) -> nn.Module:
        """See `LightweightLayer`."""
        from sdkit.runtime.layers.lightweight import LightweightLayer

        up, down = factors["up"], factors["down"]
        return LightweightLayer(base, up, down, self.basis(site, up.shape[0], down.shape[1]), scale)

    def delta(self, factors: Mapping[str, Read], scale: float, site: Site) -> Delta:
        """See `Lightweight`."""
        up, down = factors["up"], factors["down"]
        return Lightweight(up, down, self.basis(site, up.shape[0], down.shape[1]), scale)

    def factors(self, delta: Delta, weight: Shape) -> Mapping[str, torch.Tensor] | None:
        """Those of another LiDB within the same bases.

        Raises:
            SdkitError: its bases follow from another seed.
        """
        if not isinstance(delta, Lightweight):
            return None
        if delta.basis.seed != self.seed:
            raise SdkitError(
                f"{delta.up.weights.path}: its bases follow from the seed {delta.basis.seed}, not {self.seed}",
                f"say basis_seed={delta.basis.seed}",
            )
        return {"down": delta.down.load(), "up": delta.up.load()}

    def basis(self, site: Site, a: int, b: int) -> Basis:
        """The bases beside a weight."""
        return Basis(self.seed, site.module, site.weight[0], math.prod(site.weight[1:]), a, b)


def algorithm(options: LoraOptions) -> Lidb:
    """With ``basis_seed``, ``basis_up`` and ``basis_down``."""
    return Lidb(options.basis_seed, options.basis_up, options.basis_down)
