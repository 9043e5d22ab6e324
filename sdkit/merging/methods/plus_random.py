"""A with noise.

    A + α N(0, 1)

Normalisations and output projections (`to_out`, `proj_out`, `norm` in their names) stay as they are. The draw depends
on the seed, the weight's name and the element alone.
Source: the `plus random` mode of supermerger
"""

from __future__ import annotations

from sdkit.merging.method import Strength, Weight, merge_method
from sdkit.merging.where import Where

KEPT = ("to_out", "proj_out", "norm")


@merge_method()
def plus_random(a: Weight, *, where: Where, alpha: Strength = 0.001) -> Weight:
    """A plus normally distributed numbers."""
    if any(word in where.name for word in KEPT):
        return a
    return a.add_(where.normal(0, a), alpha=alpha)
