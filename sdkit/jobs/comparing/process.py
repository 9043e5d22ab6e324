"""Having an order carried out by a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.core.events import Event, event_of
from sdkit.jobs.comparing.order import Order
from sdkit.jobs.comparing.worker import STOPPED

LOG = "worker.log"
WORDS = [sys.executable, "-m", "sdkit.jobs.comparing.worker"]


def carry_out(order: Order, watch: Callable[[Event], None], should_stop: Callable[[], bool]) -> bool:
    """Have an order carried out.

    Returns:
        Whether it was: not if it was asked to stop before its end.

    Raises:
        SdkitError: it could not be; the process's own words.
    """
    folder = Path(order.folder)
    folder.mkdir(parents=True, exist_ok=True)
    said: dict[str, str] = {}
    quiet = {"SDKIT_REGISTRY": "off"} if order.trial else {}
    with (folder / LOG).open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            WORDS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            env={**os.environ, **quiet, "PYTHONIOENCODING": "utf-8"},
        )
        try:
            _listen(process, order, watch, should_stop, said)
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
    if process.returncode not in (0, STOPPED):
        raise SdkitError(said.get("error") or _last_words(folder / LOG, process.returncode), said.get("hint", ""))
    (folder / LOG).unlink(missing_ok=True)
    return process.returncode == 0


def _listen(
    process: subprocess.Popen[str],
    order: Order,
    watch: Callable[[Event], None],
    should_stop: Callable[[], bool],
    said: dict[str, str],
) -> None:
    """Give the order, and hear what happens until the process ends."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(order.line + "\n")
    process.stdin.flush()
    with process.stdout:
        for line in process.stdout:
            record = _record(line)
            if "error" in record:
                said.update(record)
            elif (event := event_of(record)) is not None:
                watch(event)
            if should_stop() and not process.stdin.closed:
                process.stdin.close()  # which is how it is asked to stop
    if not process.stdin.closed:
        process.stdin.close()


def _record(line: str) -> dict[str, str]:
    """A line as the worker writes them; empty for what a library has printed."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _last_words(log: Path, status: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"the process ended with status {status}"
