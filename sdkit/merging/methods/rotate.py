"""Turn A towards B by the rotation that brings it closest, and blend what no rotation explains.

    ((1 − α) Ā + α B̄ Qᵀ) Q^alignment + (1 − alignment) mean(A) + alignment · mean(B)
    Q = argmin ‖Ā Q − B̄‖ over the rotations,   Ā = A − centring · mean(A), the mean row

of matrices [outputs, inputs] and of convolutions as [outputs × inputs, window]. Vectors are a weighted sum. With α = 0
lengths are A's and directions B's; with α = alignment = 1 the result is B. Where several rotations are equally close
(fewer rows than columns), the one that turns least is taken. A reflection has no broken powers: with an alignment that
is no whole number, the nearest rotation takes its place. Needs whole tensors, and is slow.
Source: Schönemann 1966 (orthogonal Procrustes); sd-mecha's `rotate`, whose Q is no rotation where rows are fewer
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sdkit.merging.method import Share, Strength, Weight, merge_method

if TYPE_CHECKING:
    import torch

NEGLIGIBLE = 1e-6  # of the largest singular value: directions that one of the models does not use


@merge_method("tensor")
def rotate(a: Weight, b: Weight, *, alpha: Strength = 0.0, alignment: Share = 1.0, centring: Share = 1.0) -> Weight:
    """A turned towards B."""
    import torch

    if a.dim() < 2 or torch.equal(a, b) or alpha == alignment == 0.0:
        return a.lerp(b, alpha)
    if alpha == alignment == 1.0:
        return b
    window = a[0, 0].numel()
    one, other = (values.double().reshape(-1, window if window > 1 else a.shape[1]) for values in (a, b))
    means = [centring * values.mean(0) for values in (one, other)]
    one, other = one - means[0], other - means[1]
    rotation = Rotation.between(one, other, proper=alignment != 1.0)
    blended = one.lerp(rotation.apply(other, -1.0), alpha) if alpha else one
    turned = rotation.apply(blended, alignment) + means[0].lerp(means[1], alignment)
    return turned.reshape(a.shape).to(a.dtype)


class Rotation:
    """An orthogonal matrix that leaves everything outside a subspace where it is.

    Args:
        basis: of the subspace, [columns, k], orthonormal.
        turn: within the subspace, [k, k], orthogonal; it acts from the right.
    """

    def __init__(self, basis: torch.Tensor, turn: torch.Tensor) -> None:
        self._basis, self._turn = basis, turn

    @staticmethod
    def between(a: torch.Tensor, b: torch.Tensor, *, proper: bool) -> Rotation:
        """The rotation that brings `a` [rows, columns] closest to `b`, and turns least among those that do.

        Args:
            proper: no reflection.
        """
        import torch

        left, right = (torch.linalg.qr(values.t()) for values in (a, b))
        u, s, vt = torch.linalg.svd(left.R @ right.R.t())
        used = int((s > NEGLIGIBLE * s[0]).sum()) if float(s[0]) > 0 else 0
        first, second = left.Q @ u[:, :used], right.Q @ vt[:used].t()
        basis = _basis(first, second)
        return Rotation(basis, _least_turn(basis.t() @ first, basis.t() @ second, proper))

    def apply(self, values: torch.Tensor, power: float) -> torch.Tensor:
        """Rows turned by a power of the rotation."""
        import torch

        if power == 0.0 or not self._basis.shape[1]:
            return values
        turn = {1.0: self._turn, -1.0: self._turn.t()}.get(power)
        if turn is None:
            turn = _power(self._turn, power)
        change = turn - torch.eye(len(turn), dtype=turn.dtype)
        turned: torch.Tensor = values + values @ self._basis @ change @ self._basis.t()
        return turned


def _basis(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of all that two orthonormal sets of columns span."""
    import torch

    rows, columns = first.shape
    if 2 * columns >= rows:
        return torch.eye(rows, dtype=first.dtype)
    basis: torch.Tensor = torch.linalg.qr(torch.cat([first, second], 1)).Q
    return basis


def _least_turn(first: torch.Tensor, second: torch.Tensor, proper: bool) -> torch.Tensor:
    """The orthogonal matrix R nearest to the identity with firstᵀ R = secondᵀ.

    Args:
        first: [k, r], orthonormal columns.
        second: [k, r], orthonormal columns.
        proper: make the determinant 1, at the cost of the last pair of columns where nothing else is left to turn.
    """
    import torch

    used = first.shape[1]
    rest, other = (torch.linalg.qr(columns, mode="complete").Q[:, used:] for columns in (first, second))
    u, _, vt = torch.linalg.svd(rest.t() @ other)
    turn: torch.Tensor = first @ second.t() + rest @ (u @ vt) @ other.t()
    if proper and float(torch.linalg.slogdet(turn)[0]) < 0:
        one, partner = ((rest @ u)[:, -1], (other @ vt.t())[:, -1]) if rest.shape[1] else (first[:, -1], second[:, -1])
        turn = turn - 2 * one[:, None] * partner
    return turn


def _power(turn: torch.Tensor, power: float) -> torch.Tensor:
    """A power of a rotation: its real Schur form consists of plane rotations, whose angles are multiplied."""
    import numpy
    import torch
    from scipy.linalg import schur

    planes, vectors = schur(turn.numpy(), output="real")
    powers = numpy.eye(len(planes))
    flipped: list[int] = []
    place = 0
    while place < len(planes):
        if place + 1 < len(planes) and abs(planes[place + 1, place]) > NEGLIGIBLE:
            angle = numpy.arctan2(planes[place + 1, place], planes[place, place])
            powers[place : place + 2, place : place + 2] = _plane(power * angle)
            place += 2
            continue
        if planes[place, place] < 0:
            flipped.append(place)
        place += 1
    for one, other in zip(flipped[::2], flipped[1::2], strict=False):  # two reversed directions: half a turn
        powers[numpy.ix_([one, other], [one, other])] = _plane(power * numpy.pi)
    return torch.from_numpy(vectors @ powers @ vectors.T)


def _plane(angle: float) -> list[list[float]]:
    return [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
