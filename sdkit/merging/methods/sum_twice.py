"""Two weighted sums, one after the other.

    (1 − β) ((1 − α) A + α B) + β C

Source: supermerger
"""

from __future__ import annotations

from sdkit.merging.method import Either, Strength, merge_method


@merge_method("linear")
def sum_twice(a: Either, b: Either, c: Either, *, alpha: Strength = 0.25, beta: Strength = 0.25) -> Either:
    """(1 − β) ((1 − α) A + α B) + β C."""
    return (1 - beta) * ((1 - alpha) * a + alpha * b) + beta * c
