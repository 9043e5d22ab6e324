"""A linear layer or convolution with a low-rank change beside it: ``base(x) + scale · up(down(x))``.

`down` and `up` are the factors of `sdkit.adapters.deltas.low_rank.LowRank`: for a convolution `down` carries its
kernel, stride and padding, and `up` is a 1×1 convolution.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from sdkit.runtime.layers.layer import AdapterLayer, apply_weight, carrier, core_layer


class LowRankLayer(AdapterLayer):
    """The layer.

    Args:
        base: the layer whose place it takes.
        down: [rank, in], or [rank, in, k, k] for a convolution.
        up: [out, rank], or [out, rank, 1, 1] for a convolution.
        scale: what the change is multiplied with.
        more: further factors of a layer derived from this one.
    """

    down: nn.Parameter
    up: nn.Parameter

    def __init__(
        self, base: nn.Module, down: torch.Tensor, up: torch.Tensor, scale: float, **more: torch.Tensor
    ) -> None:
        super().__init__(base, scale, down=down, up=up, **more)

    def change(self, x: torch.Tensor) -> torch.Tensor:
        """``up(down(x))``."""
        inner = apply_weight(core_layer(self.base), x, self.down)
        return F.conv2d(inner, self.up) if self.up.ndim == 4 else F.linear(inner, self.up)


def factor_shapes(module: nn.Module, rank: int, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of `down` and `up` for a layer.

    Raises:
        SdkitError: it is no linear layer and no ordinary convolution.
    """
    return low_rank_shapes(tuple(carrier(module, name).weight.shape), rank)


def low_rank_shapes(weight: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of `down` and `up` beside a weight."""
    return (rank, *weight[1:]), (weight[0], rank, *[1] * len(weight[2:]))
