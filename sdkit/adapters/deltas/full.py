"""A weight change stored whole: LyCORIS' ``diff``, ``diff_b``, ``w_norm`` and ``b_norm``, PEFT's LoRA bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.factors import check_float, check_scale, read_factor
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Full:
    """ΔW = scale · diff, still in its file.

    Attributes:
        diff: the difference, of the weight's own shape (a bias is one-dimensional).
        scale: a factor the format puts before it; 1 in LyCORIS.

    Raises:
        SdkitError: the difference is not floating-point, or the scale is no number.
    """

    diff: Read
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_float(self.diff)
        check_scale(self.diff, self.scale)

    @property
    def kind(self) -> str:
        """``full``."""
        return "full"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the difference."""
        return self.diff.shape

    @property
    def rank(self) -> int | None:
        """None: a full difference has no rank of its own."""
        return None

    def prepare(self, strength: float, dtype: torch.dtype) -> PreparedFull:
        """Read the difference and multiply it with `strength` and the scale.

        Raises:
            SdkitError: it holds NaN or infinity.
        """
        diff = read_factor(self.diff, dtype)
        return PreparedFull(diff.reshape(diff.shape[0] if diff.ndim else 1, -1).mul_(self.scale * strength))


@dataclass(frozen=True, slots=True)
class PreparedFull:
    """A difference in memory, [rows, columns]; a bias has one column."""

    diff: torch.Tensor

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Add rows ``start : start + out.shape[0]`` of the change to `out`, [rows, columns], in place."""
        out.add_(self.diff[start : start + out.shape[0]])

    def magnitude(self) -> float:
        """The largest absolute value."""
        return float(self.diff.abs().max())

    def transpose(self) -> PreparedFull:
        """The change of the transposed weight."""
        return PreparedFull(self.diff.t().contiguous())
