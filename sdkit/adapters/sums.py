"""Sums of adapters, module by module: exactly, by putting factors side by side, or cut to a rank with a known error."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Target
from sdkit.adapters.computed import Computed, times
from sdkit.adapters.decompose import Cores, Decomposition, leading
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.kronecker import Kronecker
from sdkit.adapters.low_rank_form import form_rank, joined, joint_scale, kronecker_svd
from sdkit.adapters.ranks import RankRule, relative_error
from sdkit.weights import DTYPES, DType

if TYPE_CHECKING:
    import torch

# Deltas of one weight, each with its strength.
Terms = Sequence[tuple[Delta, float]]


@dataclass(frozen=True, slots=True)
class Cut:
    """A change of limited rank.

    Attributes:
        tensors: ``up`` and ``down``, shaped for the weight.
        rank: its rank.
        norm: ‖ΔW‖ of the whole change.
        error: ‖ΔW − kept‖ / ‖ΔW‖.
    """

    tensors: dict[str, torch.Tensor]
    rank: int
    norm: float
    error: float


def scaled(target: Target, delta: Delta, factor: float) -> Delta:
    """A change times `factor`, of the same kind; the tensors stay as they are where the kind has a scale."""
    if factor == 1.0:
        return delta
    if isinstance(delta, Full):
        return Full(times(delta.diff, delta.scale * factor, target.name))
    if isinstance(delta, Kronecker) and delta.rank is None:  # two whole sides: alpha does not count
        whole = delta.w1.whole
        assert whole is not None
        return replace(delta, w1=replace(delta.w1, whole=times(whole, factor, target.name)))
    return replace(delta, scale=delta.scale * factor)  # type: ignore[type-var]  # every other kind has one


def exact_sum(terms: Terms, shape: tuple[int, ...], measure: Callable[[float], None]) -> Computed:
    """The sum as one change: factors side by side, or, where a term has no factors, the sum of the whole differences.

    Args:
        terms: changes of one weight.
        shape: of the weight.
        measure: told ‖ΔW‖ when the change is computed.
    """
    ranks = [form_rank(delta) for delta, _ in terms]
    known = [rank for rank in ranks if rank is not None]
    if len(known) < len(ranks):
        return Computed({"diff": shape}, lambda: {"diff": _dense_sum(terms, shape, measure).reshape(shape)})

    def make() -> dict[str, torch.Tensor]:
        pair = joined(terms)
        measure(math.sqrt(pair.squared_norm()))
        return shaped(pair.up, pair.down, shape)

    return Computed(_factor_shapes(sum(known), shape), make, joint_scale(terms))


def norm_of(terms: Terms) -> float:
    """‖ΔW‖ of a sum."""
    if all(form_rank(delta) is not None for delta, _ in terms):
        return math.sqrt(joined(terms).squared_norm())
    norms: list[float] = []
    _dense_sum(terms, terms[0][0].shape, norms.append)
    return norms[0]


def cut_sum(terms: Terms, shape: tuple[int, ...], rule: RankRule, dtype: torch.dtype) -> Cut:
    """The best change of limited rank to stand for the sum, in `dtype`."""
    found = _decomposed(terms, shape, rule)
    rank = rule.choose(found.values, found.energy)
    up, down = found.factors(rank)
    tensors = shaped(up.to(dtype), down.to(dtype), shape)
    return Cut(tensors, rank, math.sqrt(found.energy), relative_error(found.values, rank, found.energy))


def _decomposed(terms: Terms, shape: tuple[int, ...], rule: RankRule) -> Decomposition:
    if any(form_rank(delta) is None for delta, _ in terms):
        return leading(_dense_sum(terms, shape, lambda norm: None).float(), rule)
    delta, strength = terms[0]
    if len(terms) == 1 and isinstance(delta, Kronecker):
        return kronecker_svd(delta, strength)
    pair = joined(terms)
    cores = Cores(pair.up, pair.down, pair.scale)
    return cores.decomposition(rule.choose(cores.values, cores.energy))


def _dense_sum(terms: Terms, shape: tuple[int, ...], measure: Callable[[float], None]) -> torch.Tensor:
    """[rows, columns] in float64."""
    import torch

    out = torch.zeros(shape[0], math.prod(shape[1:]), dtype=torch.float64)
    for delta, strength in terms:
        delta.prepare(strength, torch.float64).add_rows(out, 0)
    measure(float(out.norm()))
    return out


def shaped(up: torch.Tensor, down: torch.Tensor, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Factors as files hold them: with a kernel behind `down` and ones behind `up` for a convolution."""
    shapes = _factor_shapes(up.shape[1], shape)
    return {"up": up.reshape(shapes["up"]), "down": down.reshape(shapes["down"])}


def _factor_shapes(rank: int, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {"up": (shape[0], rank, *(1 for _ in shape[2:])), "down": (rank, *shape[1:])}


def widest(types: Collection[DType]) -> DType:
    """A type that holds the numbers of all: of two different 16-bit types that is float32."""
    bits = max(dtype.bits for dtype in types)
    largest = {dtype for dtype in types if dtype.bits == bits}
    return largest.pop() if len(largest) == 1 else DTYPES["F32"]
