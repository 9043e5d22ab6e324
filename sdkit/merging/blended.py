"""Merge methods as expressions the engine streams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sdkit.merging.form import sole, symbols
from sdkit.merging.method import Granularity, Method, Tiles, Value
from sdkit.merging.where import Where
from sdkit.merging.whole import Survey, Whole
from sdkit.streaming.expression import Context, Expression, TileFunction, common_unit, spans, units

if TYPE_CHECKING:
    import torch

# Half and shorter types keep 11 bits or fewer: float32 arithmetic leaves their rounding exact within 1 %.
# Longer types need float64 for that.
LONG_TYPES = {"F32", "F64"}


def blended(
    method: Method,
    inputs: Sequence[Expression],
    base: Expression | None,
    values: Mapping[str, Value],
    *,
    name: str = "",
    seed: int = 0,
    wholes: Wholes | None = None,
) -> Expression:
    """The result of a method, in its simplest form: a sum where it is one, a plain input where nothing changes.

    Args:
        method: what to do.
        inputs: the models' tensors, of one shape.
        base: the base's tensor, for methods that work on differences.
        values: the method's options.
        name: the tensor's name, which random numbers depend on.
        seed: what random numbers depend on besides.
        wholes: the models as wholes, for methods that look at them.
    """
    if method.linear and method.measure is None:
        numbers = coefficients(method, len(inputs), base is not None, values, {})
        return combination(numbers, [*inputs, base] if base is not None else inputs)
    return Blended(method, tuple(inputs), base, dict(values), name, seed, wholes)


def coefficients(
    method: Method, count: int, has_base: bool, values: Mapping[str, Value], measured: Mapping[str, object]
) -> tuple[float, ...]:
    """The numbers a linear method multiplies its models with; the last is the base's, where there is one."""
    forms = symbols(count + has_base)
    if not has_base:
        return method.function(*forms, **measured, **values).coefficients  # type: ignore[attr-defined, no-any-return]
    *models, base = forms
    total = method.function(*(form - base for form in models), **measured, **values) + base  # type: ignore[operator]
    return total.coefficients  # type: ignore[no-any-return]


def combination(numbers: Sequence[float], inputs: Sequence[Expression]) -> Expression:
    """Σ number · input, without what is multiplied by zero."""
    alone = sole(numbers)
    if alone is not None:
        return inputs[alone]
    used = [index for index, number in enumerate(numbers) if number != 0.0] or [0]
    return Combination(tuple(numbers[index] for index in used), tuple(inputs[index] for index in used))


