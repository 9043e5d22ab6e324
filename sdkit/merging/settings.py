"""Which options a method gets for which weight: one value for all, gradients over depth, blocks, ordered rules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sdkit.core.errors import UsageError
from sdkit.families.family import Model
from sdkit.merging.blocks import BASE, VAE, block_order
from sdkit.merging.method import Method, Value

STRENGTH = "alpha"
_TEXT_LAYER = re.compile(r"\.layers\.(\d+)\.")
_TEXT_END = re.compile(r"\.(final_layer_norm|text_projection)\.")


@dataclass(frozen=True, slots=True)
class Rule:
    """One value for the weights whose name a regular expression finds.

    Attributes:
        pattern: searched for in the weight's diffusers name (``unet.down_blocks.0.….weight``).
        value: the value.
        parameter: the option it is for.
    """

    pattern: re.Pattern[str]
    value: float
    parameter: str = STRENGTH


def parse_rule(text: str) -> Rule:
    """``REGEX=0.3`` (for `alpha`) or ``REGEX=beta:0.3``.

    Raises:
        UsageError: it has another form, or the expression is none.
    """
    pattern, sign, value = text.rpartition("=")
    parameter, colon, number = value.rpartition(":")
    try:
        if not sign or not pattern:
            raise ValueError("no '='")
        return Rule(re.compile(pattern), float(number), parameter.strip() if colon else STRENGTH)
    except (ValueError, re.error) as error:
        raise UsageError(f"--rule {text!r}: {error}", "write REGEX=0.3 or REGEX=beta:0.3") from None


@dataclass(slots=True)
class Settings:
    """The options of one blend.

    What comes later wins: the plain value (or its gradient), then blocks, then the rules in their order; at last the
    components' factors multiply alpha.

    Attributes:
        method: whose options they are.
        values: checked, with defaults; a tuple for a number is a gradient over depth.
        blocks: alpha by block name.
        rules: in order.
        factors: what alpha is multiplied with, by component.
        used: rules that have found a weight.
    """

    method: Method
    values: Mapping[str, Value]
    blocks: Mapping[str, float] = field(default_factory=dict)
    rules: Sequence[Rule] = ()
    factors: Mapping[str, float] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if (self.blocks or self.factors) and STRENGTH not in self.method.parameters:
            raise UsageError(
                f"{self.method.name} has no alpha that blocks or components could change",
                f"its parameters are: {', '.join(self.method.parameters) or 'none'}",
            )
        for rule in self.rules:
            if not (rule.parameter in self.method.parameters and self.method.parameters[rule.parameter].varies):
                numbers = [name for name, entry in self.method.parameters.items() if entry.varies]
                raise UsageError(
                    f"--rule {rule.pattern.pattern}: {self.method.name} has no number {rule.parameter!r} to set",
                    f"it has: {', '.join(numbers) or 'none'}",
                )

    def of(self, name: str, model: Model) -> dict[str, Value]:
        """The options for one weight, by its diffusers name.

        Raises:
            UsageError: a value lies outside the range its parameter has.
        """
        values = {key: self._along(key, value, name, model) for key, value in self.values.items()}
        block = VAE if name.startswith("vae.") else model.block_of(name)
        if block in self.blocks:
            values[STRENGTH] = self.blocks[block]
        for index, rule in enumerate(self.rules):
            if rule.pattern.search(name):
                self.used.add(index)
                values[rule.parameter] = rule.value
        factor = self.factors.get(component_of(name), 1.0)
        if factor != 1.0:
            values[STRENGTH] = _number(values[STRENGTH]) * factor
        return {key: self.method.parameters[key].check(value) for key, value in values.items()}

    def unused(self) -> list[str]:
        """The expressions of rules that have found nothing."""
        return [rule.pattern.pattern for index, rule in enumerate(self.rules) if index not in self.used]

    def _along(self, key: str, value: Value, name: str, model: Model) -> Value:
        if not isinstance(value, tuple) or not self.method.parameters[key].varies:
            return value
        return interpolate(value, depth(name, model))


def component_of(name: str) -> str:
    """``unet``, ``te`` for any text encoder, ``vae``, or the component's own name."""
    component = name.partition(".")[0]
    return "te" if component.startswith("text_encoder") else component


def depth(name: str, model: Model) -> float:
    """How deep a weight lies in its component, from 0 (input) to 1 (output)."""
    block = model.block_of(name)
    if block != BASE:
        order = block_order(model)[1:]
        return order.index(block) / (len(order) - 1)
    layer = _TEXT_LAYER.search(name)
    if layer is None:
        return 1.0 if _TEXT_END.search(name) else 0.0
    prefix = name[: layer.start(1)]
    last = max(int(other[len(prefix) :].partition(".")[0]) for other in model.places if other.startswith(prefix))
    return int(layer[1]) / last if last else 0.0


def interpolate(points: Sequence[float], position: float) -> float:
    """The value at `position`, 0 to 1, of the line through evenly spaced points."""
    if len(points) == 1:
        return points[0]
    place = position * (len(points) - 1)
    low = min(int(place), len(points) - 2)
    return points[low] + (place - low) * (points[low + 1] - points[low])


def _number(value: Value) -> float:
    if isinstance(value, (tuple, str)):
        raise TypeError(f"{value!r} is no number")
    return float(value)
