from __future__ import annotations

import subprocess
import sys

from sdkit.core.memory import peak_memory_mib


def test_the_peak_is_this_process_own() -> None:
    ballast = bytearray(b"\1") * (300 << 20)
    here = peak_memory_mib()
    code = "from sdkit.core.memory import peak_memory_mib; print(peak_memory_mib())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(ballast) == 300 << 20 and here is not None and here > 300
    assert float(child.stdout) < 100
