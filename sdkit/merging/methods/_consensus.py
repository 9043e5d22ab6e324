"""Merging differences from a base where the models agree on the sign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def weighted(deltas: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Σ wᵢ Δᵢ."""
    total = deltas[0] * weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total.add_(delta, alpha=weight)
    return total


def elected(deltas: Sequence[torch.Tensor], weights: Sequence[float], by: str) -> torch.Tensor:
    """The sign each place gets: that of Σ wᵢ Δᵢ (`by` sum; zero counts as +), or that of most models (`by` count)."""
    if by == "sum":
        return (weighted(deltas, weights) >= 0).to(deltas[0].dtype).mul_(2).sub_(1)
    return weighted([delta.sign() for delta in deltas], [_sign(weight) for weight in weights]).sign()


def agreed_mean(deltas: Sequence[torch.Tensor], weights: Sequence[float], by: str) -> torch.Tensor:
    """Σ wᵢ Δᵢ / Σ wᵢ over the models whose wᵢ Δᵢ has the elected sign; 0 where none has."""
    import torch

    sign = elected(deltas, weights, by)
    total, mass = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, weight in zip(deltas, weights, strict=True):
        agrees = (delta.sign().mul_(_sign(weight)) == sign).to(sign.dtype)
        total.addcmul_(delta, agrees, value=weight)
        mass.add_(agrees, alpha=weight)
    return total.div_(mass.masked_fill_(mass.abs() < 1e-8, 1.0))


def _sign(weight: float) -> float:
    return math.copysign(1.0, weight)
