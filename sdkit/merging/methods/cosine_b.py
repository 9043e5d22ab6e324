"""Take B where its columns, and its tensors, differ from A's, A where they point the same way.

    (1 − k) A + k B,   k = 1 − clamp((c + C) / 2 − α, 0, 1),   c of each column, C of the whole tensor

With `scale=model`, as in supermerger, (c + C) / 2 is stretched over the range it has in the whole model (without the
outermost percent), which is read once more.
Source: sd-mecha's `add_cosine_b`, after supermerger's cosineB
"""

from __future__ import annotations

from typing import Literal

from sdkit.merging.measures import column_cosines
from sdkit.merging.method import Strength, Tensor, Tiles, Weight, merge_method
from sdkit.merging.methods._cosines import Spread, model_spread, share_of_b
from sdkit.merging.whole import Whole


def cosines(tiles: Tiles) -> Tensor:
    """The mean of each column's cosine and the whole tensor's."""
    each, whole = column_cosines(tiles)
    return (each + whole) / 2


def spread(whole: Whole, scale: str) -> Spread | None:
    """The range over which cosines are stretched."""
    return model_spread(whole, averaged=True) if scale == "model" else None


@merge_method("row", measure=cosines, survey=spread)
def cosine_b(
    a: Weight,
    b: Weight,
    *,
    measured: Tensor,
    surveyed: Spread | None,
    alpha: Strength = 0.5,
    scale: Literal["tensor", "model"] = "tensor",
) -> Weight:
    """A and B, mixed column by column."""
    return a.lerp_(b, share_of_b(measured, surveyed, alpha).to(a.dtype).expand_as(a))
