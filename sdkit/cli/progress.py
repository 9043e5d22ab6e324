"""How the command line shows long work: a bar on a terminal, else a line for every tenth that took its time."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from sdkit.cli.output import Mode, Output, clean, write_line
from sdkit.core.events import Drawing, Event
from sdkit.core.human import human_bytes
from sdkit.core.progress import Progress

if TYPE_CHECKING:
    import rich.progress

# Short work shows nothing: a bar that flashes by informs nobody, and drawing one costs a tenth of a second of imports.
PATIENCE_SECONDS = 0.5
SECONDS_BETWEEN_LINES = 2.0

Clock = Callable[[], float]


@contextmanager
def show_progress(stream: TextIO) -> Iterator[Progress]:
    """Show progress on `stream` while the context lasts."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield LineProgress(stream)
        return
    bar = BarProgress(stream)
    try:
        yield bar
    finally:
        bar.close()


class LineProgress:
    """Writes ``merging: 40 % of 6.9 GB, 1.1 GB/s, 4 s left``: at each tenth, at most one line every two seconds.

    Speed is counted from the first line on, which has none: until then libraries were loaded too.
    """

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self.start("", 0)

    def start(self, label: str, total: int) -> None:
        """Begin a piece of work of `total` bytes."""
        self._label, self._total, self._done, self._tenths = label, total, 0, 0
        self._wrote = self._clock()
        self._first_line: tuple[float, int] | None = None  # when it was written, and the bytes done by then

    def advance(self, nbytes: int) -> None:
        """Count bytes, and write a line when one is due."""
        with self._lock:
            self._done += nbytes
            tenths = 10 * self._done // self._total if self._total else 0
            now = self._clock()
            if tenths > self._tenths and now - self._wrote >= SECONDS_BETWEEN_LINES:
                self._tenths, self._wrote = tenths, now
                write_line(self._stream, self._line(now))

    def _line(self, now: float) -> str:
        done = f"{clean(self._label)}: {100 * self._done // self._total} % of {human_bytes(self._total)}"
        if self._first_line is None:
            self._first_line = (now, self._done)
            return done
        began, before = self._first_line
        speed = (self._done - before) / (now - began)
        left = max(self._total - self._done, 0) / speed
        return f"{done}, {human_bytes(speed)}/s, {left:.0f} s left"


class BarProgress:
    """A bar with bytes done, speed and time left, drawn by rich once the work has lasted half a second."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._bar: rich.progress.Progress | None = None
        self.start("", 0)

    def start(self, label: str, total: int) -> None:
        """Begin a piece of work of `total` bytes; the bar of an earlier one is taken away."""
        self.close()
        self._label, self._total, self._done = label, total, 0
        self._began = self._clock()

    def advance(self, nbytes: int) -> None:
        """Count bytes, and move the bar."""
        with self._lock:
            self._done += nbytes
            if self._bar is None and self._clock() - self._began >= PATIENCE_SECONDS:
                self._bar = _bar(self._stream, self._label, self._total)
                self._bar.start()
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=self._done)

    def close(self) -> None:
        """Take the bar away, leaving the line it stood on empty."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar(stream: TextIO, label: str, total: int) -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(file=stream),
        transient=True,
    )
    bar.add_task(clean(label), total=total)
    return bar


@contextmanager
def show_drawing(output: Output) -> Iterator[Callable[[Event], None]]:
    """What the events of drawing should be given to, while the context lasts: a bar on a terminal only."""
    with show_counting(output) as show:

        def show_event(event: Event) -> None:
            if isinstance(event, Drawing):
                show(event.step, event.steps)

        yield show_event


@contextmanager
def show_counting(output: Output, label: str = "") -> Iterator[Callable[[int, int], None]]:
    """What the number of things done, and of all, should be given to while the context lasts: a bar on a terminal."""
    if output.mode is not Mode.TEXT or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(label)

    def show(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        (bar.start if done < total else bar.stop)()  # another bar may follow

    try:
        yield show
    finally:
        bar.stop()
