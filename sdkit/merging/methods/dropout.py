"""Drop changes at random, and average at each place the models that still have theirs there.

    base + α Σ mᵢ Δᵢ / max(1, Σ mᵢ) / densityʳ,   mᵢ ~ Bernoulli(density)

r is `rescale`. With `shared` all models keep the same places.
Source: the `dropout` (n-supermario) of sd-mecha, whose `overlap` of 1 is ours and whose other overlaps are not
"""

from __future__ import annotations

from sdkit.merging.method import Delta, Share, Strength, merge_method
from sdkit.merging.where import Where


@merge_method(least=1)
def dropout(
    *deltas: Delta,
    where: Where,
    alpha: Strength = 1.0,
    density: Share = 0.1,
    rescale: Strength = 1.0,
    shared: bool = False,
) -> Delta:
    """α times the mean of the surviving changes, scaled up."""
    import torch

    total = torch.zeros_like(deltas[0])
    if density == 0.0:
        return total
    votes = torch.zeros_like(deltas[0])
    for index, delta in enumerate(deltas):
        mask = where.uniform(0 if shared else index, delta) < density
        total.addcmul_(delta, mask.to(delta.dtype))
        votes.add_(mask)
    return total.div_(votes.clamp_(min=1.0)).mul_(alpha / density**rescale)
