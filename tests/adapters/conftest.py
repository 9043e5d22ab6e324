"""Small adapter files and dense float64 references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdkit.adapters.deltas.delta import Delta
from sdkit.streaming.expression import Read
from sdkit.weights import open_weights


@pytest.fixture
def reads(tmp_path: Path) -> Callable[..., dict[str, Read]]:
    """Store tensors in a file and give handles on them."""

    def make(**tensors: torch.Tensor) -> dict[str, Read]:
        path = tmp_path / f"factors{len(list(tmp_path.iterdir()))}.safetensors"
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
        weights = open_weights(path)
        return {name: Read(weights, info) for name, info in weights.tensors.items()}

    return make


@pytest.fixture
def dense() -> Callable[..., torch.Tensor]:
    """The whole change of a delta, added tile by tile of `tile` rows, as [rows, columns]."""

    def make(delta: Delta, strength: float = 1.0, tile: int = 3, transpose: bool = False) -> torch.Tensor:
        prepared = delta.prepare(strength, torch.float64)
        rows, columns = delta.shape[0], torch.Size(delta.shape[1:]).numel()
        if transpose:
            prepared, rows, columns = prepared.transpose(), columns, rows
        out = torch.zeros(rows, columns, dtype=torch.float64)
        for start in range(0, rows, tile):
            prepared.add_rows(out[start : start + tile], start)
        return out

    return make
