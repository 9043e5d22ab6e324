"""Aspect-ratio buckets: pictures are trained near their own shape, at about the same number of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

Size = tuple[int, int]
MAX_ASPECT = 2.0


def bucket_sizes(resolution: int, step: int) -> list[Size]:
    """All (width, height) of multiples of `step` with at most ``resolution²`` pixels, as large as that allows.

    Args:
        resolution: side of the square with as many pixels.
        step: what the base's sizes must be multiples of.
    """
    sizes = set()
    for width in range(step, int(resolution * math.sqrt(MAX_ASPECT)) + 1, step):
        height = min(resolution * resolution // width, int(width * MAX_ASPECT)) // step * step
        if height and max(width / height, height / width) <= MAX_ASPECT:
            sizes |= {(width, height), (height, width)}
    best = {(resolution // step * step,) * 2}
    for width, height in sizes:
        if not any(w >= width and h >= height and (w, h) != (width, height) for w, h in sizes):
            best.add((width, height))
    return sorted(best)


def nearest_size(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose aspect ratio is nearest to that of `size`; of equal ones the larger."""
    aspect = math.log(size[0] / size[1])
    return min(buckets, key=lambda bucket: (abs(math.log(bucket[0] / bucket[1]) - aspect), -bucket[0] * bucket[1]))
