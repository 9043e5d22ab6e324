"""The difference from a base, reduced to a few singular directions of each matrix.

    base + Σ_{k ≤ rank} σₖ uₖ vₖᵀ,   of A − base as a matrix [outputs, the rest]

Vectors keep their whole difference. The decomposition is exact.
Source: Eckart and Young 1936; sd-mecha's `truncate_rank`
"""

from __future__ import annotations

from typing import Annotated

from sdkit.merging.method import Delta, Range, Tensor, merge_method


@merge_method("tensor")
def truncate_rank(a: Delta, *, rank: Annotated[int, Range(0)] = 32) -> Delta:
    """The best approximation of the difference that has this rank."""
    import torch

    if a.dim() < 2 or rank >= min(a.shape[0], a[0].numel()):
        return a
    u, s, v = torch.linalg.svd(a.flatten(1), full_matrices=False)
    cut: Tensor = (u[:, :rank] * s[:rank]) @ v[:rank]
    return cut.view(a.shape)
