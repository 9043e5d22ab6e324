"""Dropping changes at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdkit.core.errors import UsageError
from sdkit.merging.where import Where

if TYPE_CHECKING:
    import torch


def dropped(delta: torch.Tensor, model: int, where: Where, density: float) -> torch.Tensor:
    """`delta` with each number kept with probability `density` and divided by it, else 0. Overwrites `delta`."""
    import torch

    if density >= 1.0:
        return delta
    if density <= 0.0:
        return delta.zero_()
    drawn = where.uniform(model, delta)
    return delta.mul_(torch.lt(drawn, density, out=drawn)).div_(density)


def check_probabilities(method: str, density: float, epsilon: float) -> None:
    """Refuse what `dropped_by_rank` cannot do.

    Raises:
        UsageError: a probability would not lie between 0 and 1.
    """
    if density < 1.0 and not epsilon < min(density, 1 - density):
        raise UsageError(f"{method}: density ± epsilon = {density:g} ± {epsilon:g} leaves the range 0 … 1")


def dropped_by_rank(delta: torch.Tensor, model: int, where: Where, density: float, epsilon: float) -> torch.Tensor:
    """DELLA's MagPrune: as `dropped`, the probability rising with the magnitude's rank within its row.

    Args:
        delta: [rows, columns].
        model: number of the model, for the draw.
        where: the tile's place.
        density: mean probability.
        epsilon: how far the probability lies below and above it for the smallest and the largest number of a row.
    """
    if density >= 1.0:
        return delta
    columns = delta.shape[1]
    rank = delta.abs().argsort(dim=1, stable=True).argsort(dim=1).to(delta.dtype)
    probability = rank.div_(max(columns - 1, 1)).mul_(2 * epsilon).add_(density - epsilon)
    return delta.mul_(where.uniform(model, delta) < probability).div_(probability)
