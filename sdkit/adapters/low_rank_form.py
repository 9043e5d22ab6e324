"""Every kind of weight change as a pair of low-rank factors, exactly.

    LoRA           as it is; a Tucker core folded into ``down``
    LoHa           the rows of its factors multiplied in all pairs (Khatri–Rao): rank r₁·r₂
    LiDB           its factors times its bases
    LoKr           the singular vectors of its small sides multiplied in all pairs (Kronecker): rank r₁·r₂

A difference stored whole has no such form of a useful size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.decompose import Decomposition
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.factors import read_factor
from sdkit.adapters.deltas.hadamard import Hadamard, PreparedHadamard
from sdkit.adapters.deltas.kronecker import Kronecker, PreparedKronecker, Side
from sdkit.adapters.deltas.lightweight import Lightweight
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Pair:
    """ΔW = scale · up @ down in memory: `up` [rows, rank], `down` [rank, columns].

    They are float64, or float32 where that holds every number as it was stored.
    """

    up: torch.Tensor
    down: torch.Tensor
    scale: float

    def squared_norm(self) -> float:
        """‖ΔW‖², by the Gram matrices of the factors."""
        up, down = self.up.double(), self.down.double()
        gram = (up.t() @ up).mul_(down @ down.t())
        return max(0.0, self.scale**2 * float(gram.sum()))


def form_rank(delta: Delta) -> int | None:
    """The rank of a change's low-rank form, from shapes alone; None where it has none."""
    if isinstance(delta, (LowRank, Lightweight)):
        return delta.rank
    if isinstance(delta, Hadamard):
        return delta.w1_b.shape[0] * delta.w2_b.shape[0]
    if isinstance(delta, Kronecker):
        return _side_rank(delta.w1) * _side_rank(delta.w2)
    return None


def low_rank_form(delta: Delta, strength: float) -> Pair:
    """A change as a pair of factors; the numbers of a plain LoRA's factors stay as they are.

    Raises:
        SdkitError: a factor holds NaN or infinity.
        TypeError: the change has no low-rank form; `form_rank` tells.
    """
    import torch

    if isinstance(delta, LowRank):
        down = _stored(delta.down) if delta.mid is None else delta.prepare(1.0, torch.float64).down
        return Pair(_stored(delta.up), down, delta.scale * strength)
    if isinstance(delta, Lightweight):
        return Pair(*delta.factors(torch.float64), delta.scale * strength)
    if isinstance(delta, Hadamard):
        return _khatri_rao(delta.prepare(strength, torch.float64))
    if isinstance(delta, Kronecker):
        up, down = kronecker_svd(delta, strength).factors(_side_rank(delta.w1) * _side_rank(delta.w2))
        return Pair(up, down, 1.0)
    raise TypeError(f"a change of the kind {delta.kind} has no low-rank form")


def _stored(factor: Read) -> torch.Tensor:
    """A factor's numbers as they are, as a matrix."""
    import torch

    return read_factor(factor, torch.float64 if factor.dtype.bits > 32 else torch.float32).flatten(1)


def kronecker_svd(delta: Kronecker, strength: float) -> Decomposition:
    """The singular triples of a LoKr: all pairs of those of its two sides, the largest products first."""
    import torch

    sides: PreparedKronecker = delta.prepare(strength, torch.float64)
    u1, s1, v1 = torch.linalg.svd(sides.w1, full_matrices=False)
    u2, s2, v2 = torch.linalg.svd(sides.w2, full_matrices=False)
    first, second = _side_rank(delta.w1), _side_rank(delta.w2)
    products = torch.outer(s1[:first], s2[:second]).flatten()
    values, order = products.sort(descending=True, stable=True)
    one, two = order // second, order % second
    left = (u1.t()[one][:, :, None] * u2.t()[two][:, None, :]).flatten(1).t()
    right = (v1[one][:, :, None] * v2[two][:, None, :]).flatten(1)
    return Decomposition(left, values, right, float(values.square().sum()))


def _khatri_rao(halves: PreparedHadamard) -> Pair:
    up = (halves.a1[:, :, None] * halves.a2[:, None, :]).flatten(1)
    down = (halves.b1[:, None, :] * halves.b2[None, :, :]).flatten(0, 1)
    return Pair(up, down, 1.0)


def _side_rank(side: Side) -> int:
    """The rank of one side of a LoKr at most, from shapes alone."""
    rows, columns, *kernel = side.shape
    for size in kernel:
        columns *= size
    return min(rows, columns, side.rank or rows)


def joint_scale(terms: Sequence[tuple[Delta, float]]) -> float:
    """The scale all changes have in common, which then stays outside their factors; else 1. Headers alone tell."""
    scales = {delta.scale * strength if isinstance(delta, LowRank) else 1.0 for delta, strength in terms}
    return scales.pop() if len(scales) == 1 and 0.0 not in scales else 1.0


def joined(terms: Sequence[tuple[Delta, float]]) -> Pair:
    """The sum of changes, each times its strength, as one pair: their factors side by side."""
    import torch

    common = joint_scale(terms)
    pairs = [low_rank_form(delta, strength) for delta, strength in terms]
    if len(pairs) == 1 and pairs[0].scale == common:
        return pairs[0]
    ups = [pair.up if pair.scale == common else pair.up.double() * (pair.scale / common) for pair in pairs]
    return Pair(torch.cat(ups, 1), torch.cat([pair.down for pair in pairs]), common)
