"""Weighted sum along a smooth step: slow near the ends, fast in the middle.

    (1 − t) A + t B,   t = α² (3 − 2α)

Source: the `sigmoid` mode of older Stable Diffusion web UIs (AUTOMATIC1111, before 2022-11)
"""

from __future__ import annotations

from sdkit.merging.method import Either, Share, merge_method


@merge_method("linear")
def sigmoid(a: Either, b: Either, *, alpha: Share = 0.5) -> Either:
    """Weighted sum at α² (3 − 2α)."""
    t = alpha * alpha * (3 - 2 * alpha)
    return (1 - t) * a + t * b
