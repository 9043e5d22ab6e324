"""What a merge method is: one decorated, typed function in one file of `sdkit.merging.methods`, named like the file.

    @merge_method()
    def my_method(a: Weight, b: Weight, *, alpha: Strength = 0.5) -> Weight: ...

The positional parameters are the models, `*models` for any number of them. Their type says in which space they live:
`Weight` is a model, `Delta` a model minus the base (so the method needs a base, and its result is added to it),
`Either`
takes both. Keyword-only parameters are options; their annotations give type and range. Four keyword names are special:

    measured   the result of `measure`, a function that sees all tiles of a tensor, as often as it likes, beforehand
    where      which tensor and which elements the tile holds, and random numbers for them
    whole      the models as wholes, to read other tensors of them (`sdkit.merging.whole`)
    surveyed   the result of `survey`, a function that sees the whole models once, before the first tensor

A *linear* method (`granularity="linear"`) is a sum of its models times numbers: it runs once on symbols, and the engine
fuses what comes out.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import Plugin, canonical, choose, find_plugins, nearest_hint
from sdkit.merging.where import Where
from sdkit.merging.whole import Whole

if TYPE_CHECKING:
    import torch

PACKAGE = "sdkit.merging.methods"
ENTRY_POINTS = "sdkit.merge_methods"

Granularity = Literal["linear", "tile", "row", "tensor"]
Measure = Callable[..., Any]
Look = Callable[..., Any]
SPECIAL = {"measured", "where", "whole", "surveyed"}
Value = float | int | bool | str | tuple[float, ...]


class Space(Enum):
    """What the numbers of a tensor are."""

    WEIGHT = "weight"
    DELTA = "delta"
    EITHER = "either"


@dataclass(frozen=True, slots=True)
class Range:
    """The values a number may have, both ends included."""

    low: float = -math.inf
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} … {self.high:g}" if self != Range() else "any number"


if TYPE_CHECKING:
    Tensor = torch.Tensor
    Weight = torch.Tensor
    Delta = torch.Tensor
    Either = torch.Tensor
else:
    Tensor = object
    Weight = Annotated[object, Space.WEIGHT]
    Delta = Annotated[object, Space.DELTA]
    Either = Annotated[object, Space.EITHER]

Strength = Annotated[float, Range()]
Share = Annotated[float, Range(0.0, 1.0)]
Positive = Annotated[float, Range(0.0)]
PerModel = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """An option of a method.

    Attributes:
        name: its keyword.
        kind: ``float``, ``int``, ``bool``, ``choice`` or ``per model``.
        default: its default.
        range: the values a number may have.
        choices: the words a choice may be.
    """

    name: str
    kind: str
    default: Value
    range: Range = Range()
    choices: tuple[str, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether blocks and rules may give it different values for different weights."""
        return self.kind == "float"

    def check(self, value: Value) -> Value:
        """The value in its type.

        Raises:
            UsageError: it has the wrong type or lies outside the range.
        """
        wrong = self._wrong(_text(value))
        if self.kind in ("choice", "bool"):
            allowed: tuple[object, ...] = self.choices if self.kind == "choice" else (True, False)
            if value not in allowed or isinstance(value, bool) != (self.kind == "bool"):
                raise wrong
            return value
        if self.varies and isinstance(value, (tuple, list)) and value:  # a gradient over depth
            return tuple(self._number(entry, wrong) for entry in value)
        if self.kind == "per model":
            values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
            return tuple(self._number(entry, wrong) for entry in values)
        number = self._number(value, wrong)
        if self.kind == "int" and number != int(number):
            raise wrong
        return int(number) if self.kind == "int" else number

    def _number(self, value: object, wrong: UsageError) -> float:
        if isinstance(value, (bool, str)) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise wrong
        if value not in self.range:
            raise wrong
        return float(value)

    def parse(self, text: str) -> Value:
        """The value a command line's text means."""
        if self.kind == "choice":
            return self.check(text)
        if self.kind == "bool":
            return self.check({"true": True, "yes": True, "false": False, "no": False}.get(text.lower(), text))
        try:
            numbers = tuple(float(part) for part in text.split(","))
        except ValueError:
            raise self._wrong(text) from None
        return self.check(numbers if self.kind == "per model" or len(numbers) > 1 else numbers[0])

    def _wrong(self, text: str) -> UsageError:
        default = f"its default is {_text(self.default)}; " if self.default != () else ""
        return UsageError(
            f"{self.name}={text}: must be {self.describe()}",
            f"{default}`sdkit blend --list` says what a method takes",
        )

    def describe(self) -> str:
        """What it may be, in words."""
        if self.kind == "choice":
            return " or ".join(self.choices)
        if self.kind == "bool":
            return "true or false"
        number = {"int": "a whole number", "float": "a number", "per model": "one number per model"}[self.kind]
        return number if self.range == Range() else f"{number} in {self.range}"


