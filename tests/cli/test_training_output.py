from __future__ import annotations

from typing import Any

import pytest

from sdkit.cli.commands.train import is_first_process
from sdkit.cli.output import Output
from sdkit.cli.training import Narrator
from sdkit.core.events import Drawn, Encoding, Event, Started, Step


def told(events: list[tuple[float, Event]], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines for events at given seconds."""
    now = 0.0
    narrator = Narrator(Output(), clock=lambda: now)
    for now, event in events:  # noqa: B007 (the clock reads it)
        narrator(event)
    return capsys.readouterr().err.splitlines()


def step(number: int) -> Step:
    return Step(number, 0.5, {}, 1e-4, 1.0, 2.0)


def test_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[tuple[float, Event]] = [(float(second), Encoding(0, second, 100)) for second in range(1, 22)]
    events += [(22.0, Started(0, 50)), (23.0, step(1)), (31.0, step(2))]
    lines = told(events, capsys)
    assert lines[:2] == ["encoding pictures: 10 of 100", "encoding pictures: 20 of 100"]
    assert len(lines) == 3 and lines[2].startswith("step 2 of 50: loss 0.5000, 0.50 it/s, ")


def test_drawing_the_class_says_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[tuple[float, Event]] = [(float(2 * n), Drawn(0, n, 20, 2.0 * n)) for n in range(1, 11)]
    assert told(events, capsys) == [
        "drawn 5 of 20 class pictures, 30 s left",
        "drawn 10 of 20 class pictures, 20 s left",
    ]


@pytest.mark.parametrize(("rank", "first"), [(None, True), ("0", True), ("1", False)])
def test_of_several_processes_the_first_speaks(rank: Any, first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert is_first_process() is first
