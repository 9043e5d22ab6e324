"""sdkit in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def run(*arguments: object) -> dict[str, Any]:
    """Run sdkit in a process of its own, which must succeed; its ``--json``."""
    command = [sys.executable, "-m", "sdkit", *map(str, arguments), "--json"]
    # The shell in between is small: a process inherits the memory peak of the one that started it.
    shell = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    done = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report
