"""What B learnt since C, added where A has not learnt the same.

    A + α m (B − C),   m = 2 |A − B| / (|A − B| + |A + B − 2C|), and 0 where both are 0

Source: sd-mecha's `add_opposite_mask`, used as the strength of add_difference
"""

from __future__ import annotations

from sdkit.merging.method import Strength, Weight, merge_method


@merge_method()
def add_opposite(a: Weight, b: Weight, c: Weight, *, alpha: Strength = 1.0) -> Weight:
    """A + α m (B − C)."""
    apart = (a - b).abs_()
    together = (a + b).sub_(c, alpha=2).abs_().add_(apart)
    mask = apart.div_(together).nan_to_num_(nan=0.0)
    return a.addcmul_(b.sub_(c), mask, value=2 * alpha)
