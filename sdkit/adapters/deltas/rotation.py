"""OFT: the output features of a weight are rotated, in blocks (Diag-OFT, arXiv:2306.07280) or butterflies (BOFT,
arXiv:2311.06243), as LyCORIS stores it.

A block B gives the skew-symmetric Q = B − Bᵀ and by Cayley's transform the rotation R = (I + Q)(I − Q)⁻¹. Where alpha
is above 0, ‖Q‖ over all blocks is held below alpha · out: alpha is a limit here, not a scale.

    Diag-OFT   W' = diag(R₁, …, Rₙ)ᵀ W
    BOFT       m stages of rotations, each mixing features twice as far apart:  W' = P_mᵀ R_m P_m … P₁ᵀ R₁ P₁ W

A rescale, one factor for each output feature, comes last. At strength k each R is k R + (1 − k) I, and each factor
1 + k · (factor − 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from sdkit.adapters.deltas.delta import WithoutRank
from sdkit.adapters.deltas.factors import check_float, check_scale, factor_error, read_factor
from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Rotation(WithoutRank):
    """The blocks, still in their file.

    Attributes:
        blocks: B, [n, b, b]; of a butterfly [m, n, b, b].
        rescale: a factor for each output feature, or None.
        limit: alpha; 0 for no limit.
        shape: of the weight, of which the blocks tell only the output features.

    Raises:
        SdkitError: the blocks do not fit the weight, or are not floating-point.
    """

    relative: ClassVar[bool] = True

    blocks: Read
    rescale: Read | None
    limit: float
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        check_float(self.blocks, self.rescale)
        check_scale(self.blocks, self.limit)
        *stages, number, rows, columns = (1, 1, 1, *self.blocks.shape)[-max(3, len(self.blocks.shape)) :]
        if len(stages) > 1 or rows != columns or number * rows != self.shape[0]:
            raise factor_error(self.blocks, f"blocks {list(self.blocks.shape)} do not rotate {self.shape[0]} features")
        if stages and (rows % 2 or self.shape[0] % (2 ** (stages[0] - 1) * rows)):
            raise factor_error(self.blocks, f"{stages[0]} stages of {list(self.blocks.shape[1:])} are no butterfly")
        if self.rescale is not None and self.rescale.info.numel != self.shape[0]:
            raise factor_error(self.rescale, f"{self.rescale.info.numel} factors for {self.shape[0]} output features")

    @property
    def kind(self) -> str:
        """``oft`` or ``boft``."""
        return "boft" if len(self.blocks.shape) == 4 else "oft"

    def prepare(self, strength: float, dtype: torch.dtype) -> PreparedRotation:
        """Read the blocks and make the rotations, in float64.

        Raises:
            SdkitError: a block holds NaN or infinity.
        """
        import torch

        rotations = _cayley(read_factor(self.blocks, torch.float64), self.limit * self.shape[0])
        identity = torch.eye(rotations.shape[-1], dtype=torch.float64)
        rotations = rotations.mul_(strength).add_(identity, alpha=1 - strength)
        factors = None
        if self.rescale is not None:
            factors = read_factor(self.rescale, torch.float64).reshape(-1, 1).sub_(1).mul_(strength).add_(1)
        return PreparedRotation(rotations.to(dtype), factors.to(dtype) if factors is not None else None)


def _cayley(blocks: torch.Tensor, limit: float) -> torch.Tensor:
    """R of every block, [..., b, b]."""
    import torch

    skew = blocks - blocks.transpose(-1, -2)
    norm = float(skew.norm()) + 1e-8
    if 0 < limit < norm:
        skew = skew * (limit / norm)
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype)
    rotations: torch.Tensor = torch.linalg.solve(identity - skew, identity + skew, left=False)
    return rotations


@dataclass(slots=True)
class PreparedRotation:
    """Rotations in memory. They mix rows, so they need to see all of them first, and keep them.

    Attributes:
        rotations: [n, b, b], or [m, n, b, b].
        rescale: [out, 1], or None.
    """

    rotations: torch.Tensor
    rescale: torch.Tensor | None
    _seen: list[torch.Tensor] = field(default_factory=list, init=False)
    _turned: torch.Tensor | None = field(default=None, init=False)

    @property
    def looks_first(self) -> bool:
        """Always."""
        return True

    def look(self, rows: torch.Tensor, start: int) -> None:
        """Take in base rows ``start : start + len(rows)``, [rows, columns]; all of them, in order."""
        self._seen.append(rows.clone())
        if sum(map(len, self._seen)) == self._rows:
            import torch

            self._turned = self._turn(torch.cat(self._seen))
            self._seen.clear()

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Change the base rows in `out`, [rows, columns], in place."""
        assert self._turned is not None, "a rotation needs a first look"
        out.copy_(self._turned[start : start + len(out)])

    @property
    def _rows(self) -> int:
        return self.rotations.shape[-3] * self.rotations.shape[-1]

    def _turn(self, weight: torch.Tensor) -> torch.Tensor:
        if self.rotations.ndim == 3:
            turned = (self.rotations.mT @ weight.view(*self.rotations.shape[:2], -1)).flatten(0, 1)
        else:
            turned = weight
            for stage, rotations in enumerate(self.rotations):
                turned = _butterfly(turned, rotations, distance=2**stage * rotations.shape[-1] // 2)
        return turned if self.rescale is None else turned * self.rescale

    def magnitude(self) -> float:
        """Infinite: it depends on the base."""
        return math.inf

    def transpose(self) -> PreparedRotation:
        """Not possible.

        Raises:
            SdkitError: always. No layer that OFT is trained for is stored transposed.
        """
        raise SdkitError("a rotation of a weight that is stored transposed cannot be applied", "use a diffusers folder")


def _butterfly(weight: torch.Tensor, rotations: torch.Tensor, distance: int) -> torch.Tensor:
    """One stage: features `distance` apart come into one block, are rotated, and go back to their places."""
    columns = weight.shape[1]
    paired = weight.reshape(-1, 2, distance, columns).transpose(1, 2).reshape(*rotations.shape[:2], columns)
    turned = (rotations @ paired).reshape(-1, distance, 2, columns)
    return turned.transpose(1, 2).reshape(weight.shape)
