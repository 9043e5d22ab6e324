"""What B learnt since C, added to A.

    A + α (B − C)

(diffusers' community script uses 1 − α in its place.)
Source: AUTOMATIC1111's checkpoint merger; Ilharco et al. 2023, https://arxiv.org/abs/2212.04089
"""

from __future__ import annotations

from sdkit.merging.method import Strength, Weight, merge_method


@merge_method("linear")
def add_difference(a: Weight, b: Weight, c: Weight, *, alpha: Strength = 1.0) -> Weight:
    """A + α (B − C)."""
    return a + alpha * (b - c)
