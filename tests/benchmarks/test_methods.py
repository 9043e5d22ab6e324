"""The arithmetic of the comparison of methods, on lines written by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.methods import settings
from benchmarks.methods.one import Order
from benchmarks.methods.pages import BEGIN, END, write_tables
from benchmarks.methods.plot import LEFT, falls_plot
from benchmarks.methods.results import Results, carry_out
from benchmarks.methods.summary import (
    Falls,
    accuracy,
    apart_table,
    cost_table,
    falls,
    prior_sentence,
    settings_table,
    teaching_table,
)

BASES = [
    {
        "concept": "owl",
        "losses": {"held_out": [[0.4, 0.2]], "other": [[0.5]], "class": [[0.2]], "known": [[0.1, 0.1]]},
        "nearest": {"pictures": 4, "concept": 0, "style": 4},
    },
    {
        "concept": "crown",
        "losses": {"held_out": [[0.8, 0.6]], "other": [[0.5]], "class": [[0.2]], "known": [[0.1, 0.1]]},
        "nearest": {"pictures": 4, "concept": 1, "style": 4},
    },
]


def line(condition: str, concept: str, seed: int, held_out: list[float], known: float = 0.1) -> dict[str, object]:
    return {
        "condition": condition,
        "concept": concept,
        "seed": seed,
        "losses": {"held_out": [held_out], "other": [[0.5]], "class": [[0.3]], "known": [[known, known]]},
        "nearest": {"pictures": 4, "concept": 3, "style": 2},
        "parameters": 1000,
        "bytes": 2_500_000,
        "cpu_seconds": 10.0 * seed,
        "seconds": 5.0 * seed,
        "steps_per_second": 4.0,
        "mib": 100.0 + seed,
    }


RUNS = [
    line("whole", "owl", 1, [0.2, 0.0]),
    line("whole", "owl", 2, [0.2, 0.0]),
    line("whole", "crown", 1, [0.4, 0.2]),
    line("whole", "crown", 2, [0.4, 0.2]),
    line("thin", "owl", 1, [0.3, 0.1], known=0.11),
    line("thin", "owl", 2, [0.3, 0.1], known=0.13),
    line("thin", "crown", 1, [0.6, 0.4], known=0.12),
    line("thin", "crown", 2, [0.6, 0.4], known=0.12),
]


def some_falls(part: str = "held_out", condition: str = "thin") -> Falls:
    found = falls(condition, part, BASES, RUNS)
    assert found is not None
    return found


def test_a_fall_is_before_minus_after_pair_by_pair() -> None:
    thin = some_falls()
    assert thin.before == pytest.approx(0.5)
    np.testing.assert_allclose(thin.of["owl"], [[0.1, 0.1], [0.1, 0.1]])
    np.testing.assert_allclose(thin.of["crown"], [[0.2, 0.2], [0.2, 0.2]])


def test_falls_that_are_all_alike_leave_no_doubt() -> None:
    estimate = some_falls().estimate()
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((0.15, 0.15, 0.15))


def test_a_share_is_the_ratio_of_the_mean_falls() -> None:
    share = some_falls().share_of(some_falls(condition="whole"))
    assert (share.mean, share.low, share.high) == pytest.approx((0.5, 0.5, 0.5))  # (0.1 + 0.2) / (0.2 + 0.4)


def test_a_rise_is_a_share_of_what_the_loss_was() -> None:
    rise = some_falls("known").rise()
    assert rise.mean == pytest.approx(0.2)  # from 0.1 to 0.12
    assert rise.low == pytest.approx(0.15)  # owl's runs rose by 10 % and 30 %; seed 1 twice: (10 + 20) / 2
    assert rise.high == pytest.approx(0.25)


def test_prior_preservation_is_what_the_rise_of_the_class_is_less() -> None:
    with_prior = [{**run, "condition": "prior", "losses": {"class": [[0.22]]}} for run in RUNS[:4]]
    said = prior_sentence(BASES, [*RUNS, *with_prior], "whole", "prior")
    assert said.endswith(": 40 % (40 … 40).")  # from 0.2 to 0.3 without, to 0.22 with it
    assert prior_sentence(BASES, RUNS, "whole", "prior") == ""


def test_the_interval_knows_pairs_and_seeds() -> None:
    """Falls that differ only by pair, or only by seed, have the interval of the mean of as many drawn numbers."""
    values = np.linspace(0.0, 1.0, 64)
    expected = 1.96 * values.std() / np.sqrt(64)
    for fall in (np.tile(values, (3, 1)), np.tile(values[:, None], (1, 3))):
        estimate = Falls("thin", {"owl": fall}, 1.0).estimate()
        assert estimate.mean == pytest.approx(0.5)
        assert estimate.high - 0.5 == pytest.approx(expected, rel=0.1)
        assert 0.5 - estimate.low == pytest.approx(expected, rel=0.1)


def test_drawn_pairs_are_shared_so_that_ratios_are_steady() -> None:
    hard = np.linspace(0.0, 1.0, 64)[None]
    whole, thin = Falls("whole", {"owl": hard}, 1.0), Falls("thin", {"owl": 0.7 * hard}, 1.0)
    share = thin.share_of(whole)
    assert (share.low, share.high) == pytest.approx((0.7, 0.7))


def test_what_was_not_measured_is_not_there() -> None:
    assert falls("nobody", "held_out", BASES, RUNS) is None
    assert falls("thin", "nothing", BASES, RUNS) is None
    table = "\n".join(teaching_table(BASES, RUNS, ["whole", "thin", "nobody"], "whole"))
    assert "nobody" not in table
    assert "nobody" not in "\n".join(cost_table(RUNS, ["thin", "nobody"]))


def test_accuracy_counts_pictures() -> None:
    assert accuracy(BASES, "concept") == (1, 8)
    assert accuracy(RUNS[:4], "style") == (8, 16)


def test_a_loss_that_hardly_rose_has_no_sign() -> None:
    line_of_nothing = line("thin", "owl", 1, [0.4 + 1e-9, 0.2 + 1e-9])
    assert apart_table(BASES[:1], [line_of_nothing], ["thin"])[2] == "| `thin` | 0.0000 (0.0000 … 0.0000) |"


def test_the_tables_say_what_was_measured() -> None:
    heads, _, base, whole, thin = (
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in teaching_table(BASES, RUNS, ["whole", "thin"], "whole")
    )
    assert heads[3] == "of whole's fall"
    assert base == ["the base", "0.5000", "", "", "", "", "", "12 % of 8"]
    assert whole[:4] == ["`whole`", "0.2000", "0.3000 (0.3000 … 0.3000)", ""]
    assert thin == [
        "`thin`",
        "0.3500",
        "0.1500 (0.1500 … 0.1500)",
        "50 % (50 … 50)",
        "0.0000 (0.0000 … 0.0000)",
        "50 % (50 … 50)",
        "20 % (15 … 25)",
        "75 % of 16",
    ]


def test_each_concept_apart() -> None:
    assert apart_table(BASES, RUNS, ["thin"])[2:] == [
        "| `thin` | 0.1000 (0.1000 … 0.1000) | 0.2000 (0.2000 … 0.2000) |"
    ]


def test_costs_are_medians_and_the_largest_peak() -> None:
    assert cost_table(RUNS, ["thin"])[2] == "| `thin` | 4 | 1,000 | 2.5 MB | 15 | 8 | 4.0 | 102 MiB |"


def test_the_plot_has_a_dot_for_every_run() -> None:
    """Eight runs and a legend of two subjects; the least fall stands left of the greatest, the axis begins at none."""
    svg = ElementTree.fromstring(falls_plot("fall", [some_falls(condition="whole"), some_falls()]))
    circles = [element for element in svg.iter() if element.tag.endswith("circle")]
    dots = [float(circle.get("cx", "")) for circle in circles if circle.get("fill-opacity") != "1"]
    assert (len(circles), len(dots)) == (10, 8)
    whole, thin = dots[:4], dots[4:]
    assert whole[3] == max(dots) and thin[0] == min(dots)  # crown fell by 0.4, owl by 0.1
    assert (whole[0] - LEFT) / (whole[3] - LEFT) == pytest.approx(0.5, abs=0.01)  # 0.2 beside 0.4


def test_settings_are_spelled_as_the_command_line_takes_them() -> None:
    rows = settings_table({"lora": {"chosen": {"lr": 0.002, "text_encoder": True}, "tried": [{}, {}]}})
    assert rows[2] == "| `lora` | `lr=0.002 text_encoder=yes` | 2 |"


def test_results_survive_a_line_that_was_never_finished(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    order = Order("tiny", "id", "data", str(tmp_path), "owl", "lora", 1, {"lr": 0.1})
    file.write_text(json.dumps({**order.said, "mib": 1}) + '\n{"concept": "ow')
    results = Results(file)
    results.add({"concept": "crown"})
    assert results.of(order) == {**order.said, "mib": 1}
    assert len(file.read_text().splitlines()) == 2 == len(Results(file)._lines)


def test_what_is_there_is_not_done_again(tmp_path: Path) -> None:
    echo = "import json, sys; print(json.dumps({**json.loads(sys.argv[1]), 'mib': 1}))"
    orders = [Order("tiny", "id", "data", str(tmp_path), "owl", "lora", seed) for seed in (1, 2)]
    for found in ([1, 2], []):  # the second time with the lines of the first
        done = carry_out(orders, Results(tmp_path / "results.jsonl"), [sys.executable, "-c", echo], 2)
        assert sorted(order.seed for order, _ in done) == found
    other_options = Order("tiny", "id", "data", str(tmp_path), "owl", "lora", 1, {"lr": 0.1})
    assert Results(tmp_path / "results.jsonl").of(other_options) is None


def test_tables_go_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "training.md"
    page.write_text(f"Before.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    write_tables(page, "| new |")
    assert page.read_text() == f"Before.\n\n{BEGIN}\n| new |\n{END}\n\nAfter.\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the lines"):
        write_tables(page, "| new |")


def test_the_best_of_the_grid_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "CHOSEN", tmp_path / "chosen.yaml")
    settings.write_chosen("owl", {"lora": [({"lr": 1e-3}, 0.4), ({"lr": 2e-3}, 0.3)]})
    assert settings.chosen() == {"lora": {"lr": 2e-3}}
    assert "held_out_loss: 0.4" in (tmp_path / "chosen.yaml").read_text()
