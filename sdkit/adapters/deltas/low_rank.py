"""LoRA: a weight change that is the product of two thin matrices, for linear layers and convolutions.

ΔW = scale · up @ down, with ``up`` [out, rank] and ``down`` [rank, in·k·k] (a convolution's kernel flattened into the
columns). A Tucker core ``mid`` [rank, rank, k, k] between them is folded into ``down``. LoRA: arXiv:2106.09685;
convolutions (LoCon) and the Tucker form: LyCORIS, arXiv:2309.14859.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.factors import check_float, check_scale, factor_error, read_factor
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class LowRank:
    """ΔW = scale · up @ down, still in its file.

    Attributes:
        up: [out, rank], or [out, rank, 1, 1] for a convolution.
        down: [rank, in], or [rank, in, k, k] for a convolution; [rank, in, 1, 1] beside a `mid`.
        scale: alpha / rank, or alpha / √rank for rank-stabilised LoRA.
        mid: Tucker core [rank of up, rank of down, k, k].

    Raises:
        SdkitError: the shapes do not fit together, the factors are not floating-point, or the scale is no number.
    """

    up: Read
    down: Read
    scale: float
    mid: Read | None = None

    def __post_init__(self) -> None:
        check_float(self.up, self.down, self.mid)
        check_scale(self.down, self.scale)
        up, down = self.up.shape, self.down.shape
        if len(up) < 2 or len(down) < 2 or any(size != 1 for size in up[2:]):
            raise factor_error(self.up, f"up {list(up)} and down {list(down)} are no pair of low-rank factors")
        if self.mid is not None:
            self._check_core(self.mid)
        elif up[1] != down[0]:
            raise factor_error(self.up, f"up has rank {up[1]}, down has rank {down[0]}")

    def _check_core(self, mid: Read) -> None:
        ranks = (self.up.shape[1], self.down.shape[0])
        if mid.shape[:2] != ranks or any(size != 1 for size in self.down.shape[2:]):
            raise factor_error(mid, f"a core {list(mid.shape)} does not fit between ranks {ranks[0]} and {ranks[1]}")

    @property
    def kind(self) -> str:
        """``lora``, ``locon`` (a convolution with a kernel) or ``tucker``."""
        if self.mid is not None:
            return "tucker"
        return "locon" if any(size != 1 for size in self.down.shape[2:]) else "lora"

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) or (out, in, k, k)."""
        kernel = self.mid.shape[2:] if self.mid is not None else self.down.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    @property
    def rank(self) -> int:
        """Number of columns of `up`."""
        return self.up.shape[1]

    def prepare(self, strength: float, dtype: torch.dtype) -> PreparedLowRank:
        """Read the factors, fold the core into `down`, and `strength` and the scale into `up`.

        Raises:
            SdkitError: a factor holds NaN or infinity.
        """
        up = read_factor(self.up, dtype).flatten(1)
        down = fold_core(self.mid, self.down, dtype) if self.mid is not None else read_factor(self.down, dtype)
        return PreparedLowRank(up.mul_(self.scale * strength), down.flatten(1))


def fold_core(mid: Read, down: Read, dtype: torch.dtype) -> torch.Tensor:
    """``down`` [s, in] behind a Tucker core [r, s, k, k] as one factor [r, in·k·k], contracted in float64."""
    import torch

    core = read_factor(mid, torch.float64)
    columns = read_factor(down, torch.float64).flatten(1)
    return torch.einsum("rs...,si->ri...", core, columns).flatten(1).to(dtype)


@dataclass(frozen=True, slots=True)
class PreparedLowRank:
    """ΔW = up @ down, in memory: `up` [out, rank] with every scale folded in, `down` [rank, columns]."""

    up: torch.Tensor
    down: torch.Tensor

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Add rows ``start : start + out.shape[0]`` of the change to `out`, [rows, columns], in place."""
        out.addmm_(self.up[start : start + out.shape[0]], self.down)

    def transpose(self) -> PreparedLowRank:
        """The change of the transposed weight."""
        return PreparedLowRank(self.down.t().contiguous(), self.up.t().contiguous())

    def magnitude(self) -> float:
        """No element of the change is larger than this (Cauchy–Schwarz, over rows of `up` and columns of `down`).

        With rank r, the rounding error of the product in a type of unit round-off u is at most about r·u times it.
        """
        return product_bound(self.up, self.down)


def product_bound(left: torch.Tensor, right: torch.Tensor) -> float:
    """No element of ``left @ right`` is larger than this (Cauchy–Schwarz)."""
    return float(left.norm(dim=1).max() * right.norm(dim=0).max())


def stack(deltas: Sequence[PreparedLowRank]) -> PreparedLowRank:
    """Several low-rank changes of one weight as one: a single product, hence a single rounding."""
    import torch

    if len(deltas) == 1:
        return deltas[0]
    return PreparedLowRank(torch.cat([delta.up for delta in deltas], 1), torch.cat([delta.down for delta in deltas], 0))
