"""Sums of deltas: what several adapters do to one weight, as one product and one rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.delta import Delta, PreparedDelta
from sdkit.adapters.deltas.low_rank import PreparedLowRank, stack

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
        prepared = [delta.prepare(strength, dtype) for delta, strength in self.terms]
        if self.transposed:
            prepared = [delta.transpose() for delta in prepared]
        low_rank = [delta for delta in prepared if isinstance(delta, PreparedLowRank)]
        others = [delta for delta in prepared if not isinstance(delta, PreparedLowRank)]
        return PreparedSum((*([stack(low_rank)] if low_rank else []), *others))


@dataclass(frozen=True, slots=True)
class PreparedSum:
    """A sum with all factors in memory; low-rank terms have become one product."""

    terms: tuple[PreparedDelta, ...]

    def magnitude(self) -> float:
        """An upper bound of the entries' absolute values."""
        return sum(term.magnitude() for term in self.terms)

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Add rows ``start : start + len(out)`` of the change to `out`, in place."""
        for term in self.terms:
            term.add_rows(out, start)
