"""Sums of weight changes of every kind, against the dense float64 sum."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from sdkit.adapters.artifact import Target
from sdkit.adapters.computed import Computed, computed_artifact
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.hadamard import Hadamard
from sdkit.adapters.deltas.kronecker import Kronecker, Side
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.adapters.low_rank_form import form_rank, low_rank_form
from sdkit.adapters.ranks import RankRule
from sdkit.adapters.sums import cut_sum, exact_sum, scaled
from sdkit.streaming.expression import Read
from sdkit.weights import DTYPES

Reads = Callable[..., dict[str, Read]]
Dense = Callable[..., torch.Tensor]
SHAPE = (6, 8, 3, 3)
TARGET = Target("unet.conv")


def conv(reads: Reads, rank: int = 2, scale: float = 0.5) -> Delta:
    return LowRank(**reads(up=torch.randn(6, rank, 1, 1), down=torch.randn(rank, 8, 3, 3)), scale=scale)


def tucker(reads: Reads) -> Delta:
    parts = reads(up=torch.randn(6, 2, 1, 1), down=torch.randn(3, 8, 1, 1), mid=torch.randn(2, 3, 3, 3))
    return LowRank(**parts, scale=0.7)


def loha(reads: Reads) -> Delta:
    halves = {
        "w1_a": torch.randn(6, 2),
        "w1_b": torch.randn(2, 72),
        "w2_a": torch.randn(6, 3),
        "w2_b": torch.randn(3, 72),
    }
    return Hadamard(**reads(**halves), scale=0.4)


def lokr(reads: Reads) -> Delta:
    parts = reads(w1=torch.randn(2, 4), a=torch.randn(3, 2), b=torch.randn(2, 2, 3, 3))
    return Kronecker(Side(parts["w1"]), Side(a=parts["a"], b=parts["b"]), 0.3)


def whole_lokr(reads: Reads) -> Delta:
    parts = reads(w1=torch.randn(2, 4), w2=torch.randn(3, 2, 3, 3))
    return Kronecker(Side(parts["w1"]), Side(parts["w2"]), 1.0)


def full(reads: Reads) -> Delta:
    return Full(reads(diff=torch.randn(*SHAPE))["diff"])


KINDS = [conv, tucker, loha, lokr, whole_lokr]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_as_a_lora(kind: Callable[[Reads], Delta], reads: Reads, dense: Dense) -> None:
    delta = kind(reads)
    pair = low_rank_form(delta, -0.8)
    assert pair.up.shape[1] == form_rank(delta)
    assert torch.allclose(pair.scale * pair.up.double() @ pair.down.double(), dense(delta, -0.8), atol=1e-12)
    assert math.sqrt(pair.squared_norm()) == pytest.approx(float(dense(delta, -0.8).norm()))


@pytest.mark.parametrize("kinds", [(conv, conv), (conv, tucker, loha), (lokr, conv), (whole_lokr, loha), (full, conv)])
def test_a_sum_is_the_sum(kinds: tuple[Callable[[Reads], Delta], ...], reads: Reads, dense: Dense) -> None:
    terms = [(kind(reads), strength) for kind, strength in zip(kinds, (1.0, 0.5, -2.0), strict=False)]
    norms: list[float] = []
    made = computed_artifact("sum", {TARGET: exact_sum(terms, SHAPE, norms.append)}, DTYPES["F64"])
    wanted = sum(dense(delta, strength) for delta, strength in terms)
    result = made.deltas[TARGET]
    assert result.shape == SHAPE
    assert torch.allclose(dense(result), wanted, atol=1e-12)
    assert norms[0] == pytest.approx(float(wanted.norm()))


@pytest.mark.parametrize("kinds", [(conv,), (whole_lokr,), (loha, conv), (full, conv)])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_cut_is_the_best_of_its_rank(
    kinds: tuple[Callable[[Reads], Delta], ...], rank: int, reads: Reads, dense: Dense
) -> None:
    terms = [(kind(reads), 0.5) for kind in kinds]
    wanted = sum(dense(delta, 0.5) for delta, _ in terms)
    cut = cut_sum(terms, SHAPE, RankRule(rank), torch.float64)
    kept = cut.tensors["up"].flatten(1) @ cut.tensors["down"].flatten(1)
    values = torch.linalg.svdvals(wanted)
    best = float(values[rank:].norm() / values.norm())
    assert float((wanted - kept).norm() / wanted.norm()) == pytest.approx(best, abs=1e-6)
    assert cut.error == pytest.approx(best, abs=1e-6)
    assert cut.tensors["up"].shape[1:] == (cut.rank, 1, 1) and cut.tensors["down"].shape[1:] == SHAPE[1:]


def test_equal_scales_leave_the_factors_as_they_are(reads: Reads) -> None:
    one, other = conv(reads, 2, 0.5), conv(reads, 3, 1.0)
    made = exact_sum([(one, 1.0), (other, 0.5)], SHAPE, lambda norm: None)
    assert made.scale == 0.5
    assert isinstance(one, LowRank)
    assert torch.equal(made.make()["up"][:, :2], one.up.load().double())


@pytest.mark.parametrize("kind", [*KINDS, full])
def test_scaling_keeps_the_kind(kind: Callable[[Reads], Delta], reads: Reads, dense: Dense) -> None:
    delta = kind(reads)
    result = scaled(TARGET, delta, -0.25)
    assert result.kind == delta.kind and result.shape == delta.shape
    assert torch.allclose(dense(result), dense(delta, -0.25), atol=1e-12)


def test_computed_tensors_are_computed_once_per_visit() -> None:
    calls = []

    def make() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"up": torch.ones(2, 1), "down": torch.ones(1, 2)}

    shapes = {"up": (2, 1), "down": (1, 2)}
    made = computed_artifact("lazy", {TARGET: Computed(shapes, make)}, DTYPES["F32"])
    assert not calls
    delta = made.deltas[TARGET]
    assert isinstance(delta, LowRank)
    delta.up.load(), delta.down.load()
    assert len(calls) == 1
