"""Lazy tensors: what an output tensor is made of, as an expression the engine evaluates tile by tile.

An expression knows its shape from headers alone. `bind` makes it ready for one output tensor (small factors are read,
reduction passes run) and returns a function from a range of elements to their values, in row-major order. `unit` is the
smallest number of elements that can be evaluated on their own: 1 for elementwise work, a row for a matrix product,
everything for a transpose; the engine cuts tiles at its multiples.

Values are float32, or float64 where an expression decides that float32 would not be exact enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from sdkit.streaming.scratch import Scratch
from sdkit.weights import DType, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

# (start, stop) in elements → the values as a flat tensor that stays valid until the scratch memory is released.
TileFunction = Callable[[int, int], "torch.Tensor"]


@dataclass(frozen=True)
class Context:
    """What a binding needs to know: where to put values, in which type, and what they are for."""

    scratch: Scratch
    dtype: torch.dtype
    target: DType  # the type the result is stored as

    def with_dtype(self, dtype: torch.dtype) -> Context:
        """The same context, computing in another type."""
        return replace(self, dtype=dtype)


class Expression(Protocol):
    """A lazy tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        ...

    @property
    def unit(self) -> int:
        """The smallest number of elements that can be evaluated on their own."""
        ...

    def bind(self, context: Context) -> TileFunction:
        """Make ready to evaluate tiles."""
        ...


@dataclass(frozen=True, slots=True)
class Read:
    """A tensor of an opened file."""

    weights: Weights
    info: TensorInfo

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return self.info.shape

    @property
    def dtype(self) -> DType:
        """Its element type as stored."""
        return self.info.dtype

    @property
    def unit(self) -> int:
        """Any range of elements can be read on its own."""
        return 1

    def bind(self, context: Context) -> TileFunction:
        """Read through scratch memory, then widen to the computing type."""
        stored = torch_dtype(self.dtype)

        def tile(start: int, stop: int) -> torch.Tensor:
            raw = context.scratch.take(stop - start, stored)
            self.weights.read_into(self.info, raw.memory, start * self.dtype.itemsize)
            return widen(raw.tensor, context) if self.dtype.is_float else raw.tensor  # integers stay exact

        return tile

    def load(self) -> torch.Tensor:
        """The whole tensor, as stored (for factors and other small things)."""
        import torch

        data = bytearray(max(1, self.info.nbytes))
        self.weights.read_into(self.info, memoryview(data)[: self.info.nbytes])
        flat = torch.frombuffer(data, dtype=torch.uint8)[: self.info.nbytes]
        return flat.view(torch_dtype(self.dtype)).reshape(self.shape)


def reshaped(read: Read, shape: tuple[int, ...]) -> Read:
    """The same elements in another shape.

    Raises:
        ValueError: the tensor does not lie in row-major order, or has another number of elements.
    """
    info = read.info
    if info.strides is not None or math.prod(shape) != info.numel:
        raise ValueError(f"{info.name} {list(info.shape)} cannot be read as {list(shape)}")
    return Read(read.weights, replace(info, shape=shape))


def rows_of(read: Read, start: int, stop: int) -> Expression:
    """Rows ``start : stop`` of a stored tensor, whose bytes can be copied as they are where they lie together."""
    info = read.info
    if info.strides is not None:
        return Slice(read, start, stop)
    row = info.dtype.nbytes(math.prod(info.shape[1:]))
    rows = replace(info, shape=(stop - start, *info.shape[1:]), offset=info.offset + start * row)
    return Read(read.weights, rows)


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows ``start : stop`` (of the first dimension) of another tensor: one of several fused projections."""

    source: Expression
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's, with fewer rows."""
        return (self.stop - self.start, *self.source.shape[1:])

    @property
    def unit(self) -> int:
        """The source's, if the rows begin and end at its multiples; else everything."""
        return self.source.unit if self._aligned else max(1, math.prod(self.shape))

    @property
    def _aligned(self) -> bool:
        columns = math.prod(self.source.shape[1:])
        return self.start * columns % self.source.unit == 0 and math.prod(self.shape) % self.source.unit == 0

    def bind(self, context: Context) -> TileFunction:
        """Shift the range; cut from the whole source where its units cross the slice's ends."""
        shift = self.start * math.prod(self.source.shape[1:])
        tile = self.source.bind(context)
        if self._aligned:
            return lambda start, stop: tile(start + shift, stop + shift)
        whole = math.prod(self.source.shape)
        return lambda start, stop: tile(0, whole)[start + shift : stop + shift]


