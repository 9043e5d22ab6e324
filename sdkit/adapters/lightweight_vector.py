"""One LiDB as one vector: the factors of all its layers in a row, as a network predicts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.lightweight import Basis

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each layer's factors lie: its ``up`` [a, rank], then its ``down`` [rank, b], layer after layer.

    Attributes:
        bases: of the layers, in order.
        rank: of every layer's change.
    """

    bases: tuple[Basis, ...]
    rank: int

    @property
    def lengths(self) -> tuple[int, ...]:
        """Numbers of each layer."""
        return tuple(self.rank * (basis.a + basis.b) for basis in self.bases)

    @property
    def size(self) -> int:
        """Numbers in all."""
        return sum(self.lengths)

    def factors(self, vectors: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Module → views of its ``up`` [n, a, rank] and ``down`` [n, rank, b], of vectors [n, size]."""
        import torch

        found = {}
        for basis, part in zip(self.bases, torch.split(vectors, list(self.lengths), 1), strict=True):
            up, down = torch.split(part, [basis.a * self.rank, self.rank * basis.b], 1)
            found[basis.module] = (up.reshape(-1, basis.a, self.rank), down.reshape(-1, self.rank, basis.b))
        return found

    def vector(self, factors: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """The vector [size] of every layer's ``up`` and ``down``, in order."""
        import torch

        return torch.cat([part.flatten() for pair in factors for part in pair])
