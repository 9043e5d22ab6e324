"""Spherical interpolation: along the arc between two models instead of the chord.

    (Â sin((1 − α) ω) + B̂ sin(α ω)) / sin ω · ((1 − α) ‖A‖ + α ‖B‖),   ω the angle between the whole tensors

With `norms=keep` the models enter with their own lengths, (A sin((1 − α) ω) + B sin(α ω)) / sin ω, as in mergekit.
Models that point the same way, or exactly opposite ways, are interpolated linearly.
Source: Shoemake 1985; sd-mecha (norms=interpolate), mergekit (norms=keep)
"""

from __future__ import annotations

from typing import Literal

from sdkit.merging.measures import Gram, gram
from sdkit.merging.method import Either, Strength, merge_method
from sdkit.merging.methods._sphere import arc


@merge_method("linear", measure=gram)
def slerp(
    a: Either,
    b: Either,
    *,
    measured: Gram,
    alpha: Strength = 0.5,
    norms: Literal["interpolate", "keep"] = "interpolate",
) -> Either:
    """The point at α of the arc from A to B."""
    one, other = arc(measured, alpha, interpolate_norms=norms == "interpolate")
    return one * a + other * b
