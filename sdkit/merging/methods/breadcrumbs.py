"""Breadcrumbs: drop the smallest and the few largest changes of each model, and add the rest to the base.

    base + α Σ wᵢ Δᵢ,   of each Δᵢ and tensor
    the ⌊γ n⌋ largest magnitudes are dropped, and the ⌊density · n⌋ next ones kept

Exact per tensor, and right for tensors smaller than 1/γ too (mergekit once set those to zero).
Source: Davari and Belilovsky 2023, https://arxiv.org/abs/2312.06795
"""

from __future__ import annotations

from sdkit.merging.method import Delta, PerModel, Share, Strength, merge_method
from sdkit.merging.methods._breadcrumbs import Band, bands, within
from sdkit.merging.methods._consensus import weighted
from sdkit.merging.methods._weights import per_model


@merge_method(measure=bands, least=1)
def breadcrumbs(
    *deltas: Delta,
    measured: list[Band],
    alpha: Strength = 1.0,
    density: Share = 0.9,
    gamma: Share = 0.01,
    weights: PerModel = (),
) -> Delta:
    """α Σ wᵢ of what is kept of each difference."""
    factors = per_model(weights, len(deltas), 1.0)
    kept = [within(delta, band) for delta, band in zip(deltas, measured, strict=True)]
    return weighted(kept, factors).mul_(alpha)
