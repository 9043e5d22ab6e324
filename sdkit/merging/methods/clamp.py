"""Keep A within the range other models span.

    min(max(A, low), high),   low and high the smallest and the largest of the other models

`stiffness` s narrows the range towards the other models' mean m: high ← (1 − s) high + s · (smallest of them ≥ m), low
likewise.
Source: sd-mecha's `clamp`
"""

from __future__ import annotations

from functools import reduce

from sdkit.merging.method import Share, Tensor, Weight, merge_method


@merge_method()
def clamp(a: Weight, *bounds: Weight, stiffness: Share = 0.0) -> Weight:
    """A between its bounds."""
    import torch

    high, low = reduce(torch.maximum, bounds), reduce(torch.minimum, bounds)
    if stiffness:
        high, low = _stiffened(bounds, high, low, stiffness)
    return torch.minimum(torch.maximum(a, low), high)


def _stiffened(bounds: tuple[Tensor, ...], high: Tensor, low: Tensor, stiffness: float) -> tuple[Tensor, Tensor]:
    import torch

    stacked = torch.stack(bounds)
    mean = stacked.mean(0)
    above = torch.where(stacked >= mean, stacked, high).amin(0)
    below = torch.where(stacked <= mean, stacked, low).amax(0)
    return high.lerp(above, stiffness), low.lerp(below, stiffness)
