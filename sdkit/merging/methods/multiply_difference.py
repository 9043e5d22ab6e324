"""Geometric mean of two differences, with the sign of their arithmetic mean.

    C + sgn((1 − β) A + β B − C) · |A − C|^(1 − α) · |B − C|^α

Source: meh
"""

from __future__ import annotations

from sdkit.merging.method import Share, Weight, merge_method


@merge_method()
def multiply_difference(a: Weight, b: Weight, c: Weight, *, alpha: Share = 0.5, beta: Share = 0.5) -> Weight:
    """C plus the geometric mean."""
    a, b = a.sub_(c), b.sub_(c)
    sign = a.lerp(b, beta).sign_()
    return c.addcmul_(sign, a.abs_().pow_(1 - alpha).mul_(b.abs_().pow_(alpha)))
