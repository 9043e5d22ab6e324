"""Rounding at random, against the two neighbours a number has in bfloat16."""

from __future__ import annotations

import pytest
import torch

from sdkit.runtime import rounding
from sdkit.runtime.rounding import round_at_random


def rounded(values: torch.Tensor, key: int = 1) -> torch.Tensor:
    out = torch.empty(values.shape, dtype=torch.bfloat16)
    round_at_random(values, out, key)
    return out.float()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_goes_to_either_neighbour_in_proportion_to_its_distance(share: float, sign: int) -> None:
    below, above = 1.5 * sign, (1.5 + 2**-7) * sign  # neighbours: bfloat16 has seven bits behind the first
    found = rounded(torch.full((400, 500), below + share * (above - below)))
    assert set(found.unique().tolist()) <= {below, above}
    assert float((found == above).double().mean()) == pytest.approx(share, abs=0.005)  # 4.5 standard deviations


def test_what_bfloat16_has_stays_as_it_is() -> None:
    exact = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf")])
    values = torch.cat([exact, special])
    assert torch.equal(rounded(values), values)
    assert bool(rounded(torch.tensor([float("nan")])).isnan())


def test_draws_follow_from_key_and_place_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(3, 1000, generator=torch.Generator().manual_seed(0)) + 0.5
    state = torch.get_rng_state()
    first = rounded(values)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(rounding, "CHUNK", 7)
    assert torch.equal(rounded(values), first)
    ups = (first > values) ^ (rounded(values, 2) > values)
    assert 0.2 < float(ups.float().mean()) < 0.5  # another key, other draws: 2 p (1 − p), a third on average
    rows = rounded(torch.full((2, 100_000), 1 + 2**-8)) > 1
    agreement = float((rows[0] == rows[1]).float().mean())
    assert agreement == pytest.approx(0.5, abs=0.01)
