"""Breadcrumbs with TIES: drop the smallest and the largest changes, then average what has the elected sign.

    base + α Σ wᵢ Δᵢ [sgn Δᵢ = s] / Σ wᵢ [sgn Δᵢ = s],   of each Δᵢ and tensor
    the ⌊γ n⌋ largest magnitudes are dropped, and the ⌊density · n⌋ next ones kept

Exact per tensor, and right for tensors smaller than 1/γ too (mergekit once set those to zero).
Source: Davari and Belilovsky 2023, https://arxiv.org/abs/2312.06795
"""

from __future__ import annotations

from typing import Literal

from sdkit.merging.method import Delta, PerModel, Share, Strength, merge_method
from sdkit.merging.methods._breadcrumbs import Band, bands, within
from sdkit.merging.methods._consensus import agreed_mean
from sdkit.merging.methods._weights import per_model


@merge_method(measure=bands, least=1)
def breadcrumbs_ties(
    *deltas: Delta,
    measured: list[Band],
    alpha: Strength = 1.0,
    density: Share = 0.9,
    gamma: Share = 0.01,
    weights: PerModel = (),
    majority: Literal["sum", "count"] = "sum",
) -> Delta:
    """α times the mean of the kept changes that agree with the elected sign."""
    factors = per_model(weights, len(deltas), 1.0)
    kept = [within(delta, band) for delta, band in zip(deltas, measured, strict=True)]
    return agreed_mean(kept, factors, majority).mul_(alpha)
