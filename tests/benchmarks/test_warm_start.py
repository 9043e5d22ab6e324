"""How many warm steps cold ones are worth, on curves written by hand."""

from __future__ import annotations

import pytest

from benchmarks.warm_start import Pair, reached, table


def test_a_loss_is_reached_between_what_was_measured() -> None:
    curve = {0: 0.4, 10: 0.2, 20: 0.3, 30: 0.1}
    assert reached(curve, 0.5) == 0
    assert reached(curve, 0.25) == pytest.approx(7.5)
    assert reached(curve, 0.15) == pytest.approx(27.5)  # not before it has come down again
    assert reached(curve, 0.05) is None


def test_the_table_counts_pairs_that_need_at_most_half() -> None:
    cold = {0: 0.4, 10: 0.3, 20: 0.2}
    pairs = [Pair(cold, {0: 0.3, 10: 0.2, 20: 0.1}), Pair(cold, cold), Pair(cold, dict.fromkeys(cold, 0.5))]
    assert table(pairs).splitlines()[2:] == [
        "| 0 | 0.400 | 0.400 | 0 | 2 of 3 |",
        "| 10 | 0.300 | 0.333 | 10 | 1 of 3 |",
        "| 20 | 0.200 | 0.267 | 20 | 1 of 3 |",
    ]
