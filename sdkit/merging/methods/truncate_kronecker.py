"""The difference from a base, reduced to the nearest Kronecker product of two small matrices.

    base + W₁ ⊗ W₂,   argmin ‖Δ − W₁ ⊗ W₂‖,   of A − base as a matrix or convolution [outputs, inputs, …]

`ratio` divides the numbers between the two: 0.5 makes them as equal as the shapes allow, 0 gives all to W₂, 1 to W₁.
Vectors keep their whole difference. The product is the leading singular pair of a rearranged matrix.
Source: Van Loan and Pitsianis 1993; sd-mecha's `truncate_kronecker`
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sdkit.merging.method import Delta, Share, merge_method

if TYPE_CHECKING:
    import torch

SMALL = 64  # rows or columns up to which a plain decomposition is quicker


@merge_method("tensor")
def truncate_kronecker(a: Delta, *, ratio: Share = 0.5) -> Delta:
    """The Kronecker product nearest to the difference."""
    if a.dim() < 2 or not a.numel():
        return a
    rows, columns, window = a.shape[0], a.shape[1], a[0, 0].numel()
    m, n = sizes(rows, columns, a.numel(), ratio)
    blocks = a.reshape(m, rows // m, n, columns // n, window).transpose(1, 2)
    one, other = _leading(blocks.reshape(m * n, -1))
    product = (one[:, None] * other).view(m, n, rows // m, columns // n, window)
    return product.transpose(1, 2).reshape(a.shape)


def sizes(rows: int, columns: int, total: int, ratio: float) -> tuple[int, int]:
    """The shape of W₁: divisors of the rows and columns, so that its size is nearest to what `ratio` asks for.

    Sizes are compared by their logarithms; among equals the factors most alike in shape win.
    """
    found = [
        (math.log(m * n) - math.log(total) / 2, abs(math.log(m * m / rows)) + abs(math.log(n * n / columns)), m, n)
        for m in _divisors(rows)
        for n in _divisors(columns)
    ]
    wanted = (2 * ratio - 1) * max(abs(size) for size, *_ in found)
    _, _, m, n = min(found, key=lambda entry: (abs(entry[0] - wanted), entry[1]))
    return m, n


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _leading(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two vectors whose outer product is the best approximation of rank 1."""
    import torch

    if min(matrix.shape) <= SMALL:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, 0] * s[0], v[0]
    if not bool(matrix.any()):
        return matrix[:, 0], matrix[0]
    import numpy
    from scipy.sparse.linalg import svds

    start = numpy.random.default_rng(0).standard_normal(min(matrix.shape))
    u, s, v = (torch.from_numpy(part.copy()) for part in svds(matrix.numpy(), k=1, v0=start.astype("float32")))
    return (u[:, 0] * s[0]).to(matrix.dtype), v[0].to(matrix.dtype)
