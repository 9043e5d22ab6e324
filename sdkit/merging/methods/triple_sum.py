"""Weighted sum of three models.

    (1 − α − β) A + α B + β C

Source: supermerger
"""

from __future__ import annotations

from sdkit.merging.method import Either, Strength, merge_method


@merge_method("linear")
def triple_sum(a: Either, b: Either, c: Either, *, alpha: Strength = 0.25, beta: Strength = 0.25) -> Either:
    """(1 − α − β) A + α B + β C."""
    return (1 - alpha - beta) * a + alpha * b + beta * c
