from __future__ import annotations

import io
import sys

import pytest

from sdkit.cli.output import Mode, Output
from sdkit.cli.progress import BarProgress, LineProgress, show_progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_for_each_tenth_with_speed_and_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, clock)
    progress.start("merging\x1b[0m", 10_000_000)
    for _ in range(10):
        clock.now += 5
        progress.advance(500_000)
        clock.now += 5
        progress.advance(500_000)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "merging: 10 % of 10.0 MB"
    assert lines[3] == "merging: 40 % of 10.0 MB, 100.0 kB/s, 60 s left"
    assert lines[-1] == "merging: 100 % of 10.0 MB, 100.0 kB/s, 0 s left"


def test_what_is_loaded_before_the_first_line_is_not_in_the_speed() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, clock)
    progress.start("merging", 1000)
    progress.advance(10)
    clock.now += 5  # torch is imported
    progress.advance(90)
    clock.now += 3
    progress.advance(300)
    assert stream.getvalue().splitlines() == [
        "merging: 10 % of 1.0 kB",
        "merging: 40 % of 1.0 kB, 100 B/s, 6 s left",
    ]


def test_quick_work_says_nothing() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, clock)
    progress.start("merging", 100)
    for _ in range(100):
        clock.now += 0.01
        progress.advance(1)
    assert stream.getvalue() == ""


def test_work_of_no_bytes_is_done_at_once() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, clock)
    progress.start("hashing", 0)
    clock.now += 10
    progress.advance(0)
    assert stream.getvalue() == ""


def test_the_bar_appears_once_the_work_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, clock = Terminal(), Clock()
    bar = BarProgress(stream, clock)
    bar.start("merging [bold]x", 1_000_000)
    bar.advance(10)
    assert stream.getvalue() == ""
    clock.now += 1
    bar.advance(499_990)
    bar.close()
    assert "merging [bold]x" in stream.getvalue()
    assert "0.5/1.0 MB" in stream.getvalue()


@pytest.mark.parametrize(
    ("stream", "term", "kind"),
    [(Terminal(), "xterm", BarProgress), (Terminal(), "dumb", LineProgress), (io.StringIO(), "xterm", LineProgress)],
)
def test_a_bar_is_for_terminals(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, term: str, kind: type) -> None:
    monkeypatch.setenv("TERM", term)
    with show_progress(stream) as progress:
        assert type(progress) is kind


@pytest.mark.parametrize("mode", [Mode.JSON, Mode.QUIET])
def test_programs_and_scripts_see_no_progress(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Output(mode).progress() as progress:
        assert not isinstance(progress, (BarProgress, LineProgress))
