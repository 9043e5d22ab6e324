"""Baking adapters into a checkpoint: from artifacts and strengths to the plan of what is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sdkit.adapters.algebra import DeltaSum
from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.builder import widens
from sdkit.adapters.deltas.delta import Delta, is_relative
from sdkit.adapters.deltas.rows import rows_of_change
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model, Place
from sdkit.merging.strengths import Strengths
from sdkit.streaming import AddDelta, Addend, Output, Rounding
from sdkit.streaming.lazy import stored
from sdkit.streaming.quantised import quantisation_scale
from sdkit.weights import DType, Weights


@dataclass(frozen=True, slots=True)
class Dose:
    """One adapter and how strongly it goes in."""

    artifact: Artifact
    strength: float


# Which rows and columns of a stored tensor change, and whether it is stored transposed.
_Region = tuple[int, int | None, bool]


@dataclass(frozen=True, slots=True)
class Bake:
    """A base and the changes of its tensors.

    Attributes:
        base: the opened base.
        addends: stored tensor's name → its changes.
    """

    base: Weights
    addends: Mapping[str, tuple[Addend, ...]]

    def outputs(self, dtype: DType | None = None, rounding: Rounding | None = None) -> list[Output]:
        """Every tensor of the base, changed or not, in the base's order.

        Args:
            dtype: what floating-point tensors are stored as; None keeps each one's own type.
            rounding: how changed tensors are rounded; default to the nearest.
        """
        outputs = []
        for info in self.base.tensors.values():
            kind = dtype if dtype is not None and info.dtype.is_float else info.dtype
            before = stored(self.base, info)
            changed = AddDelta(before, self.addends[info.name]) if info.name in self.addends else before
            outputs.append(Output(info.name, kind, changed, rounding or Rounding()))
        return outputs


def bake(base: Weights, model: Model, doses: Iterable[Dose], strengths: Strengths) -> Bake:
    """Plan the changes of every tensor of `base`. Reads nothing but headers and scalars.

    Several adapters that change one weight become one sum. A strength of zero changes nothing at all.

    Raises:
        SdkitError: a change falls on a tensor that holds no floating-point numbers.
    """
    terms: dict[str, dict[_Region, list[tuple[Delta, float]]]] = {}
    for dose in doses:
        for target, delta in dose.artifact.deltas.items():
            strength = dose.strength * strengths.of(target, model)
            if strength == 0.0:
                continue
            place = model.places[target.name]
            scale = quantisation_scale(base, place.key)
            if scale != 1.0 and is_relative(delta):
                raise SdkitError(
                    f"{place.key}: a {delta.kind} cannot go into scaled fp8 weights", "use a 16-bit checkpoint"
                )
            for region, part in _regions(target, delta, place, base):
                terms.setdefault(place.key, {}).setdefault(region, []).append((part, strength / scale))
    return Bake(base, {key: _addends(regions) for key, regions in terms.items()})


def _addends(regions: Mapping[_Region, list[tuple[Delta, float]]]) -> tuple[Addend, ...]:
    return tuple(
        Addend(DeltaSum(tuple(terms), transposed), first_row, columns)
        for (first_row, columns, transposed), terms in regions.items()
    )


def _regions(target: Target, delta: Delta, place: Place, base: Weights) -> Iterator[tuple[_Region, Delta]]:
    """Where in the stored tensor `delta` goes, whole or in parts."""
    info = base.tensors[place.key]
    if not info.dtype.is_float:
        raise SdkitError(f"{place.key}: holds {info.dtype.name}, which cannot be merged into", "use a float checkpoint")
    # The codec has compared the shapes. Of a widened convolution the first channels are the ones the adapter knows.
    columns = math.prod(delta.shape[1:]) if widens(target, delta.shape, place.shape) else None
    first_row = place.rows[0] if place.rows else 0
    if place.swapped:
        half = delta.shape[0] // 2
        yield (half, columns, False), rows_of_change(delta, 0, half)
        yield (0, columns, False), rows_of_change(delta, half, 2 * half)
    else:
        yield (first_row, columns, place.transposed), delta
