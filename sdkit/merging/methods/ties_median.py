"""TIES, whose mean is the geometric median: one outlier among the models counts for little.

    base + α argmin Σ ‖x − Δᵢ [sgn Δᵢ = s]‖

Δᵢ and s are as for `ties`, the median as for `geometric-median`, of whole tensors.
Source: Yadav et al. 2023, https://arxiv.org/abs/2306.01708; sd-mecha's `ties_sum_extended`
"""

from __future__ import annotations

from typing import Annotated, Literal

from sdkit.merging.method import Delta, Positive, Range, Share, Strength, merge_method
from sdkit.merging.methods._agreeing import Agreement, agreeing, agreement
from sdkit.merging.methods._consensus import weighted
from sdkit.merging.methods.geometric_median import weiszfeld


@merge_method(measure=agreement)
def ties_median(
    *deltas: Delta,
    measured: Agreement,
    alpha: Strength = 1.0,
    density: Share = 0.2,
    majority: Literal["sum", "count"] = "sum",
    iterations: Annotated[int, Range(1, 10_000)] = 100,
    epsilon: Positive = 1e-6,
    tolerance: Positive = 1e-12,
) -> Delta:
    """α times the Weiszfeld point of the changes that agree."""
    parts = [1 / len(deltas)] * len(deltas)
    found = weiszfeld(measured.products, parts, iterations, epsilon, tolerance)
    return weighted(agreeing(deltas, measured.cuts, majority), found).mul_(alpha)
