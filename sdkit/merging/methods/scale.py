"""One model times a number.

    α A

Source: the `self` mode of supermerger
"""

from __future__ import annotations

from sdkit.merging.method import Strength, Weight, merge_method


@merge_method("linear")
def scale(a: Weight, *, alpha: Strength = 1.0) -> Weight:
    """α A."""
    return alpha * a
