"""What B learnt since C, added to A, never leaving the range between A and B.

    min(max(A + α (B − C), min(A, B)), max(A, B))

Source: the `clamp` option of add_difference in sd-mecha
"""

from __future__ import annotations

from sdkit.merging.method import Strength, Weight, merge_method


@merge_method()
def add_difference_clamped(a: Weight, b: Weight, c: Weight, *, alpha: Strength = 1.0) -> Weight:
    """A + α (B − C), kept between A and B."""
    import torch

    low, high = torch.minimum(a, b), torch.maximum(a, b)
    return a.add_(b.sub_(c), alpha=alpha).clamp_(low, high)
