"""Singular values through small cores and by iteration, against those of the dense matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdkit.adapters import decompose
from sdkit.adapters.decompose import Cores, leading
from sdkit.adapters.ranks import RankRule, relative_error
from sdkit.core.errors import UsageError


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 15), st.integers(0, 99), st.booleans())
def test_cores_equal_the_dense_svd(rows: int, columns: int, rank: int, seed: int, twins: bool) -> None:
    """Also where the rank exceeds the matrix, and where columns of the factors depend on each other."""
    up, down = random(rows, rank, seed=seed), random(rank, columns, seed=seed + 1)
    if twins:
        up[:, -1] = up[:, 0]
        down[-1] = -down[0]
    dense = up @ down
    cores = Cores(up, down)
    count = min(rows, columns, rank)
    assert torch.allclose(cores.values[:count], torch.linalg.svdvals(dense)[:count], atol=1e-10)
    kept = cores.decomposition(count)
    one, other = kept.factors(count)
    assert torch.allclose(one @ other, dense, atol=1e-9)
    assert torch.allclose(one.norm(dim=0), other.norm(dim=1), atol=1e-9)  # the magnitude is shared out


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 99))
def test_a_cut_loses_what_the_report_says(rank: int, seed: int) -> None:
    up, down = random(9, 7, seed=seed), random(7, 11, seed=seed + 1)
    cores = Cores(up, down)
    one, other = cores.decomposition(rank).factors(rank)
    true = float((up @ down - one @ other).norm() / (up @ down).norm())
    assert relative_error(cores.values, rank, cores.energy) == pytest.approx(true, abs=1e-9)
    best = torch.linalg.svdvals(up @ down)
    assert true == pytest.approx(float(best[rank:].norm() / best.norm()), abs=1e-9)


@pytest.mark.parametrize("shape", [(700, 500), (500, 700)])
@pytest.mark.parametrize("exact_size", [decompose.EXACT_SIZE, 1000])
def test_leading_finds_a_low_rank_difference(
    shape: tuple[int, int], exact_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompose, "EXACT_SIZE", exact_size)  # both ways of finding them
    matrix = (random(shape[0], 8) @ random(8, shape[1], seed=1)).float()
    found = leading(matrix, RankRule(8))
    up, down = found.factors(8)
    assert float((up @ down - matrix).norm() / matrix.norm()) < 2e-6
    assert torch.allclose(found.values[:8], torch.linalg.svdvals(matrix.double())[:8], rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_stated_error_is_true_although_the_iteration_stops_early(decay: float) -> None:
    spectrum = torch.arange(1, 401, dtype=torch.float64) ** -decay
    left, right = torch.linalg.qr(random(450, 400)).Q, torch.linalg.qr(random(420, 400, seed=1)).Q
    matrix = ((left * spectrum) @ right.t()).float()
    found = leading(matrix, RankRule(16))
    up, down = found.factors(16)
    true = float((matrix.double() - up.double() @ down.double()).norm() / matrix.double().norm())
    assert relative_error(found.values, 16, found.energy) == pytest.approx(true, rel=1e-4)
    assert true < 1.02 * float(spectrum[16:].norm() / spectrum.norm())  # hardly worse than the best there is


def test_a_rule_makes_the_iteration_look_for_more() -> None:
    spectrum = torch.cat([torch.ones(60), torch.full((340,), 1e-3)]).double()
    left, right = torch.linalg.qr(random(450, 400)).Q, torch.linalg.qr(random(420, 400, seed=1)).Q
    matrix = ((left * spectrum) @ right.t()).float()
    for rule in (RankRule(error=0.1), RankRule(128, error=0.1)):
        found = leading(matrix, rule)
        assert rule.choose(found.values, found.energy) == 60
    limited = RankRule(20, error=0.1)
    found = leading(matrix, limited)
    assert limited.choose(found.values, found.energy) == 20


def test_rules_by_hand() -> None:
    values = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    energy = 85.0
    assert RankRule(3).choose(values, energy) == 3
    assert RankRule(9).choose(values, energy) == 4
    # kohya's resize_lora answers these with one or two more.
    assert RankRule(sv_ratio=3).choose(values, energy) == 2  # above 8/3
    assert RankRule(sv_ratio=2).choose(values, energy) == 1  # 4 is not above 8/2
    assert RankRule(sv_cumulative=0.8).choose(values, energy) == 2  # 12 of 15
    assert RankRule(sv_cumulative=0.81).choose(values, energy) == 3
    assert RankRule(sv_fro=0.97).choose(values, energy) == 2  # sqrt(80/85) = 0.9701
    assert RankRule(sv_fro=0.98).choose(values, energy) == 3
    assert RankRule(error=0.25).choose(values, energy) == 2  # sqrt(5/85) = 0.2425
    assert RankRule(1, error=0.25).choose(values, energy) == 1
    assert relative_error(values, 2, energy) == pytest.approx((5 / 85) ** 0.5)


@pytest.mark.parametrize(
    "rule", [{}, {"rank": 0}, {"sv_ratio": 1.0}, {"sv_fro": 1.0}, {"error": 0.0}, {"sv_fro": 0.5, "error": 0.5}]
)
def test_rules_that_make_no_sense(rule: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        RankRule(**rule)  # type: ignore[arg-type]


def test_a_change_of_nothing() -> None:
    cores = Cores(torch.zeros(4, 2, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64))
    assert RankRule(error=0.1).choose(cores.values, cores.energy) == 1
    assert relative_error(cores.values, 1, cores.energy) == 0.0
    found = leading(torch.zeros(5, 4), RankRule(2))
    assert torch.equal(found.factors(2)[0] @ found.factors(2)[1], torch.zeros(5, 4))
