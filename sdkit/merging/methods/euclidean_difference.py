"""Root of the mean square of two directions, as long as their weighted sum.

    C + s · √((1 − α) â² + α b̂²) · ‖(1 − α) A + α B − C‖,   â = (A − C) / ‖A − C‖, b̂ = (B − C) / ‖B − C‖,
    s = sgn((1 − α) A + α B − C)

Source: meh's `euclidean_add_difference`
"""

from __future__ import annotations

import math

from sdkit.merging.measures import Gram, gram, norm
from sdkit.merging.method import Share, Weight, merge_method


@merge_method(measure=gram)
def euclidean_difference(a: Weight, b: Weight, c: Weight, *, measured: Gram, alpha: Share = 0.5) -> Weight:
    """C plus the signed root of the mean square."""
    import torch

    lengths = norm((1.0, 0.0, -1.0), measured), norm((0.0, 1.0, -1.0), measured)
    target = norm((1 - alpha, alpha, -1.0), measured)
    a, b = a.sub_(c), b.sub_(c)
    signed = a.lerp(b, alpha)
    # Both directions have the length 1, so the root has it too; without one of them it is shorter.
    shares = [share / length**2 if length else 0.0 for share, length in zip((1 - alpha, alpha), lengths, strict=True)]
    length = math.sqrt(math.fsum(share * size**2 for share, size in zip(shares, lengths, strict=True)))
    root = a.square_().mul_(shares[0]).add_(b.square_(), alpha=shares[1]).sqrt_()
    return c.add_(torch.copysign(root, signed), alpha=target / length if length else 0.0)
