"""Which magnitudes breadcrumbs keep: neither the smallest nor the few largest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdkit.merging.measures import count_models, magnitude, order_statistics
from sdkit.merging.method import Tiles

if TYPE_CHECKING:
    import torch

Band = tuple[float, float]


def bands(tiles: Tiles, density: float, gamma: float) -> list[Band]:
    """The smallest and the largest magnitude that is kept of each model.

    ⌊density · n⌋ numbers are kept, and ⌊γ · n⌋ larger ones dropped; fewer of those where density + γ exceeds 1.
    """
    models, count = count_models(tiles), tiles.count
    if density >= 1.0:
        return [(0.0, float("inf"))] * models
    kept = max(1, int(density * count))
    low = max(0, count - kept - int(gamma * count))
    ranks = [[low, low + kept - 1]] * models
    found = order_statistics(tiles, lambda *values: [magnitude(value) for value in values], ranks)
    return [(first, last) for first, last in found]


def within(delta: torch.Tensor, band: Band) -> torch.Tensor:
    """`delta`, with everything outside the band set to 0. Overwrites `delta`."""
    size = magnitude(delta)
    return delta.mul_((size >= band[0]) & (size <= band[1]))
