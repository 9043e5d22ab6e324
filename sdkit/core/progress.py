"""How long work tells whoever waits that it moves on. The command line shows it; a function call ignores it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told about bytes as they are done. Methods may be called from any thread."""

    def start(self, label: str, total: int) -> None:
        """Begin a piece of work of `total` bytes, known before the first is done."""
        ...

    def advance(self, nbytes: int) -> None:
        """Count `nbytes` more as done."""
        ...


class LabelledProgress:
    """Tells another progress of work, under a label of its own: for jobs that are done by another job."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress = progress
        self._label = label

    def start(self, label: str, total: int) -> None:
        """Begin it under the own label."""
        self._progress.start(self._label, total)

    def advance(self, nbytes: int) -> None:
        """Pass the bytes on."""
        self._progress.advance(nbytes)


class NoProgress:
    """Shows nothing: the default wherever nobody watches."""

    def start(self, label: str, total: int) -> None:
        """Ignore the beginning."""

    def advance(self, nbytes: int) -> None:
        """Ignore the bytes."""
