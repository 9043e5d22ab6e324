"""OFT of the second kind: the input features of a weight are rotated, in blocks, as PEFT and OneTrainer store it
(arXiv:2506.19847).

A block of size b is b (b − 1) / 2 numbers: the upper triangle of a skew-symmetric Q, row by row. Its rotation R is
Cayley's transform (I − Q)(I + Q)⁻¹, or the beginning of a series for (I + Q)(I − Q)⁻¹ (the sign is PEFT's):

    terms = 5    R = I + 2 Q + 2 Q² + 2 Q³ + Q⁴

    W' = W · diag(R₁, …, Rₙ)ᵀ,   at strength k each R is k R + (1 − k) I
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sdkit.adapters.deltas.delta import WithoutRank
from sdkit.adapters.deltas.factors import check_float, factor_error, read_factor
from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class InputRotation(WithoutRank):
    """The blocks, still in their file.

    Attributes:
        triangles: [n, b (b − 1) / 2]; one row where all blocks are the same.
        shape: of the weight, which the blocks do not tell.
        terms: of the series; 0 for Cayley's transform itself.
        damped: whether the numbers are divided by the root of how many a block has (OneTrainer's ``scaled_oft``).

    Raises:
        SdkitError: the blocks do not fit the weight, or are not floating-point.
    """

    relative: ClassVar[bool] = True

    triangles: Read
    shape: tuple[int, ...]
    terms: int = 5
    damped: bool = False

    def __post_init__(self) -> None:
        check_float(self.triangles)
        stored = self.triangles.shape
        columns = math.prod(self.shape[1:])
        size = self.block_size if len(stored) == 2 and stored[1] else 0
        if not size or size * (size - 1) // 2 != stored[1]:
            raise factor_error(self.triangles, f"{list(stored)} are no upper triangles")
        if columns % size or stored[0] not in (1, columns // size):
            raise factor_error(self.triangles, f"{stored[0]} blocks of {size} do not rotate {columns} input features")

    @property
    def block_size(self) -> int:
        """b, from how many numbers a block has."""
        return (1 + math.isqrt(1 + 8 * self.triangles.shape[1])) // 2

    @property
    def shared(self) -> bool:
        """Whether one block stands for several."""
        return self.triangles.shape[0] == 1 and self.block_size < math.prod(self.shape[1:])

    @property
    def kind(self) -> str:
        """``oftv2``."""
        return "oftv2"

    def prepare(self, strength: float, dtype: torch.dtype) -> PreparedInputRotation:
        """Read the blocks and make the rotations, in float64.

        Raises:
            SdkitError: a block holds NaN or infinity.
        """
        import torch

        stored = read_factor(self.triangles, torch.float64)
        if self.damped:
            stored = stored / math.sqrt(stored.shape[1])
        size = self.block_size
        rows, columns = torch.triu_indices(size, size, 1)
        skew = torch.zeros(len(stored), size, size, dtype=torch.float64)
        skew[:, rows, columns] = stored
        skew = skew - skew.mT
        identity = torch.eye(size, dtype=torch.float64)
        turns = _series(skew, self.terms) if self.terms else _cayley(skew)
        return PreparedInputRotation(turns.mul_(strength).add_(identity, alpha=1 - strength).to(dtype))


def _cayley(skew: torch.Tensor) -> torch.Tensor:
    import torch

    identity = torch.eye(skew.shape[-1], dtype=skew.dtype)
    turns: torch.Tensor = torch.linalg.solve(identity + skew, identity - skew, left=False)
    return turns


def _series(skew: torch.Tensor, terms: int) -> torch.Tensor:
    """I + 2 Q + 2 Q² + …, the last of several powers once; PEFT's shortest series end with 2 Q, or 2 Q² + Q³."""
    import torch

    total = torch.eye(skew.shape[-1], dtype=skew.dtype).repeat(len(skew), 1, 1)
    if terms == 1:
        return total
    total += 2 * skew
    if terms == 2:
        return total
    power = skew @ skew
    total += 2 * power
    for _ in range(3, terms - 1):
        power = power @ skew
        total += 2 * power
    return total + power @ skew


@dataclass(frozen=True, slots=True)
class PreparedInputRotation:
    """Rotations in memory, [n, b, b], or [1, b, b] for all blocks. Rows do not mix."""

    turns: torch.Tensor

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Turn the base rows in `out`, [rows, columns], in place."""
        import torch

        blocks = out.reshape(len(out), -1, self.turns.shape[-1])
        turns = self.turns.expand(blocks.shape[1], -1, -1)
        out.copy_(torch.einsum("rnj,nij->rni", blocks, turns).reshape(out.shape))

    def magnitude(self) -> float:
        """Infinite: it depends on the base."""
        return math.inf

    def transpose(self) -> PreparedInputRotation:
        """Not possible.

        Raises:
            SdkitError: always. No layer that OFT is trained for is stored transposed.
        """
        raise SdkitError("a rotation of a weight that is stored transposed cannot be applied", "use a diffusers folder")
