"""The hypernetwork of HyperDreamBooth: from the features of one picture to the vector of a LiDB (arXiv:2307.06949).

A transformer decoder has one token for each layer of the LiDB and looks at the picture's tokens. What it adds to the
vector begins as almost nothing, and with the vector so far at its input it may refine it several times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sdkit.runtime.rng import StepRNG

HEAD = 32  # width of an attention head
FIRST_SPREAD = 1e-3  # standard deviation of the last projection at the start


@dataclass(frozen=True, slots=True)
class PredictorShape:
    """What a predictor is built from.

    Attributes:
        lengths: numbers of each layer of the LiDB.
        tokens: of a picture.
        features: width of such a token.
        width: of the transformer.
        blocks: of the decoder; the picture goes through half as many of an encoder's.
        iterations: how often the vector is refined.
    """

    lengths: tuple[int, ...]
    tokens: int
    features: int
    width: int
    blocks: int
    iterations: int


class Predictor(nn.Module):
    """The network.

    Args:
        shape: what it is built from.
    """

    def __init__(self, shape: PredictorShape) -> None:
        super().__init__()
        self.shape = shape
        width, longest = shape.width, max(shape.lengths)
        self.picture = nn.Linear(shape.features, width)
        self.places = nn.Parameter(torch.empty(shape.tokens, width))
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(**_block(width)) for _ in range(math.ceil(shape.blocks / 2))
        )
        self.weights = nn.Linear(longest, width)
        self.layers = nn.Parameter(torch.empty(len(shape.lengths), width))
        self.decoder = nn.ModuleList(nn.TransformerDecoderLayer(**_block(width)) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, longest)

    @classmethod
    def new(cls, shape: PredictorShape, rng: StepRNG) -> Predictor:
        """One that changes almost nothing yet; its numbers follow from `rng` alone."""
        with torch.device("meta"):  # draws nothing from torch's generator
            made = cls(shape)
        made.to_empty(device="cpu")
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                parameter.copy_(_first(name, tuple(parameter.shape), rng))
        return made

    def forward(self, picture: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Vectors [n, size] from pictures' tokens [n, tokens, features] and the vector all begin as, [size]."""
        memory = self.picture(picture) + self.places
        for block in self.encoder:
            memory = block(memory)
        change = torch.zeros(len(picture), len(start), device=start.device)
        for _ in range(self.shape.iterations):
            change = change + self._refine(change, memory)
        return start + change

    def _refine(self, change: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        parts = torch.split(change, list(self.shape.lengths), 1)
        longest = self.out.out_features
        padded = torch.stack([F.pad(part, (0, longest - part.shape[1])) for part in parts], 1)
        hidden = self.weights(padded) + self.layers
        for block in self.decoder:
            hidden = block(hidden, memory)
        rows = self.out(self.norm(hidden)).unbind(1)
        cut = [row[:, :length] for row, length in zip(rows, self.shape.lengths, strict=True)]
        return torch.cat(cut, 1).float()


def _block(width: int) -> dict[str, Any]:
    return {
        "d_model": width,
        "nhead": max(1, width // HEAD),
        "dim_feedforward": 4 * width,
        "dropout": 0.0,
        "activation": "gelu",
        "batch_first": True,
        "norm_first": True,
    }


def _first(name: str, shape: tuple[int, ...], rng: StepRNG) -> torch.Tensor:
    """A parameter at the start: biases zero, norms one, matrices as torch begins a linear layer."""
    if name in ("places", "layers"):
        return rng.normal(shape, "predictor", name) * 0.02
    if name == "out.weight":
        return rng.normal(shape, "predictor", name) * FIRST_SPREAD
    if len(shape) == 1:
        return torch.ones(shape) if "norm" in name and name.endswith("weight") else torch.zeros(shape)
    return (rng.uniform(shape, "predictor", name) * 2 - 1) / math.sqrt(shape[1])
