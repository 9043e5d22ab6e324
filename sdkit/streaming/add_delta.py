"""Adding changes to some rows of a tensor: what merging an adapter is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sdkit.streaming.expression import Context, Expression, TileFunction, common_unit, spans, widen
from sdkit.weights import DType

if TYPE_CHECKING:
    import torch

# How far a float32 product may lie from the exact one, as a multiple of the change's magnitude. Measured: at most 2.6
# units of 2⁻²⁴ among 1.4·10⁸ elements of random products of rank 1 to 256.
FLOAT32_PRODUCT_ERROR = 3 * 2.0**-24
# Results may lie at most half a unit in the last place from the exact value; the arithmetic may add this much to it.
ERROR_BUDGET = 0.01
# The smallest distance between two neighbours of a type. bfloat16 and float32 reach so near to zero that only float64
# keeps the promise when a change cancels its weight.
SMALLEST_STEP = {"F16": 2.0**-24, "F8_E4M3": 2.0**-9, "F8_E5M2": 2.0**-16}


class ReadyChange(Protocol):
    """A change with its factors in memory."""

    def magnitude(self) -> float:
        """An upper bound of the entries' absolute values; infinite when none is known."""
        ...

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Add rows ``start : start + len(out)`` of the change to `out`, [rows, columns], in place.

        `out` holds the base's rows, for changes that are relative to them.
        """
        ...


@runtime_checkable
class LooksFirst(Protocol):
    """A ready change that may need to see all of the base before it changes anything."""

    @property
    def looks_first(self) -> bool:
        """Whether it does."""
        ...

    def look(self, rows: torch.Tensor, start: int) -> None:
        """Take in base rows ``start : start + len(rows)``, [rows, columns]."""
        ...


class Change(Protocol):
    """Something that can be added to rows of a tensor."""

    @property
    def rows(self) -> int:
        """How many rows it changes."""
        ...

    def ready(self, dtype: torch.dtype) -> ReadyChange:
        """Read the factors, to compute in `dtype`."""
        ...


@dataclass(frozen=True, slots=True)
class Addend:
    """A change and the first row it applies to; it reaches over `columns` columns, the leftmost ones."""

    change: Change
    first_row: int = 0
    columns: int | None = None


@dataclass(frozen=True, slots=True)
class AddDelta:
    """A tensor plus changes of some of its rows: one sum, rounded once."""

    base: Expression
    addends: tuple[Addend, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The base's."""
        return self.base.shape

    @property
    def unit(self) -> int:
        """A row, or what the base needs."""
        return math.lcm(self._columns, self.base.unit)

    @property
    def _columns(self) -> int:
        return max(1, math.prod(self.shape[1:]))

    def bind(self, context: Context) -> TileFunction:
        """Read the factors, choose the arithmetic, and add the rows of each tile."""
        ready, dtype = self._ready(context)
        context = context.with_dtype(dtype)
        base, columns = self.base.bind(context), self._columns
        self._look(base, ready, context)

        def tile(start: int, stop: int) -> torch.Tensor:
            values = widen(base(start, stop), context)
            matrix, first = values.view(-1, columns), start // columns
            for addend, change in ready:
                _apply(matrix, first, addend, change.add_rows)
            return values

        return tile

    def _look(self, base: TileFunction, ready: list[tuple[Addend, ReadyChange]], context: Context) -> None:
        """Show the whole base to the changes that need it before they change anything: one more pass, in order."""
        looking = [
            (addend, change) for addend, change in ready if isinstance(change, LooksFirst) and change.looks_first
        ]
        if not looking:
            return
        columns, mark = self._columns, context.scratch.mark()
        for start, stop in spans(math.prod(self.shape), common_unit([self.unit])):
            matrix = widen(base(start, stop), context).view(-1, columns)
            for addend, change in looking:
                _apply(matrix, start // columns, addend, change.look)
            context.scratch.release(mark)

    def _ready(self, context: Context) -> tuple[list[tuple[Addend, ReadyChange]], torch.dtype]:
        """The changes, in float32 where that is exact enough, else in float64."""
        import torch

        if context.target.name in SMALLEST_STEP:
            ready = [(addend, addend.change.ready(context.dtype)) for addend in self.addends]
            if _exact_enough(sum(change.magnitude() for _, change in ready), context.target):
                return ready, context.dtype
        return [(addend, addend.change.ready(torch.float64)) for addend in self.addends], torch.float64


def _exact_enough(magnitude: float, target: DType) -> bool:
    """Whether float32's rounding of a change of this magnitude stays invisible in the stored type."""
    return magnitude * FLOAT32_PRODUCT_ERROR <= ERROR_BUDGET * SMALLEST_STEP.get(target.name, 0.0)


def _apply(matrix: torch.Tensor, first: int, addend: Addend, action: Callable[[torch.Tensor, int], None]) -> None:
    """Give `action` the addend's part of the tile beginning at row `first`, and the row of the change it begins at."""
    low = max(first, addend.first_row)
    high = min(first + len(matrix), addend.first_row + addend.change.rows)
    if low < high:
        rows = matrix[low - first : high - first]
        action(rows if addend.columns is None else rows[:, : addend.columns], low - addend.first_row)
