"""Take B where it is near A; where it is far, move towards it by `distance` at most.

    A + w (B − A),   w = min(1, distance / |A − B|)

Source: NearSwap of mergekit
"""

from __future__ import annotations

from typing import Annotated

from sdkit.merging.method import Range, Weight, merge_method


@merge_method()
def nearswap(a: Weight, b: Weight, *, distance: Annotated[float, Range(0.0)] = 1e-3) -> Weight:
    """A moved towards B, nowhere by more than the distance."""
    return a.add_(b.sub_(a).clamp_(-distance, distance))
