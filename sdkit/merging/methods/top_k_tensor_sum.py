"""A's own numbers, some of them dealt out again in the order of B's.

    A where its sorted number at the rank of B lies outside the band; else A's number of the rank that B has there
    the band: magnitudes between those of rank β n and (α + β) n, counted round the end

With α = 1 and β = 0 the result has A's distribution and B's order. Needs whole tensors.
Source: sd-mecha's `top_k_tensor_sum`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdkit.merging.method import Share, Weight, merge_method

if TYPE_CHECKING:
    import torch


@merge_method("tensor")
def top_k_tensor_sum(a: Weight, b: Weight, *, alpha: Share = 1.0, beta: Share = 0.0) -> Weight:
    """A, partly in B's order."""
    import torch

    flat = a.reshape(-1)
    dealt = flat.msort()[b.reshape(-1).argsort(stable=True).argsort()]  # A's number of the rank that B has
    count, turned = flat.numel(), alpha + beta > 1
    first, last = (alpha + beta - 1, beta) if turned else (beta, alpha + beta)
    sizes = flat.abs().msort()
    low, high = (_at(sizes, round(share * count)) for share in (first, last))
    inside = (dealt.abs() >= low) & (dealt.abs() <= high)
    return torch.where(inside ^ turned, dealt, flat).view(a.shape)


def _at(sizes: torch.Tensor, rank: int) -> float:
    """The magnitude of this rank, from 1; below all of them for 0."""
    return float(sizes[rank - 1]) if rank > 0 else -1.0
