"""Running a command as a whole process and measuring it from outside.

This process must stay small: a child's peak memory counts from its parent's at the moment of the fork. So nothing here,
nor in what uses it, imports torch.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Run:
    """One process.

    Attributes:
        seconds: wall time, from before the fork to after the exit.
        cpu_seconds: user and system time.
        mib: peak resident memory.
        stdout: what it wrote.
    """

    seconds: float
    cpu_seconds: float
    mib: float
    stdout: str


class Failed(Exception):
    """The command failed; the message is its ``error:`` line, or the last line it wrote on stderr."""


def run(command: Sequence[str | Path]) -> Run:
    """Run a command.

    Raises:
        Failed: its exit code is not zero.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    stdout, stderr = _drain(process)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        lines = stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise Failed(next((line for line in lines if line.startswith("error: ")), lines[-1]))
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, stdout)


def _drain(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Both streams to their ends, without waiting for the process, whose `wait4` tells the memory."""
    assert process.stdout is not None and process.stderr is not None
    errors: list[str] = []
    reader = Thread(target=lambda: errors.append(process.stderr.read() if process.stderr else ""))
    reader.start()
    stdout = process.stdout.read()
    reader.join()
    return stdout, errors[0]


@dataclass
class Series:
    """The runs of one command."""

    name: str
    runs: list[Run] = field(default_factory=list)
    failed: str = ""

    def add(self, command: Sequence[str | Path]) -> None:
        """Run it once more; a failure is kept and ends the series."""
        if self.failed:
            return
        try:
            self.runs.append(run(command))
        except (Failed, OSError) as error:
            self.failed = str(error)

    @property
    def best(self) -> float:
        """The shortest wall time."""
        return min(run.seconds for run in self.runs)

    @property
    def median(self) -> float:
        """The median wall time."""
        return statistics.median(run.seconds for run in self.runs)

    @property
    def cpu(self) -> float:
        """The least processor time."""
        return min(run.cpu_seconds for run in self.runs)

    @property
    def mib(self) -> float:
        """The largest peak memory."""
        return max(run.mib for run in self.runs)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{"seconds": run.seconds, "cpu_seconds": run.cpu_seconds, "mib": run.mib} for run in self.runs]
        return {"name": self.name, "failed": self.failed, "runs": rows}
