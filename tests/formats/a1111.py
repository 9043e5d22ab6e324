"""A reader of A1111's hypernetworks, written from the documented layout of its files and used only as an oracle.

It shares nothing with sdkit: it builds what a web UI builds from the settings in the file, and lets torch's strict
`load_state_dict` say whether every name and shape is right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

NAMED = {"relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "elu": nn.ELU, "swish": nn.Hardswish, "tanh": nn.Tanh}
NAMED |= {name.lower(): getattr(nn, name) for name in ("Sigmoid", "Mish", "GELU", "PReLU", "Softsign")}
OLD = {f"linear{n + 1}.{part}": f"linear.{n}.{part}" for n in range(2) for part in ("weight", "bias")}


class Network(nn.Module):
    def __init__(self, width: int, state: dict[str, torch.Tensor], settings: dict[str, Any]) -> None:
        super().__init__()
        factors = settings.get("layer_structure", [1, 2, 1])
        drops = settings.get("dropout_structure")
        if drops is None:
            drops = [0] * len(factors)
            if settings.get("use_dropout", False):
                last = 0.3 if settings.get("last_layer_dropout", False) else 0
                drops = [0, *[0.3] * (len(factors) - 3), last, 0]
        activation = settings.get("activation_func")
        parts: list[nn.Module] = []
        for n in range(len(factors) - 1):
            parts.append(nn.Linear(int(width * factors[n]), int(width * factors[n + 1])))
            inner = n < len(factors) - 2
            if activation not in (None, "linear") and (inner or settings.get("activate_output", True)):
                parts.append(NAMED[activation]())
            if settings.get("is_layer_norm", False):
                parts.append(nn.LayerNorm(int(width * factors[n + 1])))
            if drops[n + 1] > 0:
                parts.append(nn.Dropout(drops[n + 1]))
        self.linear = nn.Sequential(*parts)
        self.load_state_dict({OLD.get(name, name): tensor for name, tensor in state.items()})
        self.eval()

    def forward(self, x: torch.Tensor, multiplier: float = 1.0) -> torch.Tensor:
        return x + self.linear(x) * multiplier


def load(path: Path) -> dict[int, tuple[Network, Network]]:
    """Width → the networks for keys and for values."""
    contents = torch.load(path, map_location="cpu", weights_only=True)
    return {
        width: (Network(width, pair[0], contents), Network(width, pair[1], contents))
        for width, pair in contents.items()
        if type(width) is int
    }
