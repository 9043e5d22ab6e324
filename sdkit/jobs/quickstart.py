"""Make a small real-layout checkpoint and a LoRA, and merge them: the whole machinery in a few seconds, offline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sdkit
from sdkit.jobs.example import Sizes, make_checkpoint, make_lora
from sdkit.weights.dtypes import BY_TORCH_NAME, DType
from sdkit.weights.writer import SafetensorsWriter

if TYPE_CHECKING:
    import torch

STRENGTH = 0.8


@dataclass(frozen=True, slots=True)
class Quickstart:
    """What a quickstart made.

    Attributes:
        base: the checkpoint, Stable Diffusion 1 in layout, small in width, random in content.
        lora: the LoRA, in kohya's format.
        merged: the checkpoint with the LoRA in it.
        modules: how many modules of the base the merge changed.
        seconds: wall time of the merge.
    """

    base: Path
    lora: Path
    merged: Path
    modules: int
    seconds: float


def quickstart(folder: Path | str) -> Quickstart:
    """Make ``base.safetensors`` and ``lora.safetensors`` in `folder`, and merge them into ``merged.safetensors``.

    Files of these names are replaced; the folder is made if need be.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    base, lora, merged = (folder / f"{name}.safetensors" for name in ("base", "lora", "merged"))
    _save(base, make_checkpoint(Sizes()), {"format": "pt"})
    _save(lora, make_lora(Sizes()), {"ss_network_dim": "4", "ss_network_alpha": "2.0"})
    report = sdkit.merge(base, {lora: STRENGTH}, merged, force=True)
    return Quickstart(base, lora, merged, report.matched, report.seconds)


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a file whose bytes depend on the arguments alone (the safetensors library shuffles metadata)."""
    import torch

    layout = [(name, _dtype(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()]
    with SafetensorsWriter(path, layout, metadata, overwrite=True) as writer:
        for name, tensor in tensors.items():
            data = bytearray(tensor.nbytes)
            torch.frombuffer(data, dtype=tensor.dtype).copy_(tensor.flatten())
            writer.write_tensor(name, data)
        writer.commit()


def _dtype(tensor: torch.Tensor) -> DType:
    return BY_TORCH_NAME[str(tensor.dtype).removeprefix("torch.")]
