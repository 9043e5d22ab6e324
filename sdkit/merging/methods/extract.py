"""What two models learnt alike (β = 0), or what only one of them learnt (β = 1).

    base + lerp(a, b, α) · lerp(d, 1 − d, β),   d = ((cos(a, b) + 1) / 2)^γ row by row,   a = A − base, b = B − base

A row is everything that belongs to one output; a vector is one row. (supermerger takes the last dimension, which of a
convolution is a row of its kernel.)
Source: supermerger's `extract`
"""

from __future__ import annotations

from sdkit.merging.method import Delta, Positive, Share, Strength, merge_method


@merge_method("row")
def extract(a: Delta, b: Delta, *, alpha: Strength = 0.5, beta: Share = 0.5, gamma: Positive = 1.0) -> Delta:
    """The mix of both differences, weighted by how alike they are."""
    import torch

    cosine = torch.nn.functional.cosine_similarity(a, b, -1, eps=1e-30).clamp_(-1, 1).unsqueeze_(-1)
    alike = cosine.add_(1).div_(2).pow_(gamma)
    return a.lerp_(b, alpha).mul_(alike.lerp(1 - alike, beta))
