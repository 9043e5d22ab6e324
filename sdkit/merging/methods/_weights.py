"""One number per model, or the same for all."""

from __future__ import annotations

from collections.abc import Sequence

from sdkit.core.errors import UsageError


def per_model(weights: Sequence[float], count: int, default: float) -> list[float]:
    """The weights; `default` for each of `count` models where none are given.

    Raises:
        UsageError: there are more or fewer weights than models.
    """
    if weights and len(weights) != count:
        raise UsageError(f"there are {len(weights)} weights for {count} models", "give each model one weight")
    return list(weights) or [default] * count


def shares(weights: Sequence[float], count: int) -> list[float]:
    """The weights divided by their sum.

    Raises:
        UsageError: they sum to zero, or do not fit the number of models.
    """
    factors = per_model(weights, count, 1.0)
    total = sum(factors)
    if total == 0.0:
        raise UsageError("the weights sum to 0, so they cannot be shares of a whole", "give weights with another sum")
    return [factor / total for factor in factors]
