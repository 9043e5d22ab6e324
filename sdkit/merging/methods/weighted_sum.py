"""Weighted sum of two models.

    (1 − α) A + α B

At α = 0 and α = 1 the weights are copied bit for bit, whatever the other model holds.
Source: Izmailov et al. 2018, https://arxiv.org/abs/1803.05407
"""

from __future__ import annotations

from sdkit.merging.method import Either, Strength, merge_method


@merge_method("linear")
def weighted_sum(a: Either, b: Either, *, alpha: Strength = 0.5) -> Either:
    """(1 − α) A + α B."""
    return (1 - alpha) * a + alpha * b
