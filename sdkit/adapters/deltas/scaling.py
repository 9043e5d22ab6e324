"""IA³: every input or output feature of a weight gets a factor of its own (LyCORIS, after arXiv:2205.05638).

W' = W · (1 + w),   at strength k:   W · (1 + k · w)
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
class Scaling(WithoutRank):
    """The factors, less one, still in their file.

    Attributes:
        factors: w, as many as the weight has output or input features.
        by_input: whether they belong to the input features.
        shape: of the weight, which the factors do not tell.

    Raises:
        SdkitError: there are more or fewer of them, or they are not floating-point.
    """

    relative: ClassVar[bool] = True

    factors: Read
    by_input: bool
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        check_float(self.factors)
        wanted = self.shape[1 if self.by_input else 0]
        if self.factors.info.numel != wanted:
            side = "input" if self.by_input else "output"
            raise factor_error(self.factors, f"{self.factors.info.numel} factors for {wanted} {side} features")

    @property
    def kind(self) -> str:
        """``ia3``."""
        return "ia3"

    def prepare(self, strength: float, dtype: torch.dtype) -> PreparedScaling:
        """Read the factors.

        Raises:
            SdkitError: one is NaN or infinite.
        """
        factors = read_factor(self.factors, dtype).flatten().mul_(strength).add_(1.0)
        return PreparedScaling(factors, math.prod(self.shape[2:]) if self.by_input else 0)


@dataclass(frozen=True, slots=True)
class PreparedScaling:
    """A scaling in memory.

    Attributes:
        factors: 1 + k · w.
        kernel: elements of the kernel behind each input feature; 0 when the factors belong to the output features.
    """

    factors: torch.Tensor
    kernel: int

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Change the base rows in `out`, [rows, columns], in place."""
        if self.kernel:
            out.mul_(self.factors.repeat_interleave(self.kernel))
        else:
            out.mul_(self.factors[start : start + len(out)].unsqueeze(1))

    def magnitude(self) -> float:
        """Infinite: it depends on the base."""
        return math.inf

    def transpose(self) -> PreparedScaling:
        """Not possible.

        Raises:
            SdkitError: always. No layer that IA³ is trained for is stored transposed.
        """
        raise SdkitError("an IA³ of a weight that is stored transposed cannot be applied", "use a diffusers folder")
