"""Finding each tensor of one checkpoint in another, whatever naming and container that has."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sdkit.families.assemble import BUFFER_SUFFIX, EMA_PREFIX
from sdkit.families.family import Model, Place
from sdkit.streaming import Cat, Reshape, Slice, Transpose
from sdkit.streaming.expression import Expression
from sdkit.streaming.lazy import stored
from sdkit.streaming.quantised import Times, quantisation_scale
from sdkit.weights import Weights

Hubs = tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """One opened checkpoint that takes part in a blend.

    Attributes:
        weights: its tensors.
        model: what they mean.
        role: what people call it: ``A``, ``B``, …, ``base``.
        use_ema: whether the averaged copy of a weight stands in for it.
        hubs: stored tensor → the parameters in it, in the order of their rows.
    """

    weights: Weights
    model: Model
    role: str
    use_ema: bool = False
    hubs: Mapping[str, Hubs] = field(init=False)

    def __post_init__(self) -> None:
        found: dict[str, list[str]] = defaultdict(list)
        for hub, place in self.model.places.items():
            found[place.key].append(hub)
        places = self.model.places
        ordered = {key: tuple(sorted(hubs, key=lambda hub: places[hub].rows or (0, 0))) for key, hubs in found.items()}
        object.__setattr__(self, "hubs", ordered)

    def read(self, key: str) -> Expression:
        """A stored tensor, in real units, its averaged copy where that was asked for."""
        average = ema_key(key)
        if self.use_ema and average in self.weights.tensors:
            key = average
        read = stored(self.weights, self.weights.tensors[key])
        scale = quantisation_scale(self.weights, key)
        return read if scale == 1.0 else Times(read, scale)

    def parameter(self, hub: str) -> Expression:
        """A parameter in diffusers' shape."""
        place = self.model.places[hub]
        tensor = self.read(place.key)
        if place.rows is not None:
            tensor = Slice(tensor, *place.rows)
        if place.swapped:
            tensor = swapped(tensor)
        if place.transposed:
            tensor = Transpose(tensor)
        return like_shape(tensor, place.shape)

    def find(self, key: str, like: Source) -> Expression | None:
        """The tensor that `like` stores as `key`, in the form `like` stores it; None where this checkpoint has none.

        Its shape is the same but for a really different model.
        """
        hubs = like.hubs[key]
        if any(hub not in self.model.places for hub in hubs):
            return None
        mine = [self.model.places[hub] for hub in hubs]
        theirs = [like.model.places[hub] for hub in hubs]
        if len({place.key for place in mine}) == 1 and self._same_form(mine[0].key, hubs, mine, theirs):
            return like_shape(self.read(mine[0].key), like.weights.tensors[key].shape)
        parts = [as_stored(self.parameter(hub), place) for hub, place in zip(hubs, theirs, strict=True)]
        return like_shape(parts[0] if len(parts) == 1 else Cat(tuple(parts)), like.weights.tensors[key].shape)

    def _same_form(self, key: str, hubs: Hubs, mine: Sequence[Place], theirs: Sequence[Place]) -> bool:
        return self.hubs[key] == hubs and all(
            (one.rows, one.transposed, one.swapped) == (other.rows, other.transposed, other.swapped)
            for one, other in zip(mine, theirs, strict=True)
        )


def as_stored(parameter: Expression, place: Place) -> Expression:
    """A parameter the way it lies in a file."""
    if place.swapped:
        return swapped(parameter)
    return Transpose(parameter) if place.transposed else parameter


def swapped(tensor: Expression) -> Expression:
    """The second half of the rows before the first."""
    rows = tensor.shape[0]
    return Cat((Slice(tensor, rows // 2, rows), Slice(tensor, 0, rows // 2)))


def like_shape(tensor: Expression, shape: tuple[int, ...]) -> Expression:
    """The tensor in a shape that differs by ones only; unchanged where the shapes really differ."""
    if tensor.shape == shape or math.prod(tensor.shape) != math.prod(shape):
        return tensor
    return Reshape(tensor, shape)


def ema_key(key: str) -> str:
    """The name of a weight's exponential moving average: without dots, as buffers of a torch module must be."""
    return EMA_PREFIX + key.removeprefix("model.").replace(".", "")


def structural(weights: Weights, model: Model) -> Model:
    """A model no family explains, each floating-point tensor standing for itself."""
    places = {
        name: Place(name, info.shape)
        for name, info in weights.tensors.items()
        if info.dtype.is_float and info.numel and name not in {*model.markers, *model.ema} and not is_buffer(name)
    }
    return replace(model, places=places, unclaimed=tuple(n for n in model.unclaimed if n not in places))


def is_buffer(name: str) -> bool:
    """Whether a tensor only counts positions."""
    return name.endswith(BUFFER_SUFFIX)
