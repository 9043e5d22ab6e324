"""Karcher mean: the point on the sphere with the least sum of squared angles to all models.

    iterate μ ← exp_μ(Σ wᵢ log_μ(M̂ᵢ)) from the mean direction;   result μ · Σ wᵢ ‖Mᵢ‖

At most `iterations` steps, until one is shorter than `tolerance`. All weights are equal unless given.
Source: Riemannian centre of mass (Karcher 1977); mergekit's `karcher`
"""

from __future__ import annotations

import math
from typing import Annotated

from sdkit.merging.measures import Gram, gram, inner, norm
from sdkit.merging.method import Either, PerModel, Positive, Range, merge_method
from sdkit.merging.methods._weights import shares


@merge_method("linear", measure=gram)
def karcher(
    *models: Either,
    measured: Gram,
    weights: PerModel = (),
    iterations: Annotated[int, Range(1, 10_000)] = 10,
    tolerance: Positive = 1e-5,
) -> Either:
    """The Riemannian mean of the models' directions."""
    found = _mean(measured, shares(weights, len(models)), iterations, tolerance)
    return sum(x * model for x, model in zip(found, models, strict=True))  # type: ignore[return-value]


def _mean(products: Gram, weights: list[float], iterations: int, tolerance: float) -> list[float]:
    lengths = [math.sqrt(row[index]) for index, row in enumerate(products)]
    present = [index for index, length in enumerate(lengths) if length > tolerance]
    if not present:
        return weights
    total = math.fsum(weights[index] for index in present)
    parts = {index: weights[index] / total for index in present}
    units = {index: _scaled(index, 1 / lengths[index], len(lengths)) for index in present}
    mean = _sum([(part, units[index]) for index, part in parts.items()])
    size = norm(mean, products)
    mean = [x / size for x in mean] if size > tolerance else units[present[0]]
    for _ in range(iterations):
        step = _sum([(part, _logarithm(mean, units[index], products)) for index, part in parts.items()])
        angle = norm(step, products)
        if angle < tolerance:
            break
        mean = [math.cos(angle) * m + math.sin(angle) * s / angle for m, s in zip(mean, step, strict=True)]
        size = norm(mean, products)
        mean = [x / size for x in mean]
    length = math.fsum(weight * length for weight, length in zip(weights, lengths, strict=True))
    return [length * x for x in mean]


def _logarithm(mean: list[float], unit: list[float], products: Gram) -> list[float]:
    """The tangent vector at `mean` that leads to `unit`."""
    along = max(-1.0, min(1.0, inner(mean, products, unit)))
    away = [u - along * m for u, m in zip(unit, mean, strict=True)]
    sine = norm(away, products)
    angle = math.atan2(sine, along)
    return [angle / sine * x for x in away] if sine > 0.0 else [0.0] * len(away)


def _scaled(index: int, value: float, count: int) -> list[float]:
    return [value * (place == index) for place in range(count)]


def _sum(terms: list[tuple[float, list[float]]]) -> list[float]:
    return [math.fsum(part * vector[place] for part, vector in terms) for place in range(len(terms[0][1]))]
