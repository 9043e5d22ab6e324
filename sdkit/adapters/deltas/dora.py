"""DoRA: the weight's direction takes a change, its length along one axis is learnt (arXiv:2402.09353).

    W' = m · (W + ΔW) / ‖W + ΔW‖,   at strength k:   W + k · (W' − W)

ΔW is any other change at its full strength. The norm runs over each output feature (``m`` of shape [out, 1, …]; LyCORIS
today, PEFT) or over each input feature (``m`` of shape [1, in, …]; LyCORIS before 3.0, OneTrainer). Rows can be normed
where they stand; the norms of columns need a look at all rows first.

Programs that draw pictures differ where ``m`` is [out, 1, …]: ComfyUI and Forge divide by the norms of the rows of W
alone, A1111 by the norms of the input features of W + ΔW. A file that was judged by such pictures may be wanted as it
looked there: see `Drawn`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from sdkit.adapters.deltas.delta import Delta, PreparedDelta
from sdkit.adapters.deltas.factors import check_float, factor_error, read_factor
from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch

# Whose arithmetic is followed: that of the paper, or that of a program (``comfyui`` is Forge's, too).
Drawn = Literal["exact", "comfyui", "a1111"]
TINY = 1e-30  # in place of the norm of a feature of zeros, which stays one


@dataclass(frozen=True, slots=True)
class Dora:
    """A change of direction and length, still in its file.

    Attributes:
        change: ΔW.
        lengths: m, with as many elements as the weight has output or input features.
        by_input: whether the lengths belong to the input features.
        drawn: what the lengths of output features are divided by.

    Raises:
        SdkitError: the lengths do not fit the weight, or are not floating-point.
    """

    relative: ClassVar[bool] = True

    change: Delta
    lengths: Read
    by_input: bool
    drawn: Drawn = "exact"

    def __post_init__(self) -> None:
        check_float(self.lengths)
        wanted = self.change.shape[1 if self.by_input else 0]
        if self.lengths.info.numel != wanted:
            side = "input" if self.by_input else "output"
            raise factor_error(
                self.lengths, f"shape {list(self.lengths.shape)} is no length for {wanted} {side} features"
            )

    @property
    def kind(self) -> str:
        """``dora``."""
        return "dora"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.change.shape

    @property
    def rank(self) -> int | None:
        """Rank of ΔW."""
        return self.change.rank

    @property
    def scale(self) -> float:
        """Scale of ΔW."""
        return self.change.scale

    def prepare(self, strength: float, dtype: torch.dtype) -> PreparedDora:
        """Read the factors and the lengths.

        Raises:
            SdkitError: a factor holds NaN or infinity.
        """
        lengths = read_factor(self.lengths, dtype).flatten()
        kernel = math.prod(self.shape[2:]) if self.by_input or self.drawn == "a1111" else 0
        of_base = self.drawn == "comfyui"
        return PreparedDora(
            self.change.prepare(1.0, dtype), lengths, kernel, strength, by_input=self.by_input, of_base=of_base
        )


def row_norms(rows: torch.Tensor) -> torch.Tensor:
    """The norm of each output feature, [rows, columns], as a divisor."""
    import torch

    norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms.clamp_min_(TINY)


@dataclass(slots=True)
class PreparedDora:
    """A DoRA in memory. It changes the weight it finds, so it must come before anything that is added.

    Attributes:
        change: ΔW.
        lengths: [out], or [in].
        kernel: elements of the kernel behind each input feature; 0 when the norms are those of the output features.
        strength: k.
        by_input: whether the lengths belong to the input features.
        of_base: whether the norms of output features are those of W, not of W + ΔW.
    """

    change: PreparedDelta
    lengths: torch.Tensor
    kernel: int
    strength: float
    by_input: bool = False
    of_base: bool = False
    _squares: torch.Tensor | None = field(default=None, init=False)

    @property
    def looks_first(self) -> bool:
        """Whether `look` must see all rows before the first is changed."""
        return self.kernel > 0

    def look(self, rows: torch.Tensor, start: int) -> None:
        """Take in base rows ``start : start + len(rows)``, [rows, columns]; all of them, in order."""
        import torch

        squares = self._moved(rows, start).square_().sum(0, dtype=torch.float64)
        squares = squares.view(-1, self.kernel).sum(1)
        self._squares = squares if self._squares is None else self._squares.add_(squares)

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Change the base rows in `out`, [rows, columns], in place."""
        moved = self._moved(out, start)
        factors = self._factors(out if self.of_base else moved, start)
        out.lerp_(moved.mul_(factors), self.strength)

    def _moved(self, rows: torch.Tensor, start: int) -> torch.Tensor:
        moved = rows.clone()
        self.change.add_rows(moved, start)
        return moved

    def _factors(self, rows: torch.Tensor, start: int) -> torch.Tensor:
        """What each element is multiplied with: length / norm, by row, by column, or one by row and one by column."""
        import torch

        lengths = self.lengths if self.by_input else self.lengths[start : start + len(rows)].unsqueeze(1)
        if self.kernel == 0:
            return torch.div(lengths, row_norms(rows).unsqueeze(1))
        assert self._squares is not None, "the norms of columns need a first look"
        norms = self._squares.sqrt().clamp_min_(TINY).to(self.lengths.dtype)
        if self.by_input:
            return torch.div(lengths, norms).repeat_interleave(self.kernel)
        return torch.div(lengths, norms.repeat_interleave(self.kernel))

    def magnitude(self) -> float:
        """Infinite: it depends on the base."""
        return math.inf

    def transpose(self) -> PreparedDora:
        """Not possible: the axis of the lengths would turn around.

        Raises:
            SdkitError: always. No layer that DoRA is trained for is stored transposed.
        """
        raise SdkitError(
            "a DoRA of a weight that is stored transposed cannot be applied", "merge into a diffusers folder"
        )
