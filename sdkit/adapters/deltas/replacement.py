"""A weight stored whole in place of the base's own: Custom Diffusion (arXiv:2212.04488).

W' = W + k · (A − W) at strength k
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sdkit.adapters.deltas.delta import WithoutRank
from sdkit.adapters.deltas.factors import check_float, read_factor
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Replacement(WithoutRank):
    """The new weight, still in its file.

    Attributes:
        weight: A, of the weight's own shape (a bias is one-dimensional).

    Raises:
        SdkitError: it is not floating-point.
    """

    relative: ClassVar[bool] = True

    weight: Read

    def __post_init__(self) -> None:
        check_float(self.weight)

    @property
    def kind(self) -> str:
        """``replacement``."""
        return "replacement"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.weight.shape

    def prepare(self, strength: float, dtype: torch.dtype) -> PreparedReplacement:
        """Read the weight.

        Raises:
            SdkitError: it holds NaN or infinity.
        """
        weight = read_factor(self.weight, dtype)
        return PreparedReplacement(weight.reshape(weight.shape[0] if weight.ndim else 1, -1), strength)


@dataclass(frozen=True, slots=True)
class PreparedReplacement:
    """A weight in memory, [rows, columns]; a bias has one column."""

    weight: torch.Tensor
    strength: float

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Move the base rows in `out`, [rows, columns], towards the new ones, in place; at strength 1 these exactly."""
        out.lerp_(self.weight[start : start + len(out)], self.strength)

    def magnitude(self) -> float:
        """Infinite: it depends on the base."""
        return math.inf

    def transpose(self) -> PreparedReplacement:
        """The same of the transposed weight."""
        return PreparedReplacement(self.weight.t().contiguous(), self.strength)
