"""Comparing an adapter that was written with the one that was meant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.dora import Dora
from sdkit.core.errors import SdkitError

if TYPE_CHECKING:
    import torch


def verify(meant: Artifact, read: Artifact, path: Path) -> None:
    """Raise SdkitError unless every change in `read` is one of `meant`'s and none lacks.

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

    if isinstance(one, Dora) and isinstance(other, Dora):  # a DoRA alone is no change: it takes the base's direction
        same = torch.equal(one.lengths.load().flatten(), other.lengths.load().flatten())
        return same and one.by_input == other.by_input and _equal(one.change, other.change)
    wanted, found = _dense(one), _dense(other)
    # Files keep alpha as a float32, so that a scale of 0.1 may come back changed in its seventh digit.
    return torch.allclose(wanted, found, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


def _dense(delta: Delta) -> torch.Tensor:
    import math

    import torch

    rows = delta.shape[0] if len(delta.shape) > 1 else 1
    columns = math.prod(delta.shape) // rows
    out = torch.zeros(*((rows, columns) if len(delta.shape) > 1 else (columns, 1)))
    delta.prepare(1.0, torch.float32).add_rows(out, 0)
    return out
