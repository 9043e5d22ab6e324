"""Add difference, with the difference smoothed first.

    A + α · G(median(B − C)),   the median of each 3 × 3 × … neighbourhood, then a Gauss filter of width σ

Both filters run over all dimensions, channels too, and mirror the tensor at its ends. Needs whole tensors, and is slow.
Source: supermerger's `smoothAdd`
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Annotated

from sdkit.merging.method import Range, Strength, Weight, merge_method

if TYPE_CHECKING:
    import torch

NEIGHBOURS_AT_ONCE = 1 << 22  # elements; bounds the memory of the medians


@merge_method("tensor")
def smooth_add(
    a: Weight, b: Weight, c: Weight, *, alpha: Strength = 1.0, sigma: Annotated[float, Range(0.0, 100.0)] = 1.0
) -> Weight:
    """A plus the smoothed difference."""
    return a.add_(gauss(median3(b.sub_(c)), sigma), alpha=alpha)


def median3(values: torch.Tensor) -> torch.Tensor:
    """The median of each element and its neighbours, as scipy.ndimage.median_filter(size=3)."""
    import torch

    if not values.dim():
        return values
    padded = values
    for axis, size in enumerate(values.shape):
        padded = padded.index_select(axis, _mirror(size, 1))
    out = torch.empty_like(values)
    shifts = list(product(range(3), repeat=values.dim()))
    rows = max(1, NEIGHBOURS_AT_ONCE // (len(shifts) * max(1, values[0].numel())))
    for start in range(0, len(values), rows):
        count = min(rows, len(values) - start)
        sizes = (count, *values.shape[1:])
        block = padded[start : start + count + 2]
        windows = [_window(block, shift, sizes) for shift in shifts]
        out[start : start + count] = torch.stack(windows).median(0).values
    return out


def gauss(values: torch.Tensor, sigma: float) -> torch.Tensor:
    """The Gauss filter along every axis, cut at four widths, as scipy.ndimage.gaussian_filter."""
    import torch

    radius = int(4 * sigma + 0.5)
    if not radius:
        return values
    kernel = torch.tensor([math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)], dtype=torch.float64)
    weights = (kernel / kernel.sum()).tolist()
    for axis, size in enumerate(values.shape):
        padded = values.index_select(axis, _mirror(size, radius))
        values = torch.zeros_like(values)
        for shift, weight in enumerate(weights):
            values.add_(padded.narrow(axis, shift, size), alpha=weight)
    return values


def _mirror(size: int, radius: int) -> torch.Tensor:
    """Indices −radius … size + radius, mirrored at both ends (each end element is repeated)."""
    import torch

    place = torch.arange(-radius, size + radius) % (2 * size)
    return torch.minimum(place, 2 * size - 1 - place)


def _window(block: torch.Tensor, shift: tuple[int, ...], sizes: tuple[int, ...]) -> torch.Tensor:
    for axis, (start, size) in enumerate(zip(shift, sizes, strict=True)):
        block = block.narrow(axis, start, size)
    return block
