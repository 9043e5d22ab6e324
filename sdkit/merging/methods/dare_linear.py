"""DARE: drop changes at random, scale up the rest, add them to the base.

    base + α Σ wᵢ mᵢ Δᵢ / density,   mᵢ ~ Bernoulli(density)

Scaled by 1/density as in the paper and peft; mergekit scales each tensor back to the same L1 norm. The draw
depends on the seed, the weight's name and the model alone.
Source: Yu et al. 2024, https://arxiv.org/abs/2311.03099
"""

from __future__ import annotations

from sdkit.merging.method import Delta, PerModel, Share, Strength, merge_method
from sdkit.merging.methods._consensus import weighted
from sdkit.merging.methods._random import dropped
from sdkit.merging.methods._weights import per_model
from sdkit.merging.where import Where


@merge_method(least=1)
def dare_linear(
    *deltas: Delta, where: Where, alpha: Strength = 1.0, density: Share = 0.5, weights: PerModel = ()
) -> Delta:
    """α Σ wᵢ of what is left of each difference."""
    kept = [dropped(delta, index, where, density) for index, delta in enumerate(deltas)]
    return weighted(kept, per_model(weights, len(deltas), 1.0)).mul_(alpha)
