"""Task vectors, added to their base.

    base + α Σ wᵢ (Mᵢ − base),   divided by Σ wᵢ with `normalize`

The weights are all 1 unless given.
Source: Ilharco et al. 2023, editing models with task arithmetic, https://arxiv.org/abs/2212.04089
"""

from __future__ import annotations

from sdkit.merging.method import Delta, PerModel, Strength, merge_method
from sdkit.merging.methods._weights import per_model


@merge_method("linear", least=1)
def task_arithmetic(*deltas: Delta, alpha: Strength = 1.0, weights: PerModel = (), normalize: bool = False) -> Delta:
    """α Σ wᵢ Δᵢ."""
    factors = per_model(weights, len(deltas), 1.0)
    scale = alpha / sum(factors) if normalize else alpha
    return sum(scale * factor * delta for factor, delta in zip(factors, deltas, strict=True))  # type: ignore[return-value]