@dataclass(frozen=True, slots=True)
class Cat:
    """Tensors one below the other (along the first dimension): several projections fused into one."""

    sources: tuple[Expression, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The first source's, with all their rows."""
        return (sum(source.shape[0] for source in self.sources), *self.sources[0].shape[1:])

    @property
    def unit(self) -> int:
        """What suits every source, if all of them begin and end at its multiples; else everything."""
        unit = common_unit(units(self.sources))
        aligned = all(math.prod(source.shape) % unit == 0 for source in self.sources)
        return unit if aligned else max(1, math.prod(self.shape))

    def bind(self, context: Context) -> TileFunction:
        """Put together the parts of the range that fall into each source."""
        tiles = [source.bind(context) for source in self.sources]
        sizes = [math.prod(source.shape) for source in self.sources]

        def tile(start: int, stop: int) -> torch.Tensor:
            out = context.scratch.take(stop - start, context.dtype).tensor
            begin = 0
            for function, size in zip(tiles, sizes, strict=True):
                low, high = max(start, begin), min(stop, begin + size)
                if low < high:
                    out[low - start : high - start] = function(low - begin, high - begin)
                begin += size
            return out

        return tile


@dataclass(frozen=True, slots=True)
class Transpose:
    """The transpose of a matrix. Needs all of it at once."""

    source: Expression

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's, swapped."""
        rows, columns = self.source.shape
        return (columns, rows)

    @property
    def unit(self) -> int:
        """Everything."""
        return max(1, math.prod(self.shape))

    def bind(self, context: Context) -> TileFunction:
        """Evaluate the source whole and copy it across."""
        tile = self.source.bind(context)

        def whole(start: int, stop: int) -> torch.Tensor:
            values = tile(start, stop).view(self.source.shape)
            out = context.scratch.take(stop - start, values.dtype).tensor
            out.view(self.shape).copy_(values.T)
            return out

        return whole


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same elements under another shape (a 1×1 convolution as a linear layer)."""

    source: Expression
    shape: tuple[int, ...]

    @property
    def unit(self) -> int:
        """The source's."""
        return self.source.unit

    def bind(self, context: Context) -> TileFunction:
        """Row-major order does not change."""
        return self.source.bind(context)


@dataclass(frozen=True, slots=True)
class Map:
    """A function of tensors of one shape, tile by tile.

    Attributes:
        function: takes the inputs' values [-1, width] (flat when `width` is 1), and the values of `passes`; returns the
            result in the same shape. It may overwrite its inputs.
        inputs: expressions of equal shape.
        width: how many elements it needs together: 1, a row, or the whole tensor.
        passes: reductions evaluated before the first tile.
    """

    function: Callable[..., torch.Tensor]
    inputs: tuple[Expression, ...]
    width: int = 1
    passes: tuple[Reduce, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The first input's."""
        return self.inputs[0].shape

    @property
    def unit(self) -> int:
        """What the function needs, and the inputs."""
        return common_unit([self.width, *units(self.inputs)])

    def bind(self, context: Context) -> TileFunction:
        """Run the reductions, then map."""
        results = [reduction.evaluate(context) for reduction in self.passes]
        tiles = [source.bind(context) for source in self.inputs]

        def tile(start: int, stop: int) -> torch.Tensor:
            values = [_rows(function(start, stop), self.width) for function in tiles]
            return self.function(*values, *results).reshape(-1)

        return tile


@dataclass(frozen=True, slots=True)
class Reduce:
    """A pass over tensors of one shape before a map pass: a norm, a cosine, a quantile's histogram.

    Attributes:
        inputs: expressions of equal shape.
        start: makes the accumulator.
        fold: (accumulator, tile of each input…) → accumulator, which may not be a view of a tile: the next tile takes
            its memory.
        finish: accumulator → result.
        width: as in `Map`.
    """

    inputs: tuple[Expression, ...]
    start: Callable[[], object]
    fold: Callable[..., object]
    finish: Callable[[object], object]
    width: int = 1

    def evaluate(self, context: Context) -> object:
        """Fold all tiles, in order, so that the result never depends on threads."""
        tiles = [source.bind(context) for source in self.inputs]
        accumulator = self.start()
        mark = context.scratch.mark()
        for start, stop in spans(math.prod(self.inputs[0].shape), common_unit([self.width, *units(self.inputs)])):
            accumulator = self.fold(accumulator, *(_rows(function(start, stop), self.width) for function in tiles))
            context.scratch.release(mark)
        return self.finish(accumulator)


def _rows(values: torch.Tensor, width: int) -> torch.Tensor:
    return values.view(-1, width) if width > 1 else values


# 256 Ki elements: 1 MiB of float32, which stays in the second-level cache. Larger tiles measured 2x slower.
TILE_ELEMENTS = 256 * 1024


def spans(count: int, unit: int) -> list[tuple[int, int]]:
    """Cut `count` elements into tiles at multiples of `unit`, near `TILE_ELEMENTS` each."""
    step = max(1, TILE_ELEMENTS // unit) * unit
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def units(expressions: Sequence[Expression]) -> list[int]:
    """The unit of each expression."""
    return [expression.unit for expression in expressions]


def common_unit(values: Sequence[int]) -> int:
    """The smallest unit that suits all of `values`."""
    return math.lcm(*(max(1, value) for value in values))


def torch_dtype(dtype: DType) -> torch.dtype:
    """torch's name for a stored element type.

    Raises:
        SdkitError: torch has no such type.
    """
    import torch

    from sdkit.core.errors import SdkitError

    found = getattr(torch, dtype.torch_name, None) if dtype.itemsize else None  # nobody computes with packed elements
    if not isinstance(found, torch.dtype):
        raise SdkitError(f"this torch cannot compute with {dtype.name}", "upgrade torch, or convert the file first")
    return found


def widen(stored: torch.Tensor, context: Context) -> torch.Tensor:
    """Values in the computing type; the same tensor where they have it already."""
    import torch

    if stored.dtype == context.dtype:
        return stored
    if context.dtype == torch.float64 and stored.dtype not in (torch.float32, torch.float64):
        # Through float32, which holds every shorter float exactly and has the fast conversions: a third of the time.
        stored = context.scratch.take(stored.numel(), torch.float32).tensor.copy_(stored)
    return context.scratch.take(stored.numel(), context.dtype).tensor.copy_(stored)
