"""Runs of `sdkit train` as processes of their own, to be killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def wait_for_step(out: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Until the log of the run in `out` has that step; the run must still go on then."""
    log = out / "events.jsonl"
    while process.poll() is None and not (log.exists() and f'"event": "step", "step": {step},' in log.read_text()):
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be stopped"


def whole_and_killed(
    method: str, base: Path, data: Path, settings: Sequence[str], folder: Path, *, step: int = 3
) -> tuple[Path, Path]:
    """The folders of two runs of the same name: one that was left alone, and one killed after `step` and resumed."""
    words = [sys.executable, "-m", "sdkit", "train", method, "--base", str(base), "--data", str(data)]
    whole, killed = folder / "1" / "x", folder / "2" / "x"
    subprocess.run([*words, "-o", str(whole), *settings], check=True, capture_output=True)
    with subprocess.Popen([*words, "-o", str(killed), *settings], stderr=subprocess.DEVNULL) as process:
        wait_for_step(killed, step, process)
        process.kill()
    subprocess.run([*words, "-o", str(killed), "--resume"], check=True, capture_output=True)
    return whole, killed
