"""Spherical interpolation by weights; every model keeps its own length.

    (A sin((1 − t) ω) + B sin(t ω)) / sin ω,   t = w₂ / (w₁ + w₂), ½ when the weights sum to 0

With a base the arc runs between the differences from it. The angle is that of the whole tensors (mergekit's
`nuslerp_flatten`).
Source: NuSLERP of mergekit
"""

from __future__ import annotations

from sdkit.merging.measures import Gram, gram
from sdkit.merging.method import Either, PerModel, merge_method
from sdkit.merging.methods._sphere import arc
from sdkit.merging.methods._weights import per_model


@merge_method("linear", measure=gram)
def nuslerp(a: Either, b: Either, *, measured: Gram, weights: PerModel = ()) -> Either:
    """The point at t of the arc from A to B."""
    first, second = per_model(weights, 2, 1.0)
    total = first + second
    one, other = arc(measured, second / total if abs(total) > 1e-6 else 0.5, interpolate_norms=False)
    return one * a + other * b
