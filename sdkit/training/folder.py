"""Where a run's files lie: the result, its states, its log."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.events import Event
from sdkit.training.options import WEIGHT_SUFFIXES
from sdkit.training.state import RunState, complete_states, load_newest


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of a run.

    Attributes:
        folder: holds all of them.
        result: what is trained.
    """

    folder: Path
    result: Path

    @classmethod
    def of(cls, output: Path, suffix: str) -> RunFolder:
        """From what ``-o`` says: a folder, or a file with a suffix, beside which the rest goes.

        Args:
            suffix: of the results of the method.

        Raises:
            UsageError: the file's suffix says that it is of another kind.
        """
        if output.suffix in WEIGHT_SUFFIXES and suffix and output.suffix != suffix and not output.is_dir():
            raise UsageError(f"{output}: a {suffix} file is written", f"name it {output.with_suffix(suffix).name}")
        if output.suffix and suffix and not output.is_dir():
            return cls(output.absolute().parent, output)
        name = output.absolute().name
        return cls(output, output / f"{name}{suffix}")

    @classmethod
    def saved(cls, output: Path) -> RunState | None:
        """The newest state of the run at what ``-o`` says, whatever its method writes; None when there is none."""
        folder = output.absolute().parent if output.suffix and not output.is_dir() else output
        found = load_newest(cls(folder, output).states)
        return found[1] if found else None

    @property
    def states(self) -> Path:
        """Saved states."""
        return self.folder / "state"

    @property
    def events(self) -> Path:
        """One JSON object a line for everything that happened."""
        return self.folder / "events.jsonl"

    @property
    def samples(self) -> Path:
        """Pictures drawn on the way."""
        return self.folder / "samples"

    @property
    def board(self) -> Path:
        """TensorBoard's files."""
        return self.folder / "tensorboard"

    def check(self, *, resume: bool, force: bool, beside: Sequence[Path] = ()) -> None:
        """Refuse to begin where another run has been.

        Args:
            beside: further files of the result.

        Raises:
            SdkitError: there is a result or a state, and neither `resume` nor `force` says what to do with it.
        """
        if resume or force:
            return
        if complete_states(self.states):
            raise SdkitError(
                f"{self.states}: a run is saved here", "continue it with --resume, or start again with --force"
            )
        there = next((path for path in (self.result, *beside) if path.exists()), None)
        if there is not None:
            raise SdkitError(f"{there}: already exists", "choose another place with -o, or replace it with --force")

    def begin(self, *, resume: bool) -> None:
        """Make the folder; without `resume`, forget an earlier run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            for place in (self.states, self.samples, self.board):
                shutil.rmtree(place, ignore_errors=True)
            self.events.unlink(missing_ok=True)

    def log(self, step: int) -> TextIO:
        """The log, open for writing; what it says of steps after `step`, which are made again, is dropped."""
        kept = [line for line in self._lines() if _step(line) <= step]
        self.events.write_text("".join(kept), encoding="utf-8")
        return self.events.open("a", encoding="utf-8")

    def _lines(self) -> Iterator[str]:
        if self.events.is_file():
            with self.events.open(encoding="utf-8", errors="replace") as file:
                yield from (line for line in file if line.endswith("\n"))


def write_event(file: TextIO, event: Event) -> None:
    """Add a line, at once, so that a killed run leaves its log."""
    file.write(json.dumps(event.as_dict(), allow_nan=False) + "\n")
    file.flush()


def _step(line: str) -> int:
    """The step of a line of the log; a damaged line belongs to none and is dropped."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return 1 << 62
    return step if isinstance(step, int) else 1 << 62
