"""Building an artifact out of a file's names: what every codec of weight changes shares.

Here a module of a file meets its place in the model, so here are the checks that belong to the meeting: the shapes
must agree, nothing may be changed twice, and what has no place is kept by name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields

from sdkit.adapters.artifact import Artifact, Target, TokenRows
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.factors import same_bytes
from sdkit.adapters.deltas.rows import rows_of_change
from sdkit.adapters.input_width import FLUX_INPUT, is_narrower, widens
from sdkit.adapters.stacked import swapped
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model, Stack
from sdkit.streaming.expression import Read
from sdkit.weights import TensorInfo, Weights


class ArtifactBuilder:
    """Collects the parts of one adapter.

    Args:
        weights: the opened adapter.
        model: the base it will be applied to; None to keep the file's own names (for looking at a file alone).
        format: the codec's name.
    """

    def __init__(self, weights: Weights, model: Model | None, format: str) -> None:
        self.weights = weights
        self.model = model
        self.format = format
        self._deltas: dict[Target, Delta] = {}
        self._spelled: dict[Target, str] = {}
        self._unstated: set[Target] = set()
        self._tokens: list[TokenRows] = []
        self._unmatched: dict[str, None] = {}
        self._notes: Counter[str] = Counter()

    def read(self, info: TensorInfo) -> Read:
        """A handle on one of the file's tensors."""
        return Read(self.weights, info)

    def resolve(self, *candidates: str, parameter: str = "weight") -> str | None:
        """The first of the hub modules `candidates` that the model has; the first of all without a model."""
        if self.model is None:
            return candidates[0] if candidates else None
        places = self.model.places
        return next((module for module in candidates if f"{module}.{parameter}" in places), None)

    def shape_of(self, module: str | None) -> tuple[int, ...] | None:
        """The shape of a hub module's weight; None where there is no model, or no such module in it."""
        place = self.model.places.get(f"{module}.weight") if self.model is not None else None
        return place.shape if place is not None else None

    def add(
        self, module: str | None, spelled: str, delta: Delta, parameter: str = "weight", *, stated: bool = True
    ) -> None:
        """Take a change of a hub module.

        Args:
            module: the hub module, as `resolve` found it, or a stack of them; None when the model has no such module.
            spelled: the module as the file spells it, for messages.
            stated: whether the file states the scale of the factors.

        Raises:
            SdkitError: the change's shape is not the weight's, or the weight is changed by two different modules.
        """
        stack = self.model.stacks.get(module) if self.model and module else None
        if stack is not None:
            self._add_stack(stack, spelled, delta, parameter, stated=stated)
            return
        if module is None or (self.model and f"{module}.{parameter}" not in self.model.places):
            self.leave(spelled)
            return
        target = Target(module, parameter)
        self._check_shape(target, spelled, delta)
        if target in self._deltas:
            self._check_same(target, spelled, delta)
            return
        self._deltas[target] = delta
        self._spelled[target] = spelled
        if not stated:
            self._unstated.add(target)

    def _add_stack(self, stack: Stack, spelled: str, delta: Delta, parameter: str, *, stated: bool) -> None:
        """Divide a change among the layers that are one in a single file."""
        height = sum(rows for _, rows in stack.members)
        if delta.shape[0] != height:
            raise SdkitError(
                f"{self.weights.path}: {spelled} changes a weight of shape {list(delta.shape)}, "
                f"but that of the model has {height} rows",
                "the adapter was made for another model; `sdkit inspect` shows the family of each",
            )
        if stack.swapped:
            self.add(stack.members[0][0], spelled, swapped(delta, spelled), parameter, stated=stated)
            return
        start = 0
        for module, rows in stack.members:
            self.add(module, spelled, rows_of_change(delta, start, start + rows), parameter, stated=stated)
            start += rows

    def add_tokens(self, token: str, component: str, info: TensorInfo) -> None:
        """Take rows of a token embedding."""
        self._tokens.append(TokenRows(token, component, self.weights, info))

    def leave(self, spelled: str) -> None:
        """Record a module, or a tensor, that the model has no place for."""
        self._unmatched[spelled] = None

    def note(self, sentence: str) -> None:
        """Record a fact a person should see. A sentence noted several times is shown once with its count."""
        self._notes[sentence] += 1

    def build(self) -> Artifact:
        """The artifact."""
        notes = (f"{text} ({count} times)" if count > 1 else text for text, count in self._notes.items())
        return Artifact(
            self.weights,
            self.format,
            deltas=self._deltas,
            tokens=tuple(self._tokens),
            unmatched=tuple(self._unmatched),
            notes=tuple(notes),
            metadata=self.weights.metadata,
            spelled={target.module: spelled for target, spelled in self._spelled.items()},
            unstated=frozenset(self._unstated),
        )

    def _check_shape(self, target: Target, spelled: str, delta: Delta) -> None:
        if self.model is None:
            return
        wanted = self.model.places[target.name].shape
        of_other_width = is_narrower(target, delta.shape, self.model) or widens(target, delta.shape, self.model)
        if not same_weight(delta.shape, wanted) and not of_other_width:
            raise SdkitError(
                f"{self.weights.path}: {spelled} changes a weight of shape {list(delta.shape)}, "
                f"but {target.name} of the model has {list(wanted)}",
                _hint(target),
            )

    def _check_same(self, target: Target, spelled: str, delta: Delta) -> None:
        if not same_delta(self._deltas[target], delta):
            raise SdkitError(
                f"{self.weights.path}: {self._spelled[target]} and {spelled} both change {target.name}, differently",
                "the file holds one module under two names with different contents; ask its author which is meant",
            )
        self.note("a module is in the file twice under two names, with equal contents; it is applied once")


def _hint(target: Target) -> str:
    if target.module == FLUX_INPUT:
        return "a control LoRA widens the plain FLUX.1 alone; `sdkit inspect` shows what each was made for"
    return "the adapter was made for another model; `sdkit inspect` shows the family of each"


def same_weight(change: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether a change of shape `change` can be added to a weight of shape `weight`.

    Trailing ones do not count (a 1×1 convolution is a linear layer), and a matrix may stand for a convolution whose
    kernel is flattened into its columns.
    """
    if _without_trailing_ones(change) == _without_trailing_ones(weight):
        return True
    flattened = len(change) == 2 and len(weight) > 2
    return flattened and change == (weight[0], math.prod(weight[1:]))


def same_delta(first: Delta, second: Delta) -> bool:
    """Whether two changes are of one kind with equal scales and byte-identical factors."""
    return type(first) is type(second) and _same_parts(first, second)


def reads(part: object) -> Iterator[Read]:
    """The stored tensors of a delta."""
    if isinstance(part, Read):
        yield part
    elif hasattr(part, "__dataclass_fields__"):
        for field in fields(part):  # type: ignore[arg-type]
            yield from reads(getattr(part, field.name))


def _same_parts(first: object, second: object) -> bool:
    if isinstance(first, Read) and isinstance(second, Read):
        return same_bytes(first, second)
    if type(first) is not type(second) or not hasattr(first, "__dataclass_fields__"):
        return first == second
    names = [field.name for field in fields(first)]  # type: ignore[arg-type]
    return all(_same_parts(getattr(first, name), getattr(second, name)) for name in names)


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape
