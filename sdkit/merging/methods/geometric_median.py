"""Geometric median: the point with the least sum of distances to all models, untouched by one outlier.

    argmin Σ wᵢ ‖x − Mᵢ‖, by Weiszfeld's iteration x ← Σ (wᵢ / dᵢ) Mᵢ / Σ (wᵢ / dᵢ),   dᵢ = max(‖x − Mᵢ‖, ε)

One pass finds the models' inner products; all iterations then run on those few numbers.
Source: Weiszfeld 1937; Pillutla et al. 2022, https://arxiv.org/abs/1912.13445
"""

from __future__ import annotations

import math
from typing import Annotated

from sdkit.merging.measures import Gram, gram, norm
from sdkit.merging.method import Either, PerModel, Positive, Range, merge_method
from sdkit.merging.methods._weights import shares


@merge_method("linear", measure=gram)
def geometric_median(
    *models: Either,
    measured: Gram,
    weights: PerModel = (),
    iterations: Annotated[int, Range(1, 10_000)] = 100,
    epsilon: Positive = 1e-6,
    tolerance: Positive = 1e-12,
) -> Either:
    """The Weiszfeld point of the models."""
    found = weiszfeld(measured, shares(weights, len(models)), iterations, epsilon, tolerance)
    return sum(x * model for x, model in zip(found, models, strict=True))  # type: ignore[return-value]


def weiszfeld(products: Gram, parts: list[float], iterations: int, epsilon: float, tolerance: float) -> list[float]:
    """The median as coefficients of the models, from their inner products."""
    found, before = parts, math.inf
    for _ in range(iterations):
        distances = [norm(_from(found, index), products) for index in range(len(parts))]
        objective = math.fsum(part * distance for part, distance in zip(parts, distances, strict=True))
        if before - objective <= tolerance * objective:
            break
        before = objective
        pulls = [part / max(distance, epsilon) for part, distance in zip(parts, distances, strict=True)]
        found = [pull / math.fsum(pulls) for pull in pulls]
    return found


def _from(point: list[float], model: int) -> list[float]:
    return [x - (index == model) for index, x in enumerate(point)]
