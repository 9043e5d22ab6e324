"""Some rows of B, the others of A.

    rows [β n, (α + β) n) of the first dimension from B, counted round the end; the rest from A

With `axis=columns` the second dimension is cut, of tensors that have more than 100 columns (supermerger's `tensor2`).
Source: supermerger's `tensor` and `tensor2`
"""

from __future__ import annotations

import math
from typing import Literal

from sdkit.merging.method import Share, Weight, merge_method
from sdkit.merging.where import Where

MANY_COLUMNS = 100


@merge_method()
def tensor_sum(
    a: Weight,
    b: Weight,
    *,
    where: Where,
    alpha: Share = 0.5,
    beta: Share = 0.0,
    axis: Literal["rows", "columns"] = "rows",
) -> Weight:
    """A with a band of B's rows or columns."""
    import torch

    by_columns = axis == "columns" and len(where.shape) > 1 and where.shape[1] > MANY_COLUMNS
    count = where.shape[int(by_columns)] if where.shape else 1
    each = math.prod(where.shape[2:]) if by_columns else where.columns  # elements that lie together
    first, last = round(beta * count), round((alpha + beta) * count)
    place = torch.arange(where.start, where.start + a.numel()) // each % count
    taken = ((place >= first) & (place < last)) | (place < last - count)
    return torch.where(taken, b, a)
