"""Sums of models times numbers, as symbols: running a linear method on them gives the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Form:
    """Σ coefficient · model."""

    coefficients: tuple[float, ...]

    def __add__(self, other: Form) -> Form:
        return Form(tuple(x + y for x, y in zip(self.coefficients, other.coefficients, strict=True)))

    def __radd__(self, other: int) -> Form:
        return self  # sum() begins with 0

    def __sub__(self, other: Form) -> Form:
        return self + -other

    def __neg__(self) -> Form:
        return self * -1.0

    def __mul__(self, factor: float) -> Form:
        return Form(tuple(factor * x for x in self.coefficients))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Form:
        return Form(tuple(x / divisor for x in self.coefficients))


def symbols(count: int) -> list[Form]:
    """One symbol for each of `count` models."""
    return [Form(tuple(float(row == column) for column in range(count))) for row in range(count)]


def sole(coefficients: Sequence[float]) -> int | None:
    """The index of the one model a sum consists of, times exactly 1; None for every other sum."""
    used = [index for index, value in enumerate(coefficients) if value != 0.0]
    return used[0] if len(used) == 1 and coefficients[used[0]] == 1.0 else None
