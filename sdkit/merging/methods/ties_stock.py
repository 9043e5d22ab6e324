"""TIES, whose mean is shortened as far as the models disagree.

    base + α t Σ Δᵢ [sgn Δᵢ = s] / Σ [sgn Δᵢ = s],   t = n cos θ / (1 + (n − 1) cos θ)

Δᵢ and s are as for `ties`; cos θ is the mean cosine over all pairs of what is left of the differences, of whole
tensors, as for `model-stock`. (sd-mecha's `ties_sum_extended` applies t where `apply_stock` is off, and to neighbours.)
Source: Yadav et al. 2023, https://arxiv.org/abs/2306.01708; Jang et al. 2024, https://arxiv.org/abs/2403.19522
"""

from __future__ import annotations

from typing import Literal

from sdkit.merging.method import Delta, Share, Strength, merge_method
from sdkit.merging.methods._agreeing import Agreement, agreeing, agreement
from sdkit.merging.methods.model_stock import stock_share


@merge_method(measure=agreement)
def ties_stock(
    *deltas: Delta,
    measured: Agreement,
    alpha: Strength = 1.0,
    density: Share = 0.2,
    majority: Literal["sum", "count"] = "sum",
) -> Delta:
    """α t times the mean of the changes that agree."""
    kept = agreeing(deltas, measured.cuts, majority)
    count = sum((delta != 0).to(delta.dtype) for delta in kept)
    return sum(kept).div_(count.clamp_(min=1)).mul_(alpha * stock_share(measured.products))  # type: ignore[union-attr]
