"""LiDB in training: a low-rank change whose factors lie within frozen orthogonal bases."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from sdkit.adapters.deltas.lightweight import Basis
from sdkit.runtime.layers.layer import AdapterLayer, apply_weight, core_layer


class LightweightLayer(AdapterLayer):
    """The layer. The factors are those of `sdkit.adapters.deltas.lightweight.Lightweight`.

    Args:
        base: the layer whose place it takes.
        up: [a, rank].
        down: [rank, b].
        basis: the frozen bases.
        scale: what the change is multiplied with.
    """

    up: nn.Parameter
    down: nn.Parameter
    left: nn.Parameter
    right: nn.Parameter

    def __init__(self, base: nn.Module, up: torch.Tensor, down: torch.Tensor, basis: Basis, scale: float) -> None:
        weight: torch.Tensor = base.weight  # type: ignore[assignment]
        left, right = (side(torch.float32).to(weight.device) for side in (basis.left, basis.right))
        super().__init__(base, scale, up=up, down=down, left=left, right=right)

    def change(self, x: torch.Tensor) -> torch.Tensor:
        """``left(up(down(right(x))))``; the small products come first, so it costs what a LoRA costs."""
        core = core_layer(self.base)
        down = (self.down @ self.right).reshape(-1, *self.weight.shape[1:])
        up = self.left @ self.up
        inner = apply_weight(core, x, down)
        return F.conv2d(inner, up[:, :, None, None]) if self.weight.ndim == 4 else F.linear(inner, up)
