"""Spherical interpolation of each row by itself, by weights; every row keeps its own length.

    (a sin((1 − t) ω) + b sin(t ω)) / sin ω,   t = w₂ / (w₁ + w₂), ½ when the weights sum to 0

a and b are rows of A and B (what feeds one output), ω the angle between them; rows that point the same or the opposite
way are mixed in a straight line. With a base the arcs run between the differences from it.
Source: NuSLERP of mergekit, `nuslerp_row_wise`
"""

from __future__ import annotations

from sdkit.merging.method import Either, PerModel, merge_method
from sdkit.merging.methods._sphere import PARALLEL
from sdkit.merging.methods._weights import per_model


@merge_method("row")
def nuslerp_rows(a: Either, b: Either, *, weights: PerModel = ()) -> Either:
    """The point at t of the arc between each row of A and the same of B."""
    import torch

    first, second = per_model(weights, 2, 1.0)
    total = first + second
    t = second / total if abs(total) > 1e-6 else 0.5
    lengths = [torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64) for rows in (a, b)]
    one, other = (rows / length.clamp(min=1e-30) for rows, length in zip((a, b), lengths, strict=True))
    # Kahan's angle, exact for small ones too.
    angle = 2 * torch.atan2(*(torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (one - other, one + other)))
    straight = (angle < PARALLEL) | (angle > torch.pi - PARALLEL) | (lengths[0] == 0) | (lengths[1] == 0)
    sine = torch.where(straight, 1.0, angle.sin())
    near = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / sine).to(a.dtype)
    far = torch.where(straight, t, (t * angle).sin() / sine).to(a.dtype)
    return a.mul_(near).add_(b.mul_(far))
