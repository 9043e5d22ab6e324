"""The models of a blend as wholes: for methods that must see more than one tensor at a time.

A method looks at a neighbour of its tensor (`Whole.read`), or at everything once, before the first tensor is merged (a
*survey*). What a survey finds must be small: it stays in memory until the last tensor is written.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sdkit.families.family import Model
from sdkit.streaming.expression import Context, Expression, TileFunction, spans
from sdkit.streaming.scratch import Scratch
from sdkit.weights import DTYPES

if TYPE_CHECKING:
    import torch

Configs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """Every parameter that is blended, of every model.

    Attributes:
        tensors: parameter in diffusers' name → that tensor of each model, in diffusers' shape.
        model: what A is.
        configs: the configurations A comes with, by component; empty where it has none.
    """

    tensors: Mapping[str, tuple[Expression, ...]]
    model: Model = field(default_factory=lambda: Model("unknown"))
    configs: Configs = field(default_factory=dict)

    @staticmethod
    def of(models: Sequence[Mapping[str, torch.Tensor]]) -> Whole:
        """Models that lie in memory."""
        return Whole({name: tuple(Held(model[name]) for model in models) for name in models[0]})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that A's parameters have, by name."""
        return {name: tensors[0].shape for name, tensors in self.tensors.items()}

    def read(self, name: str, model: int = 0) -> torch.Tensor:
        """A parameter of one of the models, whole, in float32."""
        source = self.tensors[name][model]
        tile = _bind(source, Scratch())
        return tile(0, math.prod(source.shape)).view(source.shape)  # keeps its scratch memory alive, and to itself

    def rows(self, name: str) -> Iterator[tuple[torch.Tensor, ...]]:
        """A parameter of all models, some whole rows at a time: [rows, columns] each; a vector is one row."""
        shape = self.tensors[name][0].shape
        width = max(1, math.prod(shape[1:] if len(shape) > 1 else shape))
        scratch = Scratch()
        tiles = [_bind(source, scratch) for source in self.tensors[name]]
        unit = math.lcm(width, *(source.unit for source in self.tensors[name]))
        mark = scratch.mark()
        for start, stop in spans(math.prod(shape), unit):
            yield tuple(tile(start, stop).view(-1, width) for tile in tiles)
            scratch.release(mark)


class Survey:
    """What a method finds out about whole models: looked for once, when the first tensor needs it.

    Args:
        find: looks for it.
    """

    def __init__(self, find: Callable[[], Any]) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._found: list[Any] = []
        self._error: Exception | None = None

    def result(self) -> Any:
        """What was found; other threads wait for the one that looks."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if not self._found:
                try:
                    self._found.append(self._find())
                except Exception as error:
                    self._error = error
                    raise
            return self._found[0]


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A tensor that lies in memory."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return tuple(self.tensor.shape)

    @property
    def unit(self) -> int:
        """Any range of elements can be had on its own."""
        return 1

    def bind(self, context: Context) -> TileFunction:
        """Copies of its elements, which may be overwritten."""
        flat = self.tensor.reshape(-1)
        return lambda start, stop: flat[start:stop].to(context.dtype, copy=True)


def _bind(source: Expression, scratch: Scratch) -> TileFunction:
    import torch

    return source.bind(Context(scratch, torch.float32, DTYPES["F32"]))
