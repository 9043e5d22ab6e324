"""Sums of deltas: what several adapters do to one weight, as one product and one rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.delta import Delta, PreparedDelta, is_relative
from sdkit.adapters.deltas.low_rank import PreparedLowRank, stack
from sdkit.streaming.add_delta import LooksFirst

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DeltaSum:
    """Several deltas of one weight, each with its strength.

    Attributes:
        terms: delta and strength, in the order the adapters were given.
        transposed: the weight is stored transposed, so the change must be too.
    """

    terms: tuple[tuple[Delta, float], ...]
    transposed: bool = False

    @property
    def rows(self) -> int:
        """Rows of the stored weight it changes."""
        shape = self.terms[0][0].shape
        return shape[1] if self.transposed else shape[0]

    def ready(self, dtype: torch.dtype) -> PreparedSum:
        """Read all factors."""
        prepared = [self._prepared(delta, strength, dtype) for delta, strength in self.terms if not is_relative(delta)]
        relative = tuple(self._prepared(delta, strength, dtype) for delta, strength in self.terms if is_relative(delta))
        low_rank = [delta for delta in prepared if isinstance(delta, PreparedLowRank)]
        others = [delta for delta in prepared if not isinstance(delta, PreparedLowRank)]
        return PreparedSum((*([stack(low_rank)] if low_rank else []), *others), relative)

    def _prepared(self, delta: Delta, strength: float, dtype: torch.dtype) -> PreparedDelta:
        prepared = delta.prepare(strength, dtype)
        return prepared.transpose() if self.transposed else prepared


@dataclass(frozen=True, slots=True)
class PreparedSum:
    """A sum with all factors in memory; low-rank terms have become one product.

    Attributes:
        terms: what is simply added.
        relative: changes of the base itself; each is computed from the untouched base, then they are summed.
    """

    terms: tuple[PreparedDelta, ...]
    relative: tuple[PreparedDelta, ...] = ()

    @property
    def looks_first(self) -> bool:
        """Whether a change must see all rows of the base before the first is changed."""
        return any(isinstance(change, LooksFirst) and change.looks_first for change in self.relative)

    def look(self, rows: torch.Tensor, start: int) -> None:
        """Show base rows ``start : start + len(rows)`` to the changes that look first."""
        for change in self.relative:
            if isinstance(change, LooksFirst) and change.looks_first:
                change.look(rows, start)

    def magnitude(self) -> float:
        """An upper bound of the entries' absolute values."""
        return sum(term.magnitude() for term in (*self.terms, *self.relative))

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Add rows ``start : start + len(out)`` of the change to `out`, which holds the base, in place."""
        base = out.clone() if len(self.relative) > 1 else out
        for number, change in enumerate(self.relative):
            if number == 0:
                change.add_rows(out, start)
            else:
                changed = base.clone()
                change.add_rows(changed, start)
                out.add_(changed.sub_(base))
        for term in self.terms:
            term.add_rows(out, start)
