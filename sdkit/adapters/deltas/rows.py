"""Some rows of a weight change: where one layer in a file is several in the model, one below the other.

A low-rank change of stacked layers is one for each of them, with its rows of ``up`` and all of ``down``; the same goes
for the first factors of a LoHa, the lengths of a DoRA's output features, and a whole difference. Of other kinds the
whole is kept, and its rows are added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.delta import Delta, PreparedDelta, is_relative
from sdkit.adapters.deltas.dora import Dora
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.hadamard import Hadamard
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import Read
from sdkit.weights.reader import Container

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows ``start : stop`` of another change, which does not depend on the base.

    Raises:
        SdkitError: it does depend on it, so that its rows alone may not tell what becomes of them.
    """

    change: Delta
    start: int
    stop: int

    def __post_init__(self) -> None:
        if is_relative(self.change):
            raise SdkitError(
                f"a {self.change.kind} of several stacked layers cannot be divided among them",
                "bake it with the program that made it",
            )

    @property
    def kind(self) -> str:
        """The whole's."""
        return self.change.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole's, with fewer rows."""
        return (self.stop - self.start, *self.change.shape[1:])

    @property
    def rank(self) -> int | None:
        """The whole's."""
        return self.change.rank

    @property
    def scale(self) -> float:
        """The whole's."""
        return self.change.scale

    def prepare(self, strength: float, dtype: torch.dtype) -> PreparedRows:
        """Make the whole ready.

        Raises:
            SdkitError: a factor holds NaN or infinity.
        """
        return PreparedRows(self.change.prepare(strength, dtype), self.start)


@dataclass(frozen=True, slots=True)
class PreparedRows:
    """A change in memory of which the rows from `start` on are meant."""

    change: PreparedDelta
    start: int

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Add rows ``start : start + out.shape[0]`` of the part to `out`, [rows, columns], in place."""
        self.change.add_rows(out, self.start + start)

    def magnitude(self) -> float:
        """The whole's bound."""
        return self.change.magnitude()

    def transpose(self) -> PreparedDelta:
        """Never asked for: what is stacked lies nowhere transposed."""
        raise AssertionError("stacked layers are never stored transposed")


def rows_of_change(delta: Delta, start: int, stop: int) -> Delta:
    """The change of rows ``start : stop`` of the weight, of the same kind where that is possible.

    Raises:
        SdkitError: the change depends on the base in a way that its rows alone cannot tell.
    """
    if isinstance(delta, Dora) and not delta.by_input and (lengths := _rows(delta.lengths, start, stop)):
        return Dora(rows_of_change(delta.change, start, stop), lengths, by_input=False, drawn=delta.drawn)
    if isinstance(delta, LowRank) and (up := _rows(delta.up, start, stop)):
        return replace(delta, up=up)
    if isinstance(delta, Full) and (diff := _rows(delta.diff, start, stop)):
        return replace(delta, diff=diff)
    if isinstance(delta, Hadamard) and delta.t1 is None:
        w1_a, w2_a = (_rows(factor, start, stop) for factor in (delta.w1_a, delta.w2_a))
        if w1_a and w2_a:
            return replace(delta, w1_a=w1_a, w2_a=w2_a)
    return Rows(delta, start, stop)


def _rows(read: Read, start: int, stop: int) -> Read | None:
    """Rows of a stored tensor; None where they do not lie together in a file."""
    info = read.info
    if info.strides is not None or read.weights.container is Container.MEMORY or not info.shape:
        return None
    row = info.nbytes // info.shape[0]
    part = replace(info, shape=(stop - start, *info.shape[1:]), offset=info.offset + start * row)
    return Read(read.weights, part)