@dataclass(frozen=True, slots=True)
class Combination:
    """Σ number · input: the fused form of every linear method."""

    numbers: tuple[float, ...]
    inputs: tuple[Expression, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The first input's."""
        return self.inputs[0].shape

    @property
    def unit(self) -> int:
        """What suits every input."""
        return common_unit(units(self.inputs))

    def bind(self, context: Context) -> TileFunction:
        """Sum in place, in the first input's scratch memory."""
        context = precise(context)
        return _sum(self.numbers, [source.bind(context) for source in self.inputs])


def _sum(numbers: Sequence[float], tiles: Sequence[TileFunction]) -> TileFunction:
    def tile(start: int, stop: int) -> torch.Tensor:
        total = tiles[0](start, stop)
        total.mul_(numbers[0])
        for number, function in zip(numbers[1:], tiles[1:], strict=True):
            total.add_(function(start, stop), alpha=number)
        return total

    return tile


@dataclass(frozen=True, slots=True)
class Wholes:
    """The models as wholes, and what a method finds out about them."""

    models: Whole
    survey: Survey


@dataclass(frozen=True, slots=True)
class Blended:
    """A method that looks at the numbers themselves."""

    method: Method
    inputs: tuple[Expression, ...]
    base: Expression | None
    values: Mapping[str, Value] = field(hash=False)
    name: str = ""
    seed: int = 0
    wholes: Wholes | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The first input's."""
        return self.inputs[0].shape

    @property
    def unit(self) -> int:
        """What the method and every input need."""
        sources = [*self.inputs, self.base] if self.base is not None else self.inputs
        return common_unit([unit_of(self.shape, self.method.granularity), *units(sources)])

    def bind(self, context: Context) -> TileFunction:
        """Run the measuring pass, then map tile by tile."""
        context = precise(context)
        models = [source.bind(context) for source in self.inputs]
        base = self.base.bind(context) if self.base is not None else None
        measured = {**self._measure(context), **self._of_wholes()}
        if self.method.linear:
            numbers = coefficients(self.method, len(models), base is not None, self.values, measured)
            return _sum(numbers, [*models, base] if base is not None else models)
        return self._map(models, base, measured)

    def _measure(self, context: Context) -> dict[str, object]:
        """What the measuring pass finds; where that is inner products, in float64."""
        import torch

        if self.method.measure is None:
            return {}
        context = context.with_dtype(torch.float64) if self.method.linear else context
        models = [source.bind(context) for source in self.inputs]
        base = self.base.bind(context) if self.base is not None else None
        return self.method.measured(self._tiles(context, _deltas(models, base)), self.values)

    def _map(
        self, models: Sequence[TileFunction], base: TileFunction | None, measured: Mapping[str, object]
    ) -> TileFunction:
        def tile(start: int, stop: int) -> torch.Tensor:
            origin = base(start, stop) if base is not None else None
            values = [function(start, stop) for function in models]
            if origin is not None:
                values = [value.sub_(origin) for value in values]
            views = [viewed(value, self.shape, self.method.granularity) for value in values]
            result = self.method.function(*views, **measured, **self._where(start), **self.values).reshape(-1)
            return result if origin is None else result.add_(origin)

        return tile

    def _where(self, start: int) -> dict[str, Where]:
        if "where" not in self.method.special:
            return {}
        return {"where": Where(self.seed, self.name, self.shape, start)}

    def _of_wholes(self) -> dict[str, object]:
        if self.wholes is None:
            return {}
        return {
            **({"whole": self.wholes.models} if "whole" in self.method.special else {}),
            **({"surveyed": self.wholes.survey.result()} if "surveyed" in self.method.special else {}),
        }

    def _tiles(self, context: Context, functions: Callable[[int, int], list[torch.Tensor]]) -> Tiles:
        count, unit = math.prod(self.shape), self.unit

        def walk() -> Iterator[tuple[torch.Tensor, ...]]:
            mark = context.scratch.mark()
            for start, stop in spans(count, unit):
                yield tuple(viewed(value, self.shape, self.method.granularity) for value in functions(start, stop))
                context.scratch.release(mark)

        return Tiles(walk, count)


def _deltas(models: Sequence[TileFunction], base: TileFunction | None) -> Callable[[int, int], list[torch.Tensor]]:
    """The models' tiles, minus the base's where there is one."""

    def tiles(start: int, stop: int) -> list[torch.Tensor]:
        if base is None:
            return [function(start, stop) for function in models]
        origin = base(start, stop)
        return [function(start, stop).sub_(origin) for function in models]

    return tiles


def precise(context: Context) -> Context:
    """The context with arithmetic that is exact enough for what the result is stored as."""
    import torch

    return context.with_dtype(torch.float64) if context.target.name in LONG_TYPES else context


def unit_of(shape: tuple[int, ...], granularity: Granularity) -> int:
    """How many elements a method of this granularity must see together."""
    if granularity in ("linear", "tile"):
        return 1
    whole = max(1, math.prod(shape))
    return whole if granularity == "tensor" or len(shape) < 2 else max(1, math.prod(shape[1:]))


def viewed(values: torch.Tensor, shape: tuple[int, ...], granularity: Granularity) -> torch.Tensor:
    """A flat tile as a method of this granularity wants to see it."""
    if granularity == "tensor":
        return values.view(shape)
    return values.reshape(-1, unit_of(shape, "row")) if granularity == "row" else values.reshape(-1)
