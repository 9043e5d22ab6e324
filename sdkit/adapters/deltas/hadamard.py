"""LoHa: a weight change that is the elementwise product of two low-rank products (LyCORIS, arXiv:2309.14859)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.factors import check_float, check_scale, factor_error, read_factor
from sdkit.adapters.deltas.low_rank import fold_core, product_bound
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Hadamard:
    """ΔW = scale · (w1_a @ w1_b) ∘ (w2_a @ w2_b), still in its file.

    Attributes:
        w1_a: [out, rank]; with cores [rank, out].
        w1_b: [rank, in·k·k]; with cores [rank, in].
        w2_a: like `w1_a`.
        w2_b: like `w1_b`.
        scale: alpha / rank.
        t1: Tucker core [rank, rank, k, k] of the first product.
        t2: Tucker core of the second; both or none.

    Raises:
        SdkitError: the shapes do not fit together, the factors are not floating-point, or the scale is no number.
    """

    w1_a: Read
    w1_b: Read
    w2_a: Read
    w2_b: Read
    scale: float
    t1: Read | None = None
    t2: Read | None = None

    def __post_init__(self) -> None:
        check_float(self.w1_a, self.w1_b, self.w2_a, self.w2_b, self.t1, self.t2)
        check_scale(self.w1_b, self.scale)
        if (self.t1 is None) != (self.t2 is None):
            raise factor_error(self.t1 or self.t2 or self.w1_a, "a LoHa has either two Tucker cores or none")
        first = self._check_half(self.w1_a, self.w1_b, self.t1)
        second = self._check_half(self.w2_a, self.w2_b, self.t2)
        if first != second:
            raise factor_error(self.w2_a, f"the halves of a LoHa have the shapes {list(first)} and {list(second)}")

    def _check_half(self, a: Read, b: Read, core: Read | None) -> tuple[int, ...]:
        """Shape of one half's product."""
        if len(a.shape) != 2 or len(b.shape) != 2:
            raise factor_error(a, f"factors {list(a.shape)} and {list(b.shape)} are not both matrices")
        if core is not None:
            if core.shape[:2] != (a.shape[0], b.shape[0]):
                raise factor_error(core, f"a core {list(core.shape)} does not fit {list(a.shape)} and {list(b.shape)}")
            return (a.shape[1], b.shape[1], *core.shape[2:])
        if a.shape[1] != b.shape[0]:
            raise factor_error(a, f"factors {list(a.shape)} and {list(b.shape)} cannot be multiplied")
        return (a.shape[0], b.shape[1])

    @property
    def kind(self) -> str:
        """``loha``."""
        return "loha"

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) or (out, in, k, k); without cores a convolution's kernel stays flattened: (out, in·k·k)."""
        if self.t1 is not None:
            return (self.w1_a.shape[1], self.w1_b.shape[1], *self.t1.shape[2:])
        return (self.w1_a.shape[0], self.w1_b.shape[1])

    @property
    def rank(self) -> int:
        """Rank of each of the two products."""
        return self.w1_b.shape[0]

    def prepare(self, strength: float, dtype: torch.dtype) -> PreparedHadamard:
        """Read the factors, fold the cores in, and `strength` and the scale into the first.

        Raises:
            SdkitError: a factor holds NaN or infinity.
        """
        a1, b1 = self._half(self.w1_a, self.w1_b, self.t1, dtype)
        a2, b2 = self._half(self.w2_a, self.w2_b, self.t2, dtype)
        return PreparedHadamard(a1.mul_(self.scale * strength), b1, a2, b2)

    @staticmethod
    def _half(a: Read, b: Read, core: Read | None, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        if core is None:
            return read_factor(a, dtype), read_factor(b, dtype)
        return read_factor(a, dtype).t().contiguous(), fold_core(core, b, dtype)


def hadamard(a1: torch.Tensor, b1: torch.Tensor, a2: torch.Tensor, b2: torch.Tensor) -> torch.Tensor:
    """``(a1 @ b1) ∘ (a2 @ b2)``."""
    return (a1 @ b1) * (a2 @ b2)


@dataclass(frozen=True, slots=True)
class PreparedHadamard:
    """ΔW = (a1 @ b1) ∘ (a2 @ b2), in memory; every scale is folded into `a1`."""

    a1: torch.Tensor
    b1: torch.Tensor
    a2: torch.Tensor
    b2: torch.Tensor

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Add rows ``start : start + out.shape[0]`` of the change to `out`, [rows, columns], in place."""
        rows = slice(start, start + out.shape[0])
        out.add_(hadamard(self.a1[rows], self.b1, self.a2[rows], self.b2))

    def magnitude(self) -> float:
        """No element of the change is larger than this: the product of the bounds of both halves."""
        return product_bound(self.a1, self.b1) * product_bound(self.a2, self.b2)

    def transpose(self) -> PreparedHadamard:
        """The change of the transposed weight."""
        a1, b1, a2, b2 = (factor.t().contiguous() for factor in (self.a1, self.b1, self.a2, self.b2))
        return PreparedHadamard(b1, a1, b2, a2)
