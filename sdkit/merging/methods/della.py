"""DELLA: drop changes at random, small ones more often, then average the models that agree with the elected sign.

    base + α Σ wᵢ Dᵢ [sgn Dᵢ = s] / Σ wᵢ [sgn Dᵢ = s],   Dᵢ = mᵢ Δᵢ / pᵢ,   mᵢ ~ Bernoulli(pᵢ)
    pᵢ = density − ε + 2ε · rank,   rank of |Δᵢ| within its row, from 0 to 1

A vector is one row. Each number is divided by its own probability, as in the paper (mergekit scales each tensor
back to the same L1 norm).
Source: Deep et al. 2024, https://arxiv.org/abs/2406.11617
"""

from __future__ import annotations

from typing import Literal

from sdkit.merging.method import Delta, PerModel, Share, Strength, merge_method
from sdkit.merging.methods._consensus import agreed_mean
from sdkit.merging.methods._random import check_probabilities, dropped_by_rank
from sdkit.merging.methods._weights import per_model
from sdkit.merging.where import Where


@merge_method("row", least=1)
def della(
    *deltas: Delta,
    where: Where,
    alpha: Strength = 1.0,
    density: Share = 0.5,
    epsilon: Share = 0.15,
    weights: PerModel = (),
    majority: Literal["sum", "count"] = "sum",
) -> Delta:
    """α times the mean of what is left and agrees with the elected sign."""
    check_probabilities("della", density, epsilon)
    factors = per_model(weights, len(deltas), 1.0)
    kept = [dropped_by_rank(delta, index, where, density, epsilon) for index, delta in enumerate(deltas)]
    return agreed_mean(kept, factors, majority).mul_(alpha)
