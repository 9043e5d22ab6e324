"""A linear layer or convolution with a low-rank change beside it: ``base(x) + scale · up(down(x))``.

The layer takes the place of its base and shares its weights. `down` and `up` are the factors of
`sdkit.adapters.deltas.low_rank.LowRank`: for a convolution `down` carries its kernel, stride and padding, and `up` is a
1×1 convolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn import functional as F

from sdkit.core.errors import SdkitError

if TYPE_CHECKING:
    import torch


class LowRankLayer(nn.Module):
    """The layer.

    Args:
        base: the `nn.Linear` or `nn.Conv2d` whose place it takes, or another such layer.
        down: [rank, in], or [rank, in, k, k] for a convolution.
        up: [out, rank], or [out, rank, 1, 1] for a convolution.
        scale: what the change is multiplied with; 0 leaves the base's output as it is, bit for bit.
    """

    def __init__(self, base: nn.Module, down: torch.Tensor, up: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.base = base
        self.down = down if isinstance(down, nn.Parameter) else nn.Parameter(down, requires_grad=False)
        self.up = up if isinstance(up, nn.Parameter) else nn.Parameter(up, requires_grad=False)
        self.scale = scale

    @property
    def weight(self) -> torch.Tensor:
        """The base's weight: callers look at its type and device."""
        weight: torch.Tensor = self.base.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The base's bias."""
        bias: torch.Tensor | None = self.base.bias  # type: ignore[assignment]
        return bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base's output with the change added."""
        out: torch.Tensor = self.base(x)
        if self.scale == 0:
            return out
        return out + self.scale * self._change(x)

    def _change(self, x: torch.Tensor) -> torch.Tensor:
        core = core_layer(self.base)
        if isinstance(core, nn.Conv2d):
            inner = F.conv2d(x, self.down, None, core.stride, core.padding, core.dilation)
            return F.conv2d(inner, self.up)
        return F.linear(F.linear(x, self.down), self.up)


def core_layer(module: nn.Module) -> nn.Module:
    """The model's own layer below any layers standing in for it."""
    while isinstance(module, LowRankLayer):
        module = module.base
    return module


def factor_shapes(module: nn.Module, rank: int, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of `down` and `up` for a layer.

    Raises:
        SdkitError: it is no linear layer and no ordinary convolution.
    """
    core = core_layer(module)
    if isinstance(core, nn.Linear):
        return (rank, core.in_features), (core.out_features, rank)
    if isinstance(core, nn.Conv2d) and core.groups == 1 and isinstance(core.padding, tuple):
        return (rank, core.in_channels, *core.kernel_size), (core.out_channels, rank, 1, 1)
    raise SdkitError(f"{name}: a {type(core).__name__} cannot carry a low-rank change")
