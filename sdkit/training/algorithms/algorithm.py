"""What every kind of trained change can do.

A module of this package defines ``algorithm(options)``, which gives an `Algorithm`. It imports torch only inside its
functions, because the plan asks for shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sdkit.adapters.deltas.delta import Delta
from sdkit.core.plugins import Plugin, choose, find_plugins
from sdkit.streaming.expression import Read
from sdkit.training.option_sets import LoraOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class Site:
    """What a change goes beside.

    Attributes:
        module: hub name.
        weight: shape of its weight, in diffusers' convention.
    """

    module: str
    weight: Shape


class Draw:
    """Random numbers for the factors of one module.

    Args:
        uniform: shape, purpose → numbers uniform in 0 … 1.
        normal: shape, purpose → standard normal numbers.
    """

    def __init__(
        self, uniform: Callable[[Shape, str], torch.Tensor], normal: Callable[[Shape, str], torch.Tensor]
    ) -> None:
        self._uniform, self._normal = uniform, normal

    def normal(self, shape: Shape, purpose: str, deviation: float) -> torch.Tensor:
        """Normal numbers around zero."""
        return self._normal(shape, purpose).mul_(deviation)

    def as_linear(self, shape: Shape, purpose: str) -> torch.Tensor:
        """As torch begins a linear layer or convolution: uniform within ±1 / √(inputs)."""
        return self._uniform(shape, purpose).mul_(2).sub_(1).mul_(1 / math.sqrt(math.prod(shape[1:])))


class Algorithm(Protocol):
    """A kind of change: its factors, how they begin, how they act, and what they are on disk."""

    @property
    def raised(self) -> frozenset[str]:
        """The factors that LoRA+ gives a higher learning rate; empty for a kind it says nothing of."""
        ...

    def shapes(self, weight: Shape, rank: int) -> Shapes:
        """Factor → its shape, beside a weight of a shape in diffusers' convention."""
        ...

    def has_scale(self, shapes: Shapes) -> bool:
        """Whether factors of these shapes are multiplied with alpha / rank."""
        ...

    def start(self, base: nn.Module, shapes: Shapes, draw: Draw) -> Mapping[str, torch.Tensor]:
        """Factors with which nothing changes yet, float32.

        Args:
            base: the layer they go beside.
        """
        ...

    def layer(self, base: nn.Module, factors: Mapping[str, nn.Parameter], scale: float, site: Site) -> nn.Module:
        """The layer that takes the place of `base`."""
        ...

    def delta(self, factors: Mapping[str, Read], scale: float, site: Site) -> Delta:
        """The change as files hold it."""
        ...

    def factors(self, delta: Delta, weight: Shape) -> Mapping[str, torch.Tensor] | None:
        """The factors of an existing change of a weight of this shape; None when it is of another kind."""
        ...


def algorithms() -> dict[str, Plugin]:
    """The known algorithms by name."""
    return find_plugins(__package__ or "", "sdkit.training_algorithms", skip=("algorithm",))


def load_algorithm(options: LoraOptions) -> Algorithm:
    """The algorithm that ``algo=`` names, set up as the options say.

    Raises:
        UsageError: there is none of that name.
    """
    made: Algorithm = choose(options.algo, algorithms(), "algorithm").load().algorithm(options)
    return made
