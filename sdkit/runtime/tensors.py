"""Between torch's tensors and bytes: into memory, into files, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.streaming.expression import Read
from sdkit.weights import DType, open_weights
from sdkit.weights.dtypes import BY_TORCH_NAME
from sdkit.weights.memory import MemoryWeights
from sdkit.weights.writer import SafetensorsWriter

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]


def tensor_bytes(tensor: torch.Tensor) -> bytearray:
    """The elements in row-major order."""
    import torch

    data = bytearray(tensor.nbytes)
    if data:
        torch.frombuffer(data, dtype=tensor.dtype).copy_(tensor.detach().flatten())
    return data


def in_memory(name: str, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> MemoryWeights:
    """A copy of `tensors` that reads like a file."""
    held = {key: (_dtype(value), tuple(value.shape), tensor_bytes(value)) for key, value in tensors.items()}
    return MemoryWeights(name, held, metadata or {})


def write_tensors(
    path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None, *, overwrite: bool = False
) -> None:
    """Write a safetensors file whose bytes depend on the arguments alone, whole or not at all."""
    layout = [(name, _dtype(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()]
    with SafetensorsWriter(path, layout, metadata or {}, overwrite=overwrite) as writer:
        for name, tensor in tensors.items():
            writer.write_tensor(name, tensor_bytes(tensor))
        writer.commit()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, each in memory of its own as torch allocates it.

    Matrix products may round differently in memory aligned differently, so a resumed run must not compute in whatever
    place a file's bytes happened to be read to.
    """
    with open_weights(path) as weights:
        return {name: Read(weights, info).load().clone() for name, info in weights.tensors.items()}


def _dtype(tensor: torch.Tensor) -> DType:
    return BY_TORCH_NAME[str(tensor.dtype).removeprefix("torch.")]
