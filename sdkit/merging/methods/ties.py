"""TIES: trim each model's small changes, elect a sign for each number, average the models that agree with it.

    base + α Σ wᵢ Δᵢ [sgn Δᵢ = s] / Σ wᵢ [sgn Δᵢ = s],   Δᵢ trimmed to its largest ⌊density · n⌋ magnitudes per tensor

`majority=sum` elects s = sgn Σ wᵢ Δᵢ, where zero counts as + (the paper, mergekit); `majority=count` the sign most
models have (sd-mecha's default). Numbers as large as the smallest kept one are all kept: no choice among equals.
Source: Yadav et al. 2023, https://arxiv.org/abs/2306.01708
"""

from __future__ import annotations

from typing import Literal

from sdkit.merging.measures import count_models, thresholds
from sdkit.merging.method import Delta, PerModel, Share, Strength, Tiles, merge_method
from sdkit.merging.methods._consensus import agreed_mean, trimmed
from sdkit.merging.methods._weights import per_model


def cuts(tiles: Tiles, density: float) -> list[float]:
    """The smallest magnitude that is kept of each model."""
    return thresholds(tiles, density, count_models(tiles))


@merge_method(measure=cuts, least=1)
def ties(
    *deltas: Delta,
    measured: list[float],
    alpha: Strength = 1.0,
    density: Share = 0.2,
    weights: PerModel = (),
    majority: Literal["sum", "count"] = "sum",
) -> Delta:
    """α times the mean of the trimmed changes that agree with the elected sign."""
    factors = per_model(weights, len(deltas), 1.0)
    large = [trimmed(delta, cut) for delta, cut in zip(deltas, measured, strict=True)]
    return agreed_mean(large, factors, majority).mul_(alpha)
