"""Add difference where A and B differ, a weighted sum where they are alike.

    (1 − σ) (A + α (B − C)) + σ ((1 − α/2) A + (α/2) B),   σ = β (A B / max(|A|, |B|)² + 1) / 2, and 0/0 → 0

Source: meh's `similarity_add_difference`
"""

from __future__ import annotations

from sdkit.merging.method import Share, Strength, Weight, merge_method


@merge_method()
def similarity_difference(a: Weight, b: Weight, c: Weight, *, alpha: Strength = 1.0, beta: Share = 1.0) -> Weight:
    """Between add_difference and a weighted sum, number by number."""
    import torch

    largest = torch.maximum(a.abs(), b.abs())
    alike = (a / largest).mul_(b / largest).add_(1).mul_(beta / 2).nan_to_num_(nan=0.0)
    added = torch.add(a, b.sub(c), alpha=alpha)
    return added.lerp_(a.lerp_(b, alpha / 2), alike)
