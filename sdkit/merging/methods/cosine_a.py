"""Take B where its columns differ from A's, A where they point the same way.

    (1 − k) A + k B,   k = 1 − clamp(c − α, 0, 1),   c the cosine of each column (along the first dimension)

A vector is one column. With `scale=model`, as in supermerger, c is averaged with the mean of its tensor's columns and
stretched over the range that cosines have in the whole model (without the outermost percent), which is read once more.
Source: sd-mecha's `add_cosine_a`, after supermerger's cosineA
"""

from __future__ import annotations

from typing import Literal

from sdkit.merging.measures import column_cosines
from sdkit.merging.method import Strength, Tensor, Tiles, Weight, merge_method
from sdkit.merging.methods._cosines import Spread, model_spread, share_of_b
from sdkit.merging.whole import Whole


def columns(tiles: Tiles, scale: str) -> Tensor:
    """The cosine of each column."""
    each = column_cosines(tiles)[0]
    return (each + each.mean()) / 2 if scale == "model" else each


def spread(whole: Whole, scale: str) -> Spread | None:
    """The range over which cosines are stretched."""
    return model_spread(whole, averaged=False) if scale == "model" else None


@merge_method("row", measure=columns, survey=spread)
def cosine_a(
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
