"""Comparing an adapter that was written with the one that was meant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.deltas.delta import Delta
from sdkit.core.errors import SdkitError

if TYPE_CHECKING:
    import torch


def verify(meant: Artifact, read: Artifact, path: Path) -> None:
    """Raise SdkitError unless the changes in `read` are those of `meant`, to the last bit.

    Args:
        read: what the file at `path` holds; of an adapter in several files, one component.
    """
    components = {target.component for target in read.deltas}
    wanted = {target for target in meant.deltas if target.component in components}
    if set(read.deltas) != wanted or read.unmatched or not wanted:
        raise SdkitError(
            f"{path}: {len(wanted)} changes were written and {len(read.deltas)} read back", "please report this"
        )
    for target, delta in read.deltas.items():
        if not _equal(meant.deltas[target], delta):
            raise SdkitError(f"{path}: {target.name} does not read back as it was written", "please report this")


def _equal(one: Delta, other: Delta) -> bool:
    import torch

    return torch.equal(_dense(one), _dense(other))


def _dense(delta: Delta) -> torch.Tensor:
    import math

    import torch

    rows = delta.shape[0] if len(delta.shape) > 1 else 1
    columns = math.prod(delta.shape) // rows
    out = torch.zeros(*((rows, columns) if len(delta.shape) > 1 else (columns, 1)))
    delta.prepare(1.0, torch.float32).add_rows(out, 0)
    return out
