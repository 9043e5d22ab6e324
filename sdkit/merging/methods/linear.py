"""Weighted average of any number of models.

    Σ wᵢ Mᵢ,   or Σ wᵢ Mᵢ / Σ wᵢ with `normalize`

The weights are all 1/n unless given. Whole models whose weights do not sum to 1 would come out scaled, so that is
refused
unless `normalize` is on (mergekit always normalises, kohya's merge_models never does); differences from a base may
have any sum.
Source: Wortsman et al. 2022, model soups, https://arxiv.org/abs/2203.05482
"""

from __future__ import annotations

import math

from sdkit.core.errors import UsageError
from sdkit.merging.method import Either, PerModel, merge_method
from sdkit.merging.methods._weights import per_model


@merge_method("linear", least=1)
def linear(*models: Either, weights: PerModel = (), normalize: bool = False) -> Either:
    """Σ wᵢ Mᵢ."""
    factors = per_model(weights, len(models), 1 / len(models))
    total = math.fsum(factors)
    if normalize and total == 0.0:
        raise UsageError("linear: the weights sum to 0, so they cannot be normalised", "leave out normalize")
    if normalize:
        factors = [factor / total for factor in factors]
    elif not math.isclose(total, 1.0, abs_tol=1e-6):
        raise UsageError(f"linear: the weights sum to {total:g}, not 1", "-p normalize=true divides them by their sum")
    return sum(factor * model for factor, model in zip(factors, models, strict=True))  # type: ignore[return-value]
