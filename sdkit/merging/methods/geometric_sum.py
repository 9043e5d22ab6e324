"""Geometric mean of two models.

    Re(A^(1 − α) · B^α) = |A|^(1 − α) |B|^α cos(π ((1 − α) [A < 0] + α [B < 0]))

Source: sd-mecha's `geometric_sum`
"""

from __future__ import annotations

import math

from sdkit.merging.method import Share, Weight, merge_method


@merge_method()
def geometric_sum(a: Weight, b: Weight, *, alpha: Share = 0.5) -> Weight:
    """The real part of the complex geometric mean."""
    negative = (a < 0).to(a.dtype).mul_(1 - alpha).add_((b < 0).to(a.dtype), alpha=alpha)
    return a.abs_().pow_(1 - alpha).mul_(b.abs_().pow_(alpha)).mul_(negative.mul_(math.pi).cos_())
