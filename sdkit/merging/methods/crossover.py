"""Low frequencies of A, high frequencies of B.

    F⁻¹((1 − h) F(A) + h F(B)),   h = [r > 1 − α],   r the root mean square of the normalised frequencies

`tilt` makes the step a ramp: h = clamp(cot(π tilt / 2) (r + α − 1) + α, 0, 1); at 1 all frequencies mix alike, which is
a weighted sum. Needs whole tensors.
Source: sd-mecha's `crossover`
"""

from __future__ import annotations

from sdkit.merging.method import Share, Tensor, Weight, merge_method
from sdkit.merging.methods._frequencies import share_of_b


@merge_method("tensor")
def crossover(a: Weight, b: Weight, *, alpha: Share = 0.5, tilt: Share = 0.0) -> Weight:
    """A and B, mixed frequency by frequency."""
    import torch

    if alpha in (0.0, 1.0) or tilt == 1.0 or not a.dim():
        return a.lerp(b, alpha)
    low, high = torch.fft.rfftn(a), torch.fft.rfftn(b)
    mixed: Tensor = torch.fft.irfftn(low.lerp(high, share_of_b(tuple(a.shape), alpha, tilt).to(low.dtype)), s=a.shape)
    return mixed
