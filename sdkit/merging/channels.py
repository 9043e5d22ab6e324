"""First layers of different widths: inpainting, pix2pix, depth and control models add inputs behind the usual ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.streaming.expression import Context, Expression, TileFunction

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Narrowed:
    """The first input channels of a convolution. Needs all of it at once."""

    source: Expression
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's, with fewer channels."""
        return (self.source.shape[0], self.channels, *self.source.shape[2:])

    @property
    def unit(self) -> int:
        """Everything."""
        return max(1, math.prod(self.shape))

    def bind(self, context: Context) -> TileFunction:
        """Evaluate the source whole and cut it."""
        tile, shape = self.source.bind(context), self.source.shape

        def whole(start: int, stop: int) -> torch.Tensor:
            values = tile(0, math.prod(shape)).view(shape)
            out = context.scratch.take(stop - start, values.dtype).tensor
            out.view(self.shape).copy_(values[:, : self.channels])
            return out

        return whole


@dataclass(frozen=True, slots=True)
class Widened:
    """A wide convolution with its first input channels replaced. Needs all of it at once."""

    wide: Expression
    first: Expression

    @property
    def shape(self) -> tuple[int, ...]:
        """The wide one's."""
        return self.wide.shape

    @property
    def unit(self) -> int:
        """Everything."""
        return max(1, math.prod(self.shape))

    def bind(self, context: Context) -> TileFunction:
        """Evaluate both whole and put one into the other."""
        wide, first = self.wide.bind(context), self.first.bind(context)
        channels = self.first.shape[1]

        def whole(start: int, stop: int) -> torch.Tensor:
            values = wide(start, stop)
            values.view(self.shape)[:, :channels] = first(0, math.prod(self.first.shape)).view(self.first.shape)
            return values

        return whole


@dataclass(frozen=True, slots=True)
class WithZeroColumns:
    """A matrix with columns of zeros behind its own.

    Attributes:
        source: a matrix.
        columns: of the result.
    """

    source: Expression
    columns: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's, wider."""
        return (self.source.shape[0], self.columns)

    @property
    def unit(self) -> int:
        """A row, or as many as the source needs."""
        row = max(1, self.source.shape[1])
        return self.columns * (math.lcm(row, self.source.unit) // row)

    def bind(self, context: Context) -> TileFunction:
        """Put the source's rows into longer ones."""
        tile, row = self.source.bind(context), self.source.shape[1]

        def wide(start: int, stop: int) -> torch.Tensor:
            values = tile(start // self.columns * row, stop // self.columns * row).view(-1, row)
            out = context.scratch.take(stop - start, values.dtype).tensor.zero_()
            out.view(-1, self.columns)[:, :row] = values
            return out

        return wide
