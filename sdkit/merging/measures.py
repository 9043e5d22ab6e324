"""What measuring passes find out: inner products of models, exact order statistics, cosines of columns."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sdkit.merging.method import Tiles

if TYPE_CHECKING:
    import torch

Gram = tuple[tuple[float, ...], ...]
HIGH_BINS = 1 << 15  # float32 without its sign, upper half: non-negative numbers sort like their bits
LOW_BINS = 1 << 16
GATHERED = 1 << 22  # elements: 16 MiB of each model. Up to here one walk and a selection beat two walks and histograms.


def gram(tiles: Tiles) -> Gram:
    """Inner products of every pair of models, in float64.

    They hold all that norms, angles and distances within the span of the models need, so one pass is enough even for
    iterations such as Weiszfeld's.
    """
    import torch

    sums: dict[tuple[int, int], float] = {}
    count = 0
    for values in tiles:
        flat = [value.reshape(-1).double() for value in values]
        count = len(flat)
        for i, j in [*pairs(count), *((i, i) for i in range(count))]:
            sums[i, j] = sums.get((i, j), 0.0) + float(torch.dot(flat[i], flat[j]))
    return tuple(tuple(sums[min(i, j), max(i, j)] for j in range(count)) for i in range(count))


def inner(one: Sequence[float], products: Gram, other: Sequence[float]) -> float:
    """The inner product of two sums of models, given by their coefficients."""
    return math.fsum(
        x * y * products[i][j] for i, x in enumerate(one) for j, y in enumerate(other) if x != 0.0 and y != 0.0
    )


def norm(sum_: Sequence[float], products: Gram) -> float:
    """The Euclidean norm of a sum of models."""
    return math.sqrt(max(0.0, inner(sum_, products, sum_)))


def cosine(products: Gram, one: int, other: int) -> float:
    """The cosine of the angle between two models; 0 when one of them is zero."""
    length = math.sqrt(products[one][one] * products[other][other])
    return max(-1.0, min(1.0, products[one][other] / length)) if length > 0.0 else 0.0


def magnitude(values: torch.Tensor) -> torch.Tensor:
    """Absolute values as `order_statistics` compares them: float32."""
    return values.abs().float()


def order_statistics(
    tiles: Tiles,
    streams: Callable[..., Sequence[torch.Tensor]],
    ranks: Sequence[Sequence[int]],
) -> list[list[float]]:
    """Exact values at some places of the ascending order of non-negative numbers, in constant memory.

    Small tensors are gathered in one walk; of larger ones two walks count, first the upper halves of the bits, then the
    lower halves of those that share the upper half asked for.

    Args:
        tiles: the models' tiles.
        streams: a tile of each model → the tiles of the sequences to order, non-negative and float32.
        ranks: for each sequence the places asked for, from 0.
    """
    if tiles.count <= GATHERED:
        return _selected(tiles, streams, ranks)
    counts = _histogram(tiles, streams, len(ranks), lambda bits, _: bits >> 16, [HIGH_BINS] * len(ranks))
    places = [[_find(count, rank) for rank in wanted] for count, wanted in zip(counts, ranks, strict=True)]
    flat = [(index, *place) for index, wanted in enumerate(places) for place in wanted]
    if not flat:
        return [[] for _ in ranks]

    def lower(bits: torch.Tensor, bin_: int) -> torch.Tensor:
        return bits[(bits >> 16) == bin_] & (LOW_BINS - 1)

    def chosen(*values: torch.Tensor) -> list[torch.Tensor]:
        found = streams(*values)
        return [found[index] for index, _, _ in flat]

    bins = [bin_ for _, bin_, _ in flat]
    fine = _histogram(tiles, chosen, len(flat), lambda bits, i: lower(bits, bins[i]), [LOW_BINS] * len(flat))
    found: list[list[float]] = [[] for _ in ranks]
    for (index, bin_, rest), count in zip(flat, fine, strict=True):
        low, _ = _find(count, rest)
        found[index].append(_from_bits(bin_ << 16 | low))
    return found


def _selected(
    tiles: Tiles, streams: Callable[..., Sequence[torch.Tensor]], ranks: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The values asked for, of sequences that are held whole."""
    import numpy
    import torch

    gathered = [torch.empty(tiles.count) for _ in ranks]
    done = 0
    for values in tiles:
        parts = [stream.reshape(-1) for stream in streams(*values)]
        for whole, part in zip(gathered, parts, strict=True):
            whole[done : done + len(part)] = part
        done += len(parts[0]) if parts else 0
    ordered = [
        numpy.partition(whole.numpy(), sorted(set(wanted))) if wanted else None
        for whole, wanted in zip(gathered, ranks, strict=True)
    ]
    return [
        [] if whole is None else [float(whole[rank]) for rank in wanted]
        for whole, wanted in zip(ordered, ranks, strict=True)
    ]


def _histogram(
    tiles: Tiles,
    streams: Callable[..., Sequence[torch.Tensor]],
    number: int,
    key: Callable[[torch.Tensor, int], torch.Tensor],
    sizes: Sequence[int],
) -> list[torch.Tensor]:
    import torch

    counts = [torch.zeros(size, dtype=torch.int64) for size in sizes]
    for values in tiles:
        for index, stream in enumerate(streams(*values)):
            bits = stream.reshape(-1).view(torch.int32)
            counts[index] += torch.bincount(key(bits, index), minlength=sizes[index])
    return counts[:number]


def _find(counts: torch.Tensor, rank: int) -> tuple[int, int]:
    """The bin in which the element of this rank lies, and its rank within the bin."""
    import torch

    ends = counts.cumsum(0)
    found = int(torch.searchsorted(ends, torch.tensor(rank), right=True))
    return found, rank - (int(ends[found - 1]) if found else 0)


def _from_bits(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def thresholds(tiles: Tiles, density: float, models: int) -> list[float]:
    """For each model the smallest magnitude among the largest ⌊density · n⌋ (at least one) of its numbers."""
    if density >= 1.0 or not tiles.count:
        return [0.0] * models
    rank = tiles.count - max(1, int(density * tiles.count))
    found = order_statistics(tiles, lambda *values: [magnitude(value) for value in values], [[rank]] * models)
    return [value for (value,) in found]


def count_models(tiles: Tiles) -> int:
    """How many models a walk yields."""
    return len(next(iter(tiles)))


def column_cosines(tiles: Tiles) -> tuple[torch.Tensor, float]:
    """Cosine of each column of two models (along dimension 0), and that of the whole tensors.

    A vector has one column. Columns that are zero in one model have the cosine 0.
    """
    import torch

    sums = torch.zeros(())
    for a, b in tiles:
        products = [(x.double() * y.double()).sum(0) for x, y in ((a, b), (a, a), (b, b))]
        sums = sums + torch.stack(products)
    if sums.shape[-1] == tiles.count:  # a single row
        sums = sums.sum(1, keepdim=True)
    whole = sums.sum(1)
    return _quotient(sums), float(_quotient(whole))


def _quotient(sums: torch.Tensor) -> torch.Tensor:
    import torch

    length = (sums[1] * sums[2]).sqrt()
    return torch.where(length > 0, sums[0] / length, 0.0).clamp(-1, 1)


def pairs(count: int) -> list[tuple[int, int]]:
    """All pairs of different models."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]
