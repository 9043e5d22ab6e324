"""Low frequencies of A, high frequencies of B, of their numbers in the order that C sorts them into.

    π⁻¹ F⁻¹((1 − h) F(π A) + h F(π B)),   π sorts C,   h = [r > 1 − α],   r from 0 to 1 over the frequencies

Sorted by a model both come from, the numbers become smooth curves: their low frequencies are the distribution, the high
ones what each has learnt. `tilt` makes the step a ramp, as in `crossover`. Needs whole tensors.
Source: meh's `distribution_crossover`
"""

from __future__ import annotations

from sdkit.merging.method import Share, Weight, merge_method
from sdkit.merging.methods._frequencies import share_of_b


@merge_method("tensor")
def distribution_crossover(a: Weight, b: Weight, c: Weight, *, alpha: Share = 0.5, tilt: Share = 0.0) -> Weight:
    """A and B, mixed frequency by frequency in C's order."""
    import torch

    if alpha in (0.0, 1.0) or tilt == 1.0 or not a.dim():
        return a.lerp(b, alpha)
    order = c.reshape(-1).argsort(stable=True)
    low, high = (torch.fft.rfft(values.reshape(-1)[order]) for values in (a, b))
    mixed = torch.fft.irfft(low.lerp(high, share_of_b((len(order),), alpha, tilt).to(low.dtype)), n=len(order))
    return torch.empty_like(mixed).index_copy_(0, order, mixed).view(a.shape)
