"""Baking adapters into a checkpoint: from artifacts and strengths to the plan of what is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sdkit.adapters.algebra import DeltaSum
from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.deltas.delta import Delta, is_relative
from sdkit.adapters.deltas.rows import rows_of_change
from sdkit.adapters.input_width import columns_of, is_narrower, widens
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model, Place
from sdkit.merging.channels import WithZeroColumns
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


_Used = tuple[Target, Delta, float]  # a change, and how strongly it goes in
# Which rows and columns of a stored tensor change, and whether it is stored transposed.
_Region = tuple[int, int | None, bool]


@dataclass(frozen=True, slots=True)
class Bake:
    """A base and the changes of its tensors.

    Attributes:
        base: the opened base.
        addends: stored tensor's name → its changes.
        widened: stored tensor's name → how many columns it gets, where a change needs more than there are.
    """

    base: Weights
    addends: Mapping[str, tuple[Addend, ...]]
    widened: Mapping[str, int] = field(default_factory=dict)

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
            if info.name in self.widened:
                before = WithZeroColumns(before, self.widened[info.name])
            changed = AddDelta(before, self.addends[info.name]) if info.name in self.addends else before
            outputs.append(Output(info.name, kind, changed, rounding or Rounding()))
        return outputs


def bake(base: Weights, model: Model, doses: Iterable[Dose], strengths: Strengths) -> Bake:
    """Plan the changes of every tensor of `base`. Reads nothing but headers and scalars.

    Several adapters that change one weight become one sum. A strength of zero changes nothing at all.

    Raises:
        SdkitError: a change falls on a tensor that holds no floating-point numbers, or two cannot go together.
    """
    used = [entry for entry in _used(doses, strengths, model) if entry[2] != 0.0]
    widened = _widened(used, model)
    terms: dict[str, dict[_Region, list[tuple[Delta, float]]]] = {}
    for target, delta, strength in used:
        place = model.places[target.name]
        scale = quantisation_scale(base, place.key)
        if scale != 1.0 and is_relative(delta):
            raise SdkitError(
                f"{place.key}: a {delta.kind} cannot go into scaled fp8 weights", "use a 16-bit checkpoint"
            )
        narrow = is_narrower(target, delta.shape, model) or columns_of(delta.shape) < widened.get(place.key, 0)
        columns = columns_of(delta.shape) if narrow else None
        for region, part in _regions(delta, place, columns, base):
            terms.setdefault(place.key, {}).setdefault(region, []).append((part, strength / scale))
    return Bake(base, {key: _addends(regions) for key, regions in terms.items()}, widened)


def _used(doses: Iterable[Dose], strengths: Strengths, model: Model) -> Iterator[_Used]:
    for dose in doses:
        for target, delta in dose.artifact.deltas.items():
            yield target, delta, dose.strength * strengths.of(target, model)


def _widened(used: Iterable[_Used], model: Model) -> dict[str, int]:
    """The stored tensors that changes widen → columns they need.

    Raises:
        SdkitError: two changes widen one layer differently, so that their further columns mean different things.
    """
    found: dict[str, int] = {}
    for target, delta, _ in used:
        if widens(target, delta.shape, model):
            key, columns = model.places[target.name].key, columns_of(delta.shape)
            if found.setdefault(key, columns) != columns:
                raise SdkitError(
                    f"{key}: one adapter widens it to {found[key]} inputs and another to {columns}",
                    "merge only one of them; a base reads one kind of picture beside the latent",
                )
    return found


def _addends(regions: Mapping[_Region, list[tuple[Delta, float]]]) -> tuple[Addend, ...]:
    return tuple(
        Addend(DeltaSum(tuple(terms), transposed), first_row, columns)
        for (first_row, columns, transposed), terms in regions.items()
    )


def _regions(delta: Delta, place: Place, columns: int | None, base: Weights) -> Iterator[tuple[_Region, Delta]]:
    """Where in the stored tensor `delta` goes, whole or in parts; to its first `columns` columns, where not to all."""
    info = base.tensors[place.key]
    if not info.dtype.is_float:
        raise SdkitError(f"{place.key}: holds {info.dtype.name}, which cannot be merged into", "use a float checkpoint")
    first_row = place.rows[0] if place.rows else 0
    if place.swapped:
        half = delta.shape[0] // 2
        yield (half, columns, False), rows_of_change(delta, 0, half)
        yield (0, columns, False), rows_of_change(delta, half, 2 * half)
    else:
        yield (first_row, columns, place.transposed), delta
