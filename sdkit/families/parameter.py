"""One parameter in both namings, and the shapes of a checkpoint as the rules look at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

Shape = tuple[int, ...]
# Tables of vectors, which are looked up and not multiplied with: a text encoder's tokens and positions, T5's too.
_TABLES = ("_embedding.weight", "shared.weight", "relative_attention_bias.weight")


class Parameter(NamedTuple):
    """A parameter of a component, relative to it.

    Attributes:
        hub: its name in diffusers, without the component (``mid_block.attentions.0.proj_in.weight``).
        ldm: the tensor that holds it in a single file, without the component's prefix.
        shape: in diffusers' convention.
        rows: the rows of that tensor when several parameters share it.
        transposed: the single file stores the transpose.
        height: rows of the whole tensor, when several parameters share it.
        swapped: the single file stores the second half of the rows first.
    """

    hub: str
    ldm: str
    shape: Shape
    rows: tuple[int, int] | None = None
    transposed: bool = False
    height: int = 0
    swapped: bool = False


class OddLayout(ValueError):
    """The names or shapes contradict the layout they begin with; the message is a reason for people to read."""


@dataclass(frozen=True, slots=True)
class Names:
    """The tensors of a checkpoint whose names begin with `prefix`, asked for without it."""

    shapes: Mapping[str, Shape]
    prefix: str = ""

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.shapes

    def dim(self, name: str, axis: int) -> int:
        """One dimension of a tensor that the layout cannot do without.

        Raises:
            OddLayout: there is no such tensor, or it has too few dimensions.
        """
        shape = self.shapes.get(self.prefix + name)
        if shape is None:
            raise OddLayout(f"{self.prefix}{name} is missing")
        if len(shape) <= axis:
            raise OddLayout(f"{self.prefix}{name} has the shape {list(shape)}")
        return shape[axis]

    def count(self, pattern: str) -> int:
        """How many consecutive numbers from 0, put into `pattern` (``layers.{}.weight``), name a tensor."""
        number = 0
        while pattern.format(number) in self:
            number += 1
        return number


def affine(hub: str, ldm: str, shape: Shape, bias: bool = True, *, swapped: bool = False) -> list[Parameter]:
    """The weight, and the bias, of a linear layer, a convolution or a normalisation."""
    weight = Parameter(f"{hub}.weight", f"{ldm}.weight", shape, swapped=swapped)
    return [weight, Parameter(f"{hub}.bias", f"{ldm}.bias", shape[:1], swapped=swapped)] if bias else [weight]


def stacked(
    hubs: Sequence[str], ldm: str, heights: Sequence[int], columns: int, *, bias: bool = True
) -> list[Parameter]:
    """Weights, and biases, of linear layers that a single file keeps in one, one below the other.

    Args:
        hubs: the layers in diffusers, from the top.
        heights: rows of each.
        columns: of all.
    """
    whole, table = sum(heights), []
    for hub, height, end in zip(hubs, heights, accumulate(heights), strict=True):
        rows = (end - height, end)
        table.append(Parameter(f"{hub}.weight", f"{ldm}.weight", (height, columns), rows, height=whole))
        if bias:
            table.append(Parameter(f"{hub}.bias", f"{ldm}.bias", (height,), rows, height=whole))
    return table


def is_module_weight(parameter: Parameter) -> bool:
    """Whether it is the weight of a linear layer, a convolution or a normalisation, the modules adapters change."""
    name = parameter.hub
    return name.endswith(".weight") and not name.endswith(_TABLES)


def module_of(name: str) -> str:
    """The module a weight belongs to; FLUX.1's files call the weight of a normalisation ``scale``."""
    return name.removesuffix(".weight").removesuffix(".scale")
