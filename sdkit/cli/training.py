"""How the command line shows a training run: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sdkit.cli.output import Mode, Output
from sdkit.core.events import Drawn, Encoding, Event, Note, Paused, Resumed, RolledBack, Started, Step, Validation
from sdkit.core.human import human_seconds

if TYPE_CHECKING:
    import rich.progress

SECONDS_BETWEEN_LINES = 10.0
SMOOTHING = 0.05


class Narrator:
    """Tells events on stderr: remarks at once, steps in a bar, or in a line at most every ten seconds.

    Args:
        output: where remarks go.
        bar: shows the steps; None for lines.
        clock: seconds.

    Attributes:
        told: remarks that were made, which nobody needs to read again at the end.
    """

    def __init__(
        self, output: Output, bar: rich.progress.Progress | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.told: set[str] = set()
        self._output = output
        self._bar = bar
        self._task = bar.add_task("training", total=None, loss="") if bar else None
        self._clock = clock
        self._told = clock()
        self._started = Started(0, 0)
        self._loss: float | None = None
        self._pace: float | None = None

    def __call__(self, event: Event) -> None:
        """Tell one event."""
        if isinstance(event, Encoding):
            self._encoding(event)
        elif isinstance(event, Started):
            self._started = event
        elif isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Drawn):
            self._drawn(event)
        elif isinstance(event, (Paused, RolledBack)):
            self._output.warn(describe_event(event))
        elif line := describe_event(event):
            self.told.add(line)
            self._output.say(line)

    def _encoding(self, event: Encoding) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=event.total, completed=event.done, loss="encoding pictures")
        else:
            self._say_now_and_then(f"encoding pictures: {event.done} of {event.total}")

    def _step(self, event: Step) -> None:
        if event.skipped:
            self._output.warn(f"step {event.step}: the gradient is no number; the step is skipped")
            return
        self._loss = _smooth(self._loss, event.loss)
        self._pace = _smooth(self._pace, event.seconds)
        loss = f"loss {self._loss:.4f}, {1 / max(self._pace, 1e-9):.2f} it/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=self._started.steps, completed=event.step, loss=loss)
            return
        left = human_seconds(self._pace * (self._started.steps - event.step))
        self._say_now_and_then(f"step {event.step} of {self._started.steps}: {loss}, {left} left")

    def _drawn(self, event: Drawn) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=event.of, completed=event.pictures, loss="drawing the class")
            return
        left = human_seconds(event.seconds / event.pictures * (event.of - event.pictures))
        self._say_now_and_then(f"drawn {event.pictures} of {event.of} class pictures, {left} left")

    def _say_now_and_then(self, line: str) -> None:
        now = self._clock()
        if now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            self._output.say(line)


def _smooth(before: float | None, value: float) -> float:
    return value if before is None else before + SMOOTHING * (value - before)


def describe_event(event: Event) -> str:
    """An event in a line; empty for those nobody needs to be told of."""
    if isinstance(event, Validation):
        return f"step {event.step}: held-out loss {event.loss:.4f}"
    if isinstance(event, RolledBack):
        return f"step {event.step}: no finite gradients; back to step {event.to_step}, lr × {event.lr_scale:g}"
    if isinstance(event, Paused):
        return f"step {event.step}: paused: {event.reason}"
    return event.text if isinstance(event, (Note, Resumed)) else ""


@contextmanager
def show_training(output: Output) -> Iterator[Narrator]:
    """What a run's events should be given to, while the context lasts."""
    if output.mode is not Mode.TEXT or not sys.stderr.isatty():
        yield Narrator(output)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Narrator(output, bar)
