"""What all layers that stand in for a model's own share: the base below them, and a scale."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn import functional as F

from sdkit.core.errors import SdkitError


class AdapterLayer(nn.Module, ABC):
    """A layer in the place of another, whose weights it shares.

    Args:
        base: the `nn.Linear` or `nn.Conv2d` whose place it takes, or another such layer.
        scale: what the change is multiplied with; 0 leaves the base's output as it is, bit for bit.
        factors: what the change is made of, by the names they get as attributes; those that are no parameters yet
            become frozen ones.
    """

    def __init__(self, base: nn.Module, scale: float, **factors: torch.Tensor) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        for name, factor in factors.items():
            parameter = factor if isinstance(factor, nn.Parameter) else nn.Parameter(factor, requires_grad=False)
            self.register_parameter(name, parameter)

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
        return out + self.scale * self.change(x)

    @abstractmethod
    def change(self, x: torch.Tensor) -> torch.Tensor:
        """What the change, not yet scaled, makes of the layer's input."""


def core_layer(module: nn.Module) -> nn.Module:
    """The model's own layer below any layers standing in for it."""
    while isinstance(module, AdapterLayer):
        module = module.base
    return module


def carrier(module: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    """The model's own layer, which must be one that adapters can change.

    Args:
        name: of the module, for messages.

    Raises:
        SdkitError: it is no linear layer and no ordinary convolution.
    """
    core = core_layer(module)
    if isinstance(core, nn.Linear):
        return core
    if isinstance(core, nn.Conv2d) and core.groups == 1 and isinstance(core.padding, tuple):
        return core
    raise SdkitError(f"{name}: a {type(core).__name__} cannot carry a low-rank change")


def apply_weight(core: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What a layer like `core` with another weight, of any shape, and without bias makes of `x`."""
    if isinstance(core, nn.Conv2d):
        return F.conv2d(x, weight, None, core.stride, core.padding, core.dilation)
    return F.linear(x, weight)
