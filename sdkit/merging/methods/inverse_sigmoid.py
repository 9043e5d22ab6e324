"""Weighted sum along the inverse of a smooth step: fast near the ends, slow in the middle.

    (1 − t) A + t B,   t = ½ − sin(asin(1 − 2α) / 3)

Source: the `inverse sigmoid` mode of older Stable Diffusion web UIs (AUTOMATIC1111, before 2022-11)
"""

from __future__ import annotations

import math

from sdkit.merging.method import Either, Share, merge_method


@merge_method("linear")
def inverse_sigmoid(a: Either, b: Either, *, alpha: Share = 0.5) -> Either:
    """Weighted sum at ½ − sin(asin(1 − 2α) / 3)."""
    t = 0.5 - math.sin(math.asin(1 - 2 * alpha) / 3) if 0.0 < alpha < 1.0 else alpha
    return (1 - t) * a + t * b
