"""Files of real shapes, made once: in the folder SDKIT_LARGE_DIR if it is set, else in a temporary one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Made = Callable[[str], Path]


@pytest.fixture(scope="session")
def made(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A function from a name (``sd15_a``, ``loraxl``, …) to the file, which it makes if it is not there yet."""
    kept = os.environ.get("SDKIT_LARGE_DIR", "")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("made")

    def make(name: str) -> Path:
        path = folder / f"{name}.safetensors"
        if not path.exists():
            script = test_data / "bench" / "make_checkpoints.py"
            subprocess.run([sys.executable, str(script), str(folder), name], check=True)
        return path

    return make
