"""An adapter with its numbers in another element type, each rounded once, when it is read."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from sdkit.adapters.artifact import Artifact, Target, TokenRows
from sdkit.adapters.builder import reads
from sdkit.adapters.computed import Computed, ComputedWeights
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.factors import read_factor
from sdkit.streaming.expression import Read
from sdkit.weights import DType
from sdkit.weights.memory import MemoryWeights

if TYPE_CHECKING:
    import torch


def recast(artifact: Artifact, dtype: DType) -> Artifact:
    """The adapter with all tensors of its weight changes and words in `dtype`; alphas are no tensors and stay."""
    deltas: dict[Target, Delta] = {target: _recast(delta, dtype) for target, delta in artifact.deltas.items()}
    return replace(artifact, deltas=deltas, tokens=tuple(_recast_rows(rows, dtype) for rows in artifact.tokens))


def _recast_rows(rows: TokenRows, dtype: DType) -> TokenRows:
    read = _cast(Read(rows.weights, rows.info), dtype)
    data = {rows.info.name: (dtype, read.shape, read.weights.read(read.info))}
    held = MemoryWeights(str(rows.weights.path), data, {})
    return replace(rows, weights=held, info=held.tensors[rows.info.name])


def rounding(one: Delta, other: Delta) -> float:
    """How far the numbers of a recast change are from its own: the largest relative distance among its tensors."""
    import torch

    worst = 0.0
    for before, after in zip(reads(one), reads(other), strict=True):
        meant = read_factor(before, torch.float64).flatten()
        norm, distance = float(meant.norm()), float((read_factor(after, torch.float64).flatten() - meant).norm())
        worst = max(worst, distance / norm if norm else 0.0)
    return worst


def _recast(part: Any, dtype: DType) -> Any:
    """A delta, or a part of one."""
    if isinstance(part, Read):
        return _cast(part, dtype)
    if not hasattr(part, "__dataclass_fields__"):
        return part
    return replace(part, **{field.name: _recast(getattr(part, field.name), dtype) for field in fields(part)})


def _cast(read: Read, dtype: DType) -> Read:
    if read.dtype == dtype:
        return read

    def make() -> dict[str, torch.Tensor]:
        import torch

        return {"cast": read_factor(read, torch.float64)}

    change = {Target(read.info.name): Computed({"cast": read.shape}, make)}
    weights = ComputedWeights(str(read.weights.path), change, dtype)
    return Read(weights, next(iter(weights.tensors.values())))