@dataclass(frozen=True, slots=True)
class Tiles:
    """All tiles of the models' tensors, as often as a measuring pass wants to see them.

    Attributes:
        walk: starts a walk.
        count: elements of one tensor.
    """

    walk: Callable[[], Iterator[tuple[torch.Tensor, ...]]]
    count: int

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        return self.walk()


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method and its contract.

    Attributes:
        name: as reports write it, with hyphens.
        function: what was decorated.
        models: names of the models it takes; the last one may stand for any number.
        variadic: whether it does.
        least: fewest models, the base not counted.
        space: what the models are.
        parameters: its options by name.
        granularity: how much of a tensor it sees at once.
        measure: the pass before, if there is one.
        special: which of the special keywords it takes.
        survey: what it wants to know of the whole models, if anything.
        named: whether it goes by diffusers' names, which only models of known families have.
    """

    name: str
    function: Callable[..., torch.Tensor]
    models: tuple[str, ...]
    variadic: bool
    least: int
    space: Space
    parameters: Mapping[str, Parameter]
    granularity: Granularity
    measure: Measure | None
    special: frozenset[str]
    survey: Look | None = None
    named: bool = False

    @property
    def sees_wholes(self) -> bool:
        """Whether it looks beyond the tensor it merges."""
        return bool(self.special & {"whole", "surveyed"})

    @property
    def needs_base(self) -> bool:
        """Whether it works on differences from a base."""
        return self.space is Space.DELTA

    @property
    def linear(self) -> bool:
        """Whether its result is a sum of the models times numbers."""
        return self.granularity == "linear"

    def check_models(self, count: int, base: bool) -> None:
        """Refuse a wrong number of models, or a base too many or too few.

        Raises:
            UsageError: saying what the method takes.
        """
        if count < self.least or (not self.variadic and count != len(self.models)):
            raise UsageError(f"{self.name} takes {self.describe_models()}; {count} were given", self.usage())
        if self.needs_base and not base:
            raise UsageError(f"{self.name} merges differences from a base, and no base was given", self.usage())
        if base and self.space is Space.WEIGHT:
            raise UsageError(f"{self.name} takes no base: it works on whole models", self.usage())

    def check_values(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """All options with their defaults filled in.

        Raises:
            UsageError: an unknown name, or a value out of range.
        """
        for name in given:
            if name not in self.parameters:
                hint = nearest_hint(name, self.parameters) if self.parameters else f"{self.name} has no parameters"
                raise UsageError(f"{self.name} has no parameter {name!r}", hint)
        return {
            name: parameter.check(given[name]) if name in given else parameter.default
            for name, parameter in self.parameters.items()
        }

    def describe_models(self) -> str:
        """How many models it takes, in words."""
        if not self.variadic:
            return f"{len(self.models)} model" + ("s" if len(self.models) > 1 else "")
        return f"{self.least} or more models"

    def usage(self) -> str:
        """The command line it wants."""
        count = self.least if self.variadic else len(self.models)
        models = " ".join("ABCDEFGH"[:count]) + (" …" if self.variadic else "")
        return f"sdkit blend {models} --method {self.name}" + (" --base BASE" if self.needs_base else "")

    def measured(self, tiles: Tiles, values: Mapping[str, Value]) -> dict[str, Any]:
        """What the measuring pass finds, as the keyword for the function."""
        if self.measure is None:
            return {}
        found = self.measure(tiles, **_wanted(self.measure, values))
        return {"measured": found} if "measured" in self.special else {}

    def look(self, whole: Whole, values: Mapping[str, Value]) -> Any:
        """What the survey finds; None where there is none."""
        return self.survey(whole, **_wanted(self.survey, values)) if self.survey is not None else None

    def __call__(
        self, *tensors: torch.Tensor, where: Where | None = None, whole: Whole | None = None, **given: Value
    ) -> torch.Tensor:
        """The method on whole tensors held in memory: the plain meaning of what the engine streams.

        Without `whole` the models are these tensors and nothing else.
        """
        from sdkit.merging.blended import viewed

        shape = tensors[0].shape
        views = [viewed(tensor.clone(), tuple(shape), self.granularity) for tensor in tensors]
        values = self.check_values(given)
        tiles = Tiles(lambda: iter([tuple(view.clone() for view in views)]), tensors[0].numel())
        extra = self.measured(tiles, values)
        where = where or Where(0, "", tuple(shape))
        whole = whole or Whole.of([{where.name: tensor} for tensor in tensors])
        extra |= {key: value for key, value in (("where", where), ("whole", whole)) if key in self.special}
        if "surveyed" in self.special:
            extra["surveyed"] = self.look(whole, values)
        return self.function(*views, **extra, **values).reshape(shape)


def merge_method(
    granularity: Granularity = "tile",
    *,
    measure: Measure | None = None,
    survey: Look | None = None,
    named: bool = False,
    least: int = 2,
) -> Callable[[Callable[..., Any]], Method]:
    """Declare a merge method.

    Args:
        granularity: what the function sees at once: ``linear`` symbols, a flat ``tile``, whole ``row`` s as a matrix
            (a vector is one row), or the ``tensor`` in its shape. The first two need constant memory; ``row`` too,
            for the rows models have; ``tensor`` needs each thread to hold the largest tensor of every model.
        measure: a pass over all tiles beforehand: ``measure(tiles, **options)``.
        survey: a look at the whole models before the first tensor: ``survey(whole, **options)``. It happens once, so
            its options cannot be numbers, which may vary from tensor to tensor.
        named: whether the method goes by diffusers' names, which only models of known families have.
        least: the fewest models a method with ``*models`` takes.
    """

    def declare(function: Callable[..., Any]) -> Method:
        hints = get_type_hints(function, include_extras=True)
        signature = inspect.signature(function).parameters.values()
        tensors = [entry for entry in signature if entry.kind is not inspect.Parameter.KEYWORD_ONLY]
        options = [entry for entry in signature if entry.kind is inspect.Parameter.KEYWORD_ONLY]
        special = frozenset(entry.name for entry in options) & SPECIAL
        variadic = any(entry.kind is inspect.Parameter.VAR_POSITIONAL for entry in tensors)
        parameters = {
            entry.name: _parameter(entry.name, hints[entry.name], entry.default)
            for entry in options
            if entry.name not in special
        }
        assert survey is None or not any(parameters[name].varies for name in _wanted(survey, parameters))
        return Method(
            name=canonical(function.__name__),
            function=function,
            models=tuple(entry.name for entry in tensors),
            variadic=variadic,
            least=least if variadic else len(tensors),
            space=_space(hints[tensors[0].name]),
            parameters=parameters,
            granularity=granularity,
            measure=measure,
            special=special,
            survey=survey,
            named=named,
        )

    return declare


def _wanted(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that a function has a parameter for."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in names}


def _space(hint: Any) -> Space:
    return next(fact for fact in get_args(hint) if isinstance(fact, Space))


def _parameter(name: str, hint: Any, default: Value) -> Parameter:
    limits = Range()
    if get_origin(hint) is Annotated:
        hint, *facts = get_args(hint)
        limits = next((fact for fact in facts if isinstance(fact, Range)), limits)
    if get_origin(hint) is Literal:
        return Parameter(name, "choice", default, choices=get_args(hint))
    if get_origin(hint) is tuple:
        return Parameter(name, "per model", default, limits)
    return Parameter(name, hint.__name__, default, limits)


def methods() -> dict[str, Plugin]:
    """Every merge method by name, none of them imported."""
    return find_plugins(PACKAGE, ENTRY_POINTS)


def load_method(name: str) -> Method:
    """The method called `name`, with hyphens or underscores.

    Raises:
        UsageError: there is none; the hint names the nearest.
        SdkitError: its module declares no method of its own name.
    """
    plugin = choose(name, methods(), "merge method")
    method = getattr(plugin.load(), plugin.name.replace("-", "_"), None)
    if not isinstance(method, Method):
        raise SdkitError(f"the plugin {plugin.name} ({plugin.module}) declares no merge method of its name")
    return method


def _text(value: Value) -> str:
    return ",".join(f"{entry:g}" for entry in value) if isinstance(value, tuple) else str(value)
