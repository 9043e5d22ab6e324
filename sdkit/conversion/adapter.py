"""Making an adapter fit a format: what it can hold stays as it is, the rest becomes a low-rank change, its error known.

A format that lacks a kind of change (LoHa in diffusers' files, a whole difference in PEFT's) gets the nearest change of
limited rank in its place, by singular values. A change that is relative to the base (DoRA, GLoRA, a rotation) is first
worked out on that base. Either loses something, and says how much before anything is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.builder import reads
from sdkit.adapters.computed import Computed, computed_artifact, times
from sdkit.adapters.deltas.delta import Delta, is_relative
from sdkit.adapters.deltas.dora import Dora
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.lightweight import Lightweight
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.adapters.deltas.replacement import Replacement
from sdkit.adapters.difference import Located, cut_difference
from sdkit.adapters.ranks import RankRule
from sdkit.adapters.sums import Cut, cut_sum, exact_sum, widest
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats import Format, check_writable
from sdkit.streaming.add_delta import LooksFirst
from sdkit.streaming.expression import reshaped, torch_dtype
from sdkit.weights import DTYPES, DType

if TYPE_CHECKING:
    import torch

PLAIN = ("lora", "locon")
# The rank an approximation gets unless a person asks for another: as small as leaves this error, and no larger.
USUAL_RULE = RankRule(rank=128, error=0.001)


@dataclass(frozen=True, slots=True)
class Approximation:
    """A change that is written as another kind.

    Attributes:
        name: the hub parameter.
        was: its kind.
        rank: of the low-rank change in its place; 0 where it is left out.
        error: ‖ΔW − written‖ / ‖ΔW‖ before the numbers are rounded to their type.
    """

    name: str
    was: str
    rank: int
    error: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """An adapter as a format can hold it.

    Attributes:
        artifact: what is written.
        approximations: the changes that are other ones now.
    """

    artifact: Artifact
    approximations: tuple[Approximation, ...] = ()

    def summary(self) -> list[dict[str, object]]:
        """What was lost, for recipes: by kind, how many changes, and the largest rank and error."""
        kinds: dict[str, list[Approximation]] = {}
        for entry in self.approximations:
            kinds.setdefault(entry.was, []).append(entry)
        return [
            {
                "was": was,
                "changes": len(entries),
                "rank": max(entry.rank for entry in entries),
                "error": float(f"{max(entry.error for entry in entries):.3g}"),
            }
            for was, entries in sorted(kinds.items())
        ]


class Fitting:
    """Fits adapters to one format.

    Args:
        format: what will be written.
        model: gives weights their shapes; None where modules keep the file's own names.
        base: finds a parameter in the base, for changes that are relative to it; None where no base was named.
        rule: finds the rank of an approximation.
    """

    def __init__(
        self,
        format: Format,
        model: Model | None,
        base: Callable[[str], Located] | None = None,
        rule: RankRule = USUAL_RULE,
    ) -> None:
        self.format, self.model, self.base, self.rule = format, model, base, rule

    def fit(self, artifact: Artifact) -> Fitted:
        """The adapter as the format can hold it.

        Raises:
            SdkitError: a change is relative to a base that nobody named.
        """
        fitted = self._fit(artifact, self.format.changes)
        try:
            check_writable(fitted.artifact, self.model, self.format.name)
        except SdkitError:
            # Each kind has its place, but not beside the others: plain low-rank changes always go together.
            if all(delta.kind in PLAIN for delta in fitted.artifact.deltas.values()):
                raise
            fitted = self._fit(artifact, PLAIN)
            check_writable(fitted.artifact, self.model, self.format.name)
        return fitted

    def _fit(self, artifact: Artifact, changes: Iterable[str] | None) -> Fitted:
        held = None if changes is None else frozenset(changes)
        kept: dict[Target, Delta] = {}
        made: dict[Target, Computed] = {}
        notes: list[Approximation] = []
        for target, delta in artifact.deltas.items():
            if _is_held(target, delta, held):
                kept[target] = self._shaped(target, delta)
            elif (
                held is not None and isinstance(delta, Lightweight) and "lora" in held
            ):  # a LoRA within bases: exactly one without them
                made[target] = exact_sum([(delta, 1.0)], self._shape(target, delta), lambda norm: None)
            elif target.parameter == "weight" and len(self._shape(target, delta)) > 1:
                cut = self._cut(artifact, target, delta)
                made[target] = Computed.of(cut.tensors)
                notes.append(Approximation(target.name, delta.kind, cut.rank, cut.error))
            else:  # a bias, or a norm's weight, has no rank
                notes.append(Approximation(target.name, delta.kind, 0, 1.0))
        if not made:
            return Fitted(replace(artifact, deltas=kept), tuple(notes))
        computed = computed_artifact(str(artifact.source.path), made, _dtype(artifact)).deltas
        together = {**kept, **computed}
        deltas = {target: together[target] for target in artifact.deltas if target in together}
        return Fitted(replace(artifact, deltas=deltas), tuple(notes))

    def _cut(self, artifact: Artifact, target: Target, delta: Delta) -> Cut:
        shape = self._shape(target, delta)
        dtype = _dtype(artifact)
        if is_relative(delta):
            return cut_difference(self._on_base(artifact, target, delta).reshape(shape), self.rule, dtype)
        return cut_sum([(delta, 1.0)], shape, self.rule, torch_dtype(dtype))

    def _on_base(self, artifact: Artifact, target: Target, delta: Delta) -> torch.Tensor:
        """What the change does to the base, [rows, columns] in float32."""
        if self.base is None:
            raise SdkitError(
                f"{artifact.source.path}: {target.name} is a {delta.kind}, whose change depends on the base, and "
                f"{self.format.name} cannot hold that kind",
                "name the base it was trained on with --base",
            )
        located = self.base(target.name)
        rows = located.load().double().mul_(located.scale)
        return relative_change(delta, rows.reshape(rows.shape[0], -1)).float()

    def _shape(self, target: Target, delta: Delta) -> tuple[int, ...]:
        return self.model.places[target.name].shape if self.model is not None else delta.shape

    def _shaped(self, target: Target, delta: Delta) -> Delta:
        """The same change as files hold it.

        A plain LoRA's factors are shaped for its layer: readers take a 1×1 convolution's for no linear layer's.
        """
        if isinstance(delta, Full) and delta.scale != 1.0:  # PEFT's biases; other files have no place for such a scale
            return Full(times(delta.diff, delta.scale, target.name, DTYPES["F32"]))
        if self.model is None or type(delta) is not LowRank or delta.mid is not None:
            return delta
        shape = self.model.places[target.name].shape
        if len(delta.down.shape) == len(shape) == len(delta.up.shape) or math.prod(delta.shape) != math.prod(shape):
            return delta
        if delta.up.info.strides is not None or delta.down.info.strides is not None:
            return delta
        up, down = (shape[0], delta.rank, *(1 for _ in shape[2:])), (delta.rank, *shape[1:])
        return replace(delta, up=reshaped(delta.up, up), down=reshaped(delta.down, down))


def _is_held(target: Target, delta: Delta, held: frozenset[str] | None) -> bool:
    """Whether a format that holds these kinds, or all, holds a change. Whole weights are for those that name them."""
    if held is None:
        return not isinstance(delta, Replacement)
    kind = kind_of(target, delta)
    return kind in held or (kind == "bias" and "full" in held)


def relative_change(delta: Delta, rows: torch.Tensor) -> torch.Tensor:
    """What a relative change does to a whole base, given and returned as [rows, columns]."""
    prepared = delta.prepare(1.0, rows.dtype)
    if isinstance(prepared, LooksFirst) and prepared.looks_first:
        prepared.look(rows, 0)
    changed = rows.clone()
    prepared.add_rows(changed, 0)
    return changed.sub_(rows)


def kinds_of(artifact: Artifact) -> frozenset[str]:
    """The kinds of all its changes, as formats and programs tell them apart."""
    return frozenset(kind_of(target, delta) for target, delta in artifact.deltas.items())


def kind_of(target: Target, delta: Delta) -> str:
    """As `Delta.kind`; a DoRA whose lengths belong to the input features, which few programs read, is ``dora-in``.

    The difference of a bias is ``bias``: some have a place for it that have none for a weight's.
    """
    if isinstance(delta, Full) and target.parameter == "bias":
        return "bias"
    return "dora-in" if isinstance(delta, Dora) and delta.by_input else delta.kind


def _dtype(artifact: Artifact) -> DType:
    return widest({read.dtype for delta in artifact.deltas.values() for read in reads(delta)})
