"""Arcee Fusion: take from B only the changes that matter most.

    A + (B − A) [i ≥ median(i) + 1.5 (q₃ − q₁)],   i = |B − A| · KL(softmax(B) ‖ softmax(A)) row by row

The quartiles are exact ones of each tensor (mergekit samples a million numbers at random above that size).
Source: Arcee Fusion of mergekit
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdkit.merging.measures import order_statistics
from sdkit.merging.method import Tiles, Weight, merge_method

if TYPE_CHECKING:
    import torch

EPSILON = 1e-8


def threshold(tiles: Tiles) -> float:
    """The least importance of a change that is taken."""
    last = tiles.count - 1
    ranks = [int(0.25 * last), int(0.5 * last), int(0.75 * last)]
    [[low, middle, high]] = order_statistics(tiles, lambda a, b: [_importance(a, b)], [ranks])
    return middle + 1.5 * (high - low)


@merge_method("row", measure=threshold)
def fusion(a: Weight, b: Weight, *, measured: float) -> Weight:
    """A with the important changes of B."""
    return a.copy_(b.where(_importance(a, b) >= measured, a))


def _importance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    p, q = b.softmax(-1).add_(EPSILON), a.softmax(-1).add_(EPSILON)
    divergence = (p * (p / q).log_()).sum(-1, keepdim=True)
    # Rounding may leave a divergence of nothing a little below zero.
    return (b - a).abs_().mul_(divergence.clamp_(min=0.0)).float()
