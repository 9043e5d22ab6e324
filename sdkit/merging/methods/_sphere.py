"""Arcs and means on spheres, as coefficients of the models: everything happens within the models' span."""

from __future__ import annotations

import math

from sdkit.merging.measures import Gram, norm

PARALLEL = 1e-6  # radians; below this arc and chord agree to 1e-12


def arc(products: Gram, alpha: float, *, interpolate_norms: bool) -> tuple[float, float]:
    """Coefficients of two models at `alpha` of the arc between them."""
    lengths = math.sqrt(products[0][0]), math.sqrt(products[1][1])
    angle = angle_between(products)
    if not PARALLEL < angle < math.pi - PARALLEL:
        return 1 - alpha, alpha
    one = math.sin((1 - alpha) * angle) / math.sin(angle)
    other = math.sin(alpha * angle) / math.sin(angle)
    if not interpolate_norms:
        return one, other
    length = (1 - alpha) * lengths[0] + alpha * lengths[1]
    return one * length / lengths[0], other * length / lengths[1]


def angle_between(products: Gram) -> float:
    """The angle between two models, exact for small ones too; 0 when one of them is zero."""
    first, second = math.sqrt(products[0][0]), math.sqrt(products[1][1])
    if first == 0.0 or second == 0.0:
        return 0.0
    # Kahan: 2 atan2(‖â − b̂‖, ‖â + b̂‖)
    apart = norm((1 / first, -1 / second), products)
    together = norm((1 / first, 1 / second), products)
    return 2 * math.atan2(apart, together)
