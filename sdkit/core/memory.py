"""How much memory this process has needed."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory_mib() -> float | None:
    """Largest resident memory of this process so far, in MiB; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    try:
        # Linux' rusage also counts the process this one was started from, until it became this program.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / (1 << 10)
    except (OSError, IndexError, ValueError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1 << 20) if sys.platform == "darwin" else peak / (1 << 10)
