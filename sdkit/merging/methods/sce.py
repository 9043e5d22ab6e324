"""SCE: select the places where the models differ most, weigh each model by its energy there, agree on the sign.

    base + Σ wᵢ Δᵢ [sgn Δᵢ = s] / Σ wᵢ [sgn Δᵢ = s],   s = sgn Σ Δᵢ,   wᵢ = mean(Δᵢ²) / Σ mean(Δⱼ²)
    after keeping only the `density` of the places with the largest variance over the models

Source: Wan et al. 2024, FuseChat, https://arxiv.org/abs/2408.07990
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdkit.merging.measures import order_statistics
from sdkit.merging.method import Delta, Share, Strength, Tiles, merge_method
from sdkit.merging.methods._consensus import elected, weighted

if TYPE_CHECKING:
    import torch

Selection = tuple[float, list[float]]


def selection(tiles: Tiles, density: float) -> Selection:
    """The least variance of a place that is selected, and each model's share of the energy at those places."""
    cut = _cut(tiles, density)
    energies: list[float] = []
    for deltas in tiles:
        places = _variance(deltas) >= cut
        here = [float(delta.mul_(places).double().square().sum()) for delta in deltas]
        energies = [x + y for x, y in zip(energies, here, strict=True)] if energies else here
    total = sum(energies)
    return cut, [energy / total if total > 0.0 else 1 / len(energies) for energy in energies]


@merge_method(measure=selection)
def sce(*deltas: Delta, measured: Selection, alpha: Strength = 1.0, density: Share = 1.0) -> Delta:
    """α times the weighted mean of the selected changes that agree with the sign of their sum."""
    import torch

    cut, weights = measured
    places = _variance(deltas) >= cut
    chosen = [delta.mul_(places) for delta in deltas]
    sign = elected(chosen, [1.0] * len(chosen), "sum")
    agreeing = [(delta.sign() == sign).to(sign.dtype) for delta in chosen]
    mass = weighted(agreeing, weights)
    total = torch.zeros_like(sign)
    for delta, agrees, weight in zip(chosen, agreeing, weights, strict=True):
        total.addcmul_(delta, agrees, value=weight)
    return total.div_(mass.clamp_(min=1e-6)).mul_(alpha)


def _cut(tiles: Tiles, density: float) -> float:
    """The smallest of the largest ⌊density · m⌋ variances, m of which are not zero."""
    if density >= 1.0:
        return 0.0
    nonzero = sum(int((_variance(deltas) > 0).sum()) for deltas in tiles)
    kept = int(density * nonzero)
    if kept == 0:
        return float("inf")
    [[cut]] = order_statistics(tiles, lambda *deltas: [_variance(deltas)], [[tiles.count - kept]])
    return cut


def _variance(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Variance over the models at each place, in float32; plain sums, so that equal models give exactly 0."""
    mean = weighted(deltas, [1.0] * len(deltas)).div_(len(deltas))
    return (sum((delta - mean).square_() for delta in deltas) / len(deltas)).float()  # type: ignore[union-attr]
