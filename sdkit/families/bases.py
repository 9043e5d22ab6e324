"""Bases by name."""

from __future__ import annotations

import os
from pathlib import Path

from sdkit.core.errors import SdkitError

TINY = "tiny"


def resolve_base(name: str | os.PathLike[str]) -> Path:
    """Where a base lies: the text ``tiny`` names the one that comes with sdkit, everything else is a path.

    A folder of that name is ``./tiny``, or a `Path`.

    Raises:
        SdkitError: the embedded base is not there.
    """
    if name != TINY:
        return Path(name)
    folder = Path(__file__).parents[1] / "assets" / TINY
    if not (folder / "model_index.json").is_file():
        raise SdkitError("the base tiny is missing from this installation", "install sdkit again, or name another base")
    return folder
