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
    folder = _embedded()
    if not (folder / "model_index.json").is_file():
        raise SdkitError("the base tiny is missing from this installation", "install sdkit again, or name another base")
    return folder


def base_word(path: Path) -> str:
    """The word of a command line that `resolve_base` takes for `path`."""
    if path == _embedded():
        return TINY
    return os.path.join(os.curdir, path) if str(path) == TINY else str(path)


def _embedded() -> Path:
    return Path(__file__).parents[1] / "assets" / TINY
