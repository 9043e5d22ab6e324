"""Some rows of B, the others of A.

    rows [β n, (α + β) n) of the first dimension from B, counted round the end; the rest from A

Source: supermerger's `tensor`
"""

from __future__ import annotations

from sdkit.merging.method import Share, Weight, merge_method
from sdkit.merging.where import Where


@merge_method()
def tensor_sum(a: Weight, b: Weight, *, where: Where, alpha: Share = 0.5, beta: Share = 0.0) -> Weight:
    """A with a band of B's rows."""
    import torch

    rows = where.shape[0] if where.shape else 1
    first, last = round(beta * rows), round((alpha + beta) * rows)
    row = torch.arange(where.start, where.start + a.numel()) // where.columns
    taken = ((row >= first) & (row < last)) | (row < last - rows)
    return torch.where(taken, b, a)
