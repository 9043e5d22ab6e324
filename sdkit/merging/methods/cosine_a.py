"""Take B where its columns differ from A's, A where they point the same way.

    (1 − k) A + k B,   k = 1 − clamp(c − α, 0, 1),   c the cosine of each column (along the first dimension)

A vector is one column. (supermerger stretches c over the range it has in the whole model, and exchanges A and B.)
Source: sd-mecha's `add_cosine_a`, after supermerger's cosineA
"""

from __future__ import annotations

from sdkit.merging.measures import column_cosines
from sdkit.merging.method import Strength, Tensor, Tiles, Weight, merge_method


def columns(tiles: Tiles) -> Tensor:
    """The cosine of each column."""
    return column_cosines(tiles)[0]


@merge_method("row", measure=columns)
def cosine_a(a: Weight, b: Weight, *, measured: Tensor, alpha: Strength = 0.5) -> Weight:
    """A and B, mixed column by column."""
    share = (measured - alpha).clamp_(0, 1).neg_().add_(1).to(a.dtype)
    return a.lerp_(b, share.expand_as(a))
