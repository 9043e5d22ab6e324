"""A run's log, ``events.jsonl``, read back: the only thing a report is made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdkit.core.errors import SdkitError

Record = Mapping[str, Any]
EVENTS = "events.jsonl"


@dataclass(frozen=True, slots=True)
class RunLog:
    """What happened, in order.

    Attributes:
        folder: the run's.
        records: the log's objects; of a step that was made again after a roll-back, both.
    """

    folder: Path
    records: tuple[Record, ...]

    def named(self, *names: str) -> list[Record]:
        """The records of the events called `names`."""
        return [record for record in self.records if record["event"] in names]

    @property
    def begun(self) -> Record:
        """What the run is, as its last process said."""
        return self.named("begun")[-1]

    @property
    def steps(self) -> list[Record]:
        """The steps that count, in order: after a roll-back, those made again."""
        return self._last_of_each("step")

    @property
    def validations(self) -> list[Record]:
        """The held-out losses, in the order of their steps."""
        return self._last_of_each("validation")

    @property
    def samples(self) -> list[Record]:
        """The pictures drawn, in the order of their steps."""
        return self._last_of_each("sampled")

    @property
    def step(self) -> int:
        """Steps finished."""
        return max((int(record["step"]) for record in self.named("step", "saved", "finished")), default=0)

    @property
    def finished(self) -> bool:
        """Whether all steps are done and the result is written."""
        ended = self.named("ended")
        return bool(self.named("finished")) and bool(ended) and ended[-1].get("output_bytes") is not None

    def _last_of_each(self, name: str) -> list[Record]:
        found = {int(record["step"]): record for record in self.named(name)}
        return [found[step] for step in sorted(found)]


def read_log(run: Path) -> RunLog:
    """The log of a run.

    Args:
        run: its folder, or a file beside its log.

    Raises:
        SdkitError: there is no log, or it does not say what the run is.
    """
    folder = run if run.is_dir() else run.parent
    path = folder / EVENTS
    if not path.is_file():
        raise SdkitError(f"{run}: holds no {EVENTS}", "name the folder that a training run has written")
    with path.open(encoding="utf-8", errors="replace") as file:
        log = RunLog(folder, tuple(_records(file)))
    if not log.named("begun"):
        raise SdkitError(f"{path}: does not say what the run is", "it was written by an earlier version of sdkit")
    return log


def _records(lines: Iterator[str]) -> Iterator[Record]:
    """The objects of a log. A line that a killed process left unfinished is no object, and nothing is lost with it."""
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("event"), str) and isinstance(record.get("step"), int):
            yield record
