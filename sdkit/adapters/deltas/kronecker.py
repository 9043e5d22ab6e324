"""LoKr: a weight change that is the Kronecker product of two small matrices (LyCORIS, arXiv:2309.14859).

Each side is stored whole or as a low-rank product; the second may be a convolution, also with a Tucker core. With the
kernel flattened into the columns the change is an ordinary Kronecker product, because the kernel varies fastest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.factors import check_float, check_scale, factor_error, read_factor
from sdkit.adapters.deltas.low_rank import fold_core
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the product: `whole`, or ``a @ b``, or ``a`` and ``b`` around a Tucker core.

    Attributes:
        whole: [rows, columns] or [rows, columns, k, k].
        a: [rows, rank]; with a core [rank, rows].
        b: [rank, columns] or [rank, columns, k, k]; with a core [rank, columns].
        core: [rank, rank, k, k].

    Raises:
        SdkitError: parts are missing or superfluous, or do not fit together.
    """

    whole: Read | None = None
    a: Read | None = None
    b: Read | None = None
    core: Read | None = None

    def __post_init__(self) -> None:
        check_float(self.whole, self.a, self.b, self.core)
        if self.whole is not None:
            if self.a or self.b or self.core or len(self.whole.shape) < 2:
                raise factor_error(self.whole, "a side of a LoKr is a whole matrix or a product, not both")
            return
        part = self.a or self.b or self.core
        if part is not None and (self.a is None or self.b is None or len(self.a.shape) != 2 or len(self.b.shape) < 2):
            raise factor_error(part, "a side of a LoKr needs two matrices")
        if self.a is None or self.b is None:
            raise ValueError("a side without parts")
        if self.core is not None and self.core.shape[:2] != (self.a.shape[0], self.b.shape[0]):
            raise factor_error(self.core, "the core does not fit between its two factors")
        if self.core is None and self.a.shape[1] != self.b.shape[0]:
            raise factor_error(self.a, f"factors {list(self.a.shape)} and {list(self.b.shape)} cannot be multiplied")

    @property
    def rank(self) -> int | None:
        """Rank of the product; None for a whole matrix."""
        return self.b.shape[0] if self.b is not None else None

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns) or (rows, columns, k, k)."""
        if self.whole is not None:
            return self.whole.shape
        assert self.a is not None and self.b is not None
        if self.core is not None:
            return (self.a.shape[1], self.b.shape[1], *self.core.shape[2:])
        return (self.a.shape[0], *self.b.shape[1:])

    @property
    def first(self) -> Read:
        """The part that names this side in messages."""
        part = self.whole or self.b
        assert part is not None
        return part

    def matrix(self, dtype: torch.dtype) -> torch.Tensor:
        """The side as [rows, columns·k·k]."""
        if self.whole is not None:
            return read_factor(self.whole, dtype).flatten(1)
        assert self.a is not None and self.b is not None
        a = read_factor(self.a, dtype)
        if self.core is not None:
            return a.t() @ fold_core(self.core, self.b, dtype)
        return a @ read_factor(self.b, dtype).flatten(1)


@dataclass(frozen=True, slots=True)
class Kronecker:
    """ΔW = scale · w1 ⊗ w2, still in its file.

    Attributes:
        w1: the outer side, a matrix.
        w2: the inner side, which carries the kernel.
        scale: alpha / rank when a side is low-rank; 1 when both are whole, whatever alpha says.

    Raises:
        SdkitError: `w1` is no matrix, or the scale is no number.
    """

    w1: Side
    w2: Side
    scale: float

    def __post_init__(self) -> None:
        check_scale(self.w2.first, self.scale)
        if math.prod(self.w1.shape[2:]) != 1:
            raise factor_error(self.w1.first, f"the outer side of a LoKr is a matrix, not {list(self.w1.shape)}")

    @property
    def kind(self) -> str:
        """``lokr``."""
        return "lokr"

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in), (out, in, k, k), or (out, in·k·k) where the file flattens the kernel."""
        (rows, columns), inner = self.w1.shape[:2], self.w2.shape
        return (rows * inner[0], columns * inner[1], *inner[2:])

    @property
    def rank(self) -> int | None:
        """Rank of the low-rank side; None when both are whole."""
        return self.w2.rank or self.w1.rank

    def prepare(self, strength: float, dtype: torch.dtype) -> PreparedKronecker:
        """Read both sides, and fold `strength` and the scale into the outer one.

        Raises:
            SdkitError: a factor holds NaN or infinity.
        """
        return PreparedKronecker(self.w1.matrix(dtype).mul_(self.scale * strength), self.w2.matrix(dtype))


@dataclass(frozen=True, slots=True)
class PreparedKronecker:
    """ΔW = w1 ⊗ w2, in memory; every scale is folded into `w1`."""

    w1: torch.Tensor
    w2: torch.Tensor

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Add rows ``start : start + out.shape[0]`` of the change to `out`, [rows, columns], in place."""
        import torch

        rows = torch.arange(start, start + out.shape[0])
        outer = self.w1[rows // self.w2.shape[0]]
        inner = self.w2[rows % self.w2.shape[0]]
        out.add_((outer[:, :, None] * inner[:, None, :]).flatten(1))

    def magnitude(self) -> float:
        """The largest absolute value: every element is one product."""
        return float(self.w1.abs().max() * self.w2.abs().max())

    def transpose(self) -> PreparedKronecker:
        """The change of the transposed weight."""
        return PreparedKronecker(self.w1.t().contiguous(), self.w2.t().contiguous())


def factorization(size: int, factor: int) -> tuple[int, int]:
    """`size` as a product of an outer and an inner side, the outer not the larger, as LyCORIS divides it.

    Args:
        factor: one of the two, where it divides `size`; else the outer side is at most that; −1 brings both as near
            together as can be.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    most = min(factor, math.isqrt(size)) if factor > 0 else math.isqrt(size)
    outer = next(divisor for divisor in range(most, 0, -1) if size % divisor == 0)
    return outer, size // outer
