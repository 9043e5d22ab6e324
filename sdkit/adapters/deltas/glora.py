"""GLoRA: a low-rank change, and a low-rank mixing of what the weight reads (LyCORIS, after arXiv:2306.07967).

    ΔW = scale · (b1 @ b2 + W @ a1 @ a2)

W is the base's weight; of a convolution ``a1 @ a2`` mixes the input channels, at every place of the kernel alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sdkit.adapters.deltas.delta import PreparedDelta
from sdkit.adapters.deltas.factors import check_float, check_scale, factor_error, read_factor
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Glora:
    """Both halves, still in their file.

    Attributes:
        a1: [in, rank], or [in, rank, 1, 1] for a convolution.
        a2: [rank, in], or [rank, in, 1, 1].
        change: the half without the weight, b1 @ b2, with the same scale.

    Raises:
        SdkitError: the halves do not fit together, or are not floating-point.
    """

    relative: ClassVar[bool] = True

    a1: Read
    a2: Read
    change: LowRank

    def __post_init__(self) -> None:
        check_float(self.a1, self.a2)
        check_scale(self.a1, self.scale)
        inner = self.change.shape[1]
        if any(len(read.shape) < 2 or math.prod(read.shape[2:]) != 1 for read in (self.a1, self.a2)):
            raise factor_error(self.a1, f"{list(self.a1.shape)} and {list(self.a2.shape)} are no pair of factors")
        if (self.a1.shape[0], self.a2.shape[1]) != (inner, inner) or self.a1.shape[1] != self.a2.shape[0]:
            raise factor_error(
                self.a1, f"{list(self.a1.shape)} and {list(self.a2.shape)} do not mix {inner} input features"
            )

    @property
    def kind(self) -> str:
        """``glora``."""
        return "glora"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.change.shape

    @property
    def rank(self) -> int:
        """Rank of each half."""
        return self.change.rank

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.change.scale

    def prepare(self, strength: float, dtype: torch.dtype) -> PreparedGlora:
        """Read the factors, and fold `strength` and the scale in.

        Raises:
            SdkitError: a factor holds NaN or infinity.
        """
        a1 = read_factor(self.a1, dtype).flatten(1).mul_(self.scale * strength)
        mixing = (a1, read_factor(self.a2, dtype).flatten(1))
        return PreparedGlora(self.change.prepare(strength, dtype), *mixing, math.prod(self.shape[2:]))


@dataclass(frozen=True, slots=True)
class PreparedGlora:
    """A GLoRA in memory.

    Attributes:
        change: b1 @ b2.
        a1: [in, rank], with every scale in it.
        a2: [rank, in].
        kernel: elements of the kernel behind each input feature.
    """

    change: PreparedDelta
    a1: torch.Tensor
    a2: torch.Tensor
    kernel: int

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Change the base rows in `out`, [rows, columns], in place."""
        import torch

        base = out.view(len(out), len(self.a1), self.kernel)
        mixed = torch.einsum("rj,ork->ojk", self.a2, torch.einsum("ir,oik->ork", self.a1, base))
        self.change.add_rows(out, start)
        out.add_(mixed.flatten(1))

    def magnitude(self) -> float:
        """Infinite: it depends on the base."""
        return math.inf

    def transpose(self) -> PreparedGlora:
        """Not possible.

        Raises:
            SdkitError: always. No layer that GLoRA is trained for is stored transposed.
        """
        raise SdkitError("a GLoRA of a weight that is stored transposed cannot be applied", "use a diffusers folder")
