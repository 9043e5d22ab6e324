"""DARE with TIES: drop changes at random, scale up the rest, average the models that agree with the elected sign.

    base + α Σ wᵢ Dᵢ [sgn Dᵢ = s] / Σ wᵢ [sgn Dᵢ = s],   Dᵢ = mᵢ Δᵢ / density,   mᵢ ~ Bernoulli(density)

The sign s as in `ties`, the draw as in `dare_linear`.
Source: Yu et al. 2024, https://arxiv.org/abs/2311.03099; Yadav et al. 2023, https://arxiv.org/abs/2306.01708
"""

from __future__ import annotations

from typing import Literal

from sdkit.merging.method import Delta, PerModel, Share, Strength, merge_method
from sdkit.merging.methods._consensus import agreed_mean
from sdkit.merging.methods._random import dropped
from sdkit.merging.methods._weights import per_model
from sdkit.merging.where import Where


@merge_method(least=1)
def dare_ties(
    *deltas: Delta,
    where: Where,
    alpha: Strength = 1.0,
    density: Share = 0.5,
    weights: PerModel = (),
    majority: Literal["sum", "count"] = "sum",
) -> Delta:
    """α times the mean of what is left and agrees with the elected sign."""
    kept = [dropped(delta, index, where, density) for index, delta in enumerate(deltas)]
    return agreed_mean(kept, per_model(weights, len(deltas), 1.0), majority).mul_(alpha)
