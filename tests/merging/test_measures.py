"""Order statistics against a plain sort."""

from __future__ import annotations

import pytest
import torch

from sdkit.merging import measures
from sdkit.merging.measures import magnitude, order_statistics, thresholds
from sdkit.merging.method import Tiles


def tiles(*models: torch.Tensor, size: int = 100) -> Tiles:
    """The models in tiles, copied, as a pass may overwrite them."""
    return Tiles(lambda: iter(list(zip(*(model.clone().split(size) for model in models), strict=True))), len(models[0]))


@pytest.mark.parametrize("gathered", [0, 1 << 22])
def test_order_statistics_are_those_of_a_sort(gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "GATHERED", gathered)
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(1003, generator=generator)
    other = torch.randn(1003, generator=generator).mul(8).round().div(8)  # many equal numbers, some of them zero
    ranks = [[0, 7, 500, 1002], [640]]
    found = order_statistics(tiles(one, other), lambda *values: [magnitude(value) for value in values], ranks)
    for values, wanted, seen in zip((one, other), ranks, found, strict=True):
        assert seen == [float(values.abs().sort().values[rank]) for rank in wanted]
    assert thresholds(tiles(one, other), 0.2, 2) == [
        float(v.abs().sort(descending=True).values[199]) for v in (one, other)
    ]
    assert thresholds(tiles(torch.zeros(10)), 0.2, 1) == [0.0]
