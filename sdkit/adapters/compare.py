"""How far two weight changes are apart, in float64, however their factors are shaped, scaled and stored."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.delta import Delta, PreparedDelta, is_relative
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch

_MOST_ELEMENTS = 1 << 22  # compared at once


def relative_error(one: Delta, other: Delta) -> float:
    """‖ΔW₁ − ΔW₂‖ / ‖ΔW₁‖: 0 for equal changes, infinity where only one changes anything.

    A change that is relative to the base has no matrix of its own: then the parts are compared, and the answer is how
    far their scales are apart, or infinity.

    Raises:
        SdkitError: a factor holds NaN or infinity.
    """
    if is_relative(one) or is_relative(other):
        return _parts_error(one, other)
    parts = _parts_error(one, other)
    return parts if parts == 0.0 else _dense_error(one, other)


def _dense_error(one: Delta, other: Delta) -> float:
    import torch

    rows = one.shape[0] if one.shape else 1
    columns = math.prod(one.shape[1:])
    first, second = one.prepare(1.0, torch.float64), other.prepare(1.0, torch.float64)
    norm = distance = 0.0
    step = max(1, _MOST_ELEMENTS // columns)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        change = _rows(first, start, count, columns)
        norm += float(change.square().sum())
        distance += float(change.sub_(_rows(second, start, count, columns)).square().sum())
    if distance == 0.0:
        return 0.0
    return math.sqrt(distance / norm) if norm else math.inf


def _rows(prepared: PreparedDelta, start: int, count: int, columns: int) -> torch.Tensor:
    import torch

    out = torch.zeros(count, columns, dtype=torch.float64)
    prepared.add_rows(out, start)
    return out


def _parts_error(one: object, other: object) -> float:
    """0 for parts of one kind with equal numbers; where scales differ, by how much; infinity for anything else."""
    if isinstance(one, Read) and isinstance(other, Read):
        return 0.0 if _same_numbers(one, other) else math.inf
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) / max(abs(one), abs(other)) if one != other else 0.0
    if type(one) is not type(other):
        return math.inf
    if not hasattr(one, "__dataclass_fields__"):
        return 0.0 if one == other else math.inf
    names = [field.name for field in fields(one)]  # type: ignore[arg-type]
    return max((_parts_error(getattr(one, name), getattr(other, name)) for name in names), default=0.0)


def _same_numbers(one: Read, other: Read) -> bool:
    import torch

    if one.dtype != other.dtype or one.info.numel != other.info.numel:
        return False
    return torch.equal(one.load().flatten(), other.load().flatten())
