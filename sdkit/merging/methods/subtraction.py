"""A without its share of B: undoes a weighted sum.

    (A − αβ B) / (1 − αβ)

Source: `weighted_subtraction` of meh
"""

from __future__ import annotations

from sdkit.core.errors import UsageError
from sdkit.merging.method import Share, Weight, merge_method


@merge_method("linear")
def subtraction(a: Weight, b: Weight, *, alpha: Share = 0.5, beta: Share = 1.0) -> Weight:
    """(A − αβ B) / (1 − αβ)."""
    share = alpha * beta
    if share == 1.0:
        raise UsageError("subtraction: alpha · beta = 1 leaves nothing of A", "use a smaller alpha")
    return (a - share * b) / (1 - share)
