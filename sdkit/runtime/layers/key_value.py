"""A hypernetwork's networks, and the layer that puts one before ``to_k`` or ``to_v``.

A network is built as `sdkit.adapters.key_value.Structure` says, and its tensors have the names they have in files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sdkit.adapters.key_value import ACTIVATIONS, Layer, Structure


class KeyValueNetwork(nn.Module):
    """One network. Its output is what is added to the input.

    Args:
        width: of the input and the output.
        structure: its layers.
        tensors: as `Structure.shapes` names them; they are not copied.
    """

    def __init__(self, width: int, structure: Structure, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        with torch.device("meta"):  # the modules' own random beginnings would be drawn from torch's generator
            self.linear = nn.Sequential(*(_module(layer) for layer in structure.layers(width)))
        self.load_state_dict(tensors, assign=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What is added to `x`, [..., width], before it is scaled."""
        out: torch.Tensor = self.linear(x)
        return out


class KeyValueLayer(nn.Module):
    """``base(x + strength · network(x))`` in the place of `base`.

    The networks' numbers are float32 whatever the model computes in, as in the web UIs.

    Args:
        base: the ``to_k`` or ``to_v`` whose place it takes, or a layer that stands in for it.
        network: transforms its input; layers that read the same width share it.
        strength: what the network's output is multiplied with.
    """

    def __init__(self, base: nn.Module, network: KeyValueNetwork, strength: float) -> None:
        super().__init__()
        self.base = base
        self.network = network
        self.strength = strength

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base's output for the transformed input."""
        wide = x.float()
        transformed = (wide + self.strength * self.network(wide)).to(x.dtype)
        out: torch.Tensor = self.base(transformed)
        return out


def _module(layer: Layer) -> nn.Module:
    if layer.kind == "linear":
        return nn.Linear(layer.inputs, layer.outputs)
    if layer.kind == "norm":
        return nn.LayerNorm(layer.outputs)
    if layer.kind == "dropout":
        return nn.Dropout(layer.chance)
    activation: nn.Module = getattr(nn, ACTIVATIONS[layer.kind])()
    return activation
