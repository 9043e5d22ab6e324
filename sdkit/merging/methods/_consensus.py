"""Merging differences from a base where the models agree on the sign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdkit.merging.measures import magnitude

if TYPE_CHECKING:
    import torch


def weighted(deltas: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Σ wᵢ Δᵢ."""
    total = deltas[0] * weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total.add_(delta, alpha=weight)
    return total


def trimmed(delta: torch.Tensor, cut: float) -> torch.Tensor:
    """A change without its numbers smaller than `cut`. Overwrites `delta`."""
    import torch

    size = magnitude(delta)
    return delta.mul_(torch.ge(size, cut, out=size))


def elected(deltas: Sequence[torch.Tensor], weights: Sequence[float], by: str) -> torch.Tensor:
    """The sign each place gets: that of Σ wᵢ Δᵢ (`by` sum; zero counts as +), or that of most models (`by` count)."""
    import torch

    if by == "sum":
        total = weighted(deltas, weights)
        return torch.ge(total, 0, out=total).mul_(2).sub_(1)
    return weighted([delta.sign() for delta in deltas], [_sign(weight) for weight in weights]).sign()


def agreed_mean(deltas: Sequence[torch.Tensor], weights: Sequence[float], by: str) -> torch.Tensor:
    """Σ wᵢ Δᵢ / Σ wᵢ over the models whose wᵢ Δᵢ has the elected sign; 0 where none has."""
    import torch

    sign = elected(deltas, weights, by)
    total, mass, along = torch.zeros_like(sign), torch.zeros_like(sign), torch.empty_like(sign)
    for delta, weight in zip(deltas, weights, strict=True):
        torch.mul(delta, sign, out=along)
        if weight < 0:
            along.neg_()
        along.clamp_min_(0)  # how far it goes the elected way
        total.add_(along, alpha=abs(weight))
        mass.add_(along.sign_(), alpha=weight)
    # Masks of booleans would take several times as long as the arithmetic.
    nothing = torch.lt(mass.abs(), 1e-8, out=along)
    return total.mul_(sign).div_(mass.mul_(1 - nothing).add_(nothing))


def _sign(weight: float) -> float:
    return math.copysign(1.0, weight)
