"""How far models are apart: inner products of one model and of the others' differences from it, for every parameter.

They are summed in float64 while the files stream by, once. Distances, cosines, and whether a model lies between two
others all follow from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.merging.align import Source
from sdkit.merging.channels import Narrowed
from sdkit.merging.measures import Gram, gram
from sdkit.merging.method import Tiles
from sdkit.streaming.expression import Context, Expression, common_unit, spans, units
from sdkit.streaming.scratch import Scratch
from sdkit.weights import DTYPES

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Products:
    """Inner products of A and of each other model's difference from A, of one parameter or of many together.

    Attributes:
        values: [1 + others, 1 + others]; row 0 is A.
    """

    values: Gram

    @staticmethod
    def sum(parts: Sequence[Products]) -> Products:
        """Those of several parameters together."""
        size = len(parts[0].values)
        return Products(
            tuple(tuple(math.fsum(part.values[i][j] for part in parts) for j in range(size)) for i in range(size))
        )

    def norm(self, model: int) -> float:
        """‖model‖."""
        return math.sqrt(max(0.0, self._inner(model, model)))

    def distance(self, one: int, other: int) -> float:
        """‖one − other‖."""
        return math.sqrt(max(0.0, self.of_differences(one, other, one, other)))

    def cosine(self, one: int, other: int) -> float:
        """The cosine of the angle between two models; 1 where they are equal, 0 where one of them alone is zero."""
        length = self.norm(one) * self.norm(other)
        if not length:
            return 1.0 if self.norm(one) == self.norm(other) else 0.0
        return max(-1.0, min(1.0, self._inner(one, other) / length))

    def of_differences(self, to: int, start: int, other_to: int, other_start: int) -> float:
        """⟨to − start, other_to − other_start⟩. A's own entry is a difference of nothing."""

        def at(i: int, j: int) -> float:
            return self.values[i][j] if i and j else 0.0

        return at(to, other_to) - at(to, other_start) - at(start, other_to) + at(start, other_start)

    def _inner(self, one: int, other: int) -> float:
        values = self.values
        mixed = (values[0][one] if one else 0.0) + (values[0][other] if other else 0.0)
        return values[0][0] + mixed + (values[one][other] if one and other else 0.0)


def compare(
    sources: Sequence[Source], names: Sequence[str], *, threads: int, advance: Callable[[int], None]
) -> dict[str, Products]:
    """The products of each parameter.

    Args:
        sources: the models, A first; all of them have the parameters, in one shape but for further input channels.
        names: parameters, in diffusers' names.
        threads: workers; they never change the numbers.
        advance: called with the number of A's bytes just compared.
    """
    import torch

    def one(name: str) -> Products:
        torch.set_num_threads(1)  # kept per thread
        with torch.inference_mode():
            found = _products(_same_channels([source.parameter(name) for source in sources]))
        advance(stored_bytes(sources[0], name))
        return found

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads) as pool:
            return dict(zip(names, pool.map(one, names), strict=True))
    finally:
        torch.set_num_threads(before)


def stored_bytes(source: Source, name: str) -> int:
    """What a parameter takes in its file."""
    place = source.model.places[name]
    return source.weights.tensors[place.key].dtype.nbytes(math.prod(place.shape))


def comparable(sources: Sequence[Source], name: str) -> bool:
    """Whether all models have a parameter, in one shape but for further input channels (inpainting)."""
    if any(name not in source.model.places for source in sources):
        return False
    shapes = {source.model.places[name].shape for source in sources}
    return len(shapes) == 1 or (name == "unet.conv_in.weight" and len({(s[0], *s[2:]) for s in shapes}) == 1)


def _same_channels(tensors: list[Expression]) -> list[Expression]:
    channels = min((tensor.shape[1] for tensor in tensors if len(tensor.shape) > 1), default=0)
    return [
        Narrowed(tensor, channels) if len(tensor.shape) > 1 and tensor.shape[1] > channels else tensor
        for tensor in tensors
    ]


def _products(tensors: Sequence[Expression]) -> Products:
    count = math.prod(tensors[0].shape)
    if not count:
        size = range(len(tensors))
        return Products(tuple(tuple(0.0 for _ in size) for _ in size))
    return Products(gram(Tiles(lambda: _differences(tensors), count)))


def _differences(tensors: Sequence[Expression]) -> Iterator[tuple[torch.Tensor, ...]]:
    """A, and the others' differences from it, tile by tile."""
    import torch

    scratch = Scratch()
    wide = torch.float64 if any(_is_long(tensor) for tensor in tensors) else torch.float32
    tiles = [tensor.bind(Context(scratch, wide, DTYPES["F32"])) for tensor in tensors]
    mark = scratch.mark()
    for start, stop in spans(math.prod(tensors[0].shape), common_unit(units(tensors))):
        first, *others = (tile(start, stop) for tile in tiles)
        yield (first, *(other.sub_(first) for other in others))
        scratch.release(mark)


def _is_long(tensor: Expression) -> bool:
    dtype = getattr(tensor, "dtype", None)
    return dtype is not None and dtype.name == "F64"


@dataclass(frozen=True, slots=True)
class Between:
    """A model that lies on the line between two others, or near it.

    Attributes:
        model: which.
        start: at share 0.
        end: at share 1.
        share: how far from start to end.
        rest: the distance from the line, as a share of that from the nearer end.
    """

    model: int
    start: int
    end: int
    share: float
    rest: float


def between(products: Products, count: int, largest_rest: float = 0.5) -> list[Between]:
    """Which of the models lie between two others."""
    found = []
    for start in range(count):
        for end in range(start + 1, count):
            length = products.distance(start, end) ** 2
            for model in set(range(count)) - {start, end} if length else ():
                entry = _on_line(products, model, start, end, length)
                if entry is not None and entry.rest <= largest_rest:
                    found.append(entry)
    return sorted(found, key=lambda entry: entry.rest)


def _on_line(products: Products, model: int, start: int, end: int, length: float) -> Between | None:
    share = products.of_differences(model, start, end, start) / length
    near = min(products.distance(model, start), products.distance(model, end))
    if not 0.0 < share < 1.0 or not near:
        return None
    off = max(0.0, products.distance(model, start) ** 2 - share * share * length)
    return Between(model, start, end, share, math.sqrt(off) / near)


def common_parents(products: Products, count: int, largest_cosine: float = 0.25) -> Mapping[int, tuple[int, int]]:
    """Models from which two others have gone in unrelated directions: what both were trained from, most likely.

    In a space of millions of dimensions two trainings are nearly perpendicular to each other, and a right angle lies at
    one corner of a triangle only.
    """
    found = {}
    for model in range(count):
        for one in range(count):
            for other in range(one + 1, count):
                if model in (one, other):
                    continue
                lengths = products.distance(one, model) * products.distance(other, model)
                cosine = products.of_differences(one, model, other, model) / lengths if lengths else 1.0
                if abs(cosine) <= largest_cosine:
                    found[model] = (one, other)
    return found
