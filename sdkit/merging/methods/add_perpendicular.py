"""What B learnt since C, without what A has learnt already.

    A + α (b − a ⟨a, b⟩ / ‖a‖²),   a = A − C, b = B − C

Source: sd-mecha's `add_perpendicular`
"""

from __future__ import annotations

from sdkit.merging.measures import Gram, gram, inner
from sdkit.merging.method import Strength, Weight, merge_method


@merge_method("linear", measure=gram)
def add_perpendicular(a: Weight, b: Weight, c: Weight, *, measured: Gram, alpha: Strength = 1.0) -> Weight:
    """A plus the part of B − C perpendicular to A − C."""
    known, new = (1.0, 0.0, -1.0), (0.0, 1.0, -1.0)
    length = inner(known, measured, known)
    shared = inner(known, measured, new) / length if length > 0.0 else 0.0
    return a + alpha * ((b - c) - shared * (a - c))
