"""The files that are merged: real shapes, random numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def ensure(folder: Path, names: list[str]) -> None:
    """Make what is missing, with the script that SDKIT_TEST_DATA holds.

    Raises:
        SystemExit: files are missing, and SDKIT_TEST_DATA does not name the folder with the script.
    """
    missing = [name for name in names if not (folder / f"{name}.safetensors").exists()]
    if not missing:
        return
    root = os.environ.get("SDKIT_TEST_DATA", "")
    script = Path(root) / "bench" / "make_checkpoints.py"
    if not root or not script.exists():
        sys.exit(f"{folder} lacks {', '.join(missing)}; SDKIT_TEST_DATA must name the folder whose script makes them")
    subprocess.run([sys.executable, script, folder, *missing], check=True, stdout=sys.stderr)
