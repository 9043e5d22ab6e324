"""As `cosine_a`, the column's cosine averaged with that of the whole tensor.

    (1 − k) A + k B,   k = 1 − clamp((c + C) / 2 − α, 0, 1),   c of each column, C of the whole tensor

Source: sd-mecha's `add_cosine_b`, after supermerger's cosineB
"""

from __future__ import annotations

from sdkit.merging.measures import column_cosines
from sdkit.merging.method import Strength, Tensor, Tiles, Weight, merge_method


def cosines(tiles: Tiles) -> Tensor:
    """The mean of each column's cosine and the whole tensor's."""
    each, whole = column_cosines(tiles)
    return (each + whole) / 2


@merge_method("row", measure=cosines)
def cosine_b(a: Weight, b: Weight, *, measured: Tensor, alpha: Strength = 0.5) -> Weight:
    """A and B, mixed column by column."""
    share = (measured - alpha).clamp_(0, 1).neg_().add_(1).to(a.dtype)
    return a.lerp_(b, share.expand_as(a))
