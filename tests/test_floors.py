"""What the whole package promises about imports."""

from __future__ import annotations

import subprocess
import sys


def test_importing_sdkit_imports_nothing_else_of_it() -> None:
    program = (
        "import sys, sdkit; print([name for name in sys.modules if name.startswith(('sdkit.', 'torch', 'click'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
