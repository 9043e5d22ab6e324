"""Room on the disk: whether there is enough before a run, and whether a failed save means that there is none."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from sdkit.core.errors import SdkitError

_FULL = {errno.ENOSPC, errno.EDQUOT}


def free_bytes(folder: Path) -> int:
    """What is free where `folder` is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_space(folder: Path, needed: int) -> None:
    """Raise SdkitError unless `needed` bytes are free."""
    free = free_bytes(folder)
    if free < needed:
        raise SdkitError(
            f"{folder}: needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free",
            "free some space, or write to another disk with -o",
        )


def is_full(error: Exception, folder: Path, needed: int) -> bool:
    """Whether a save failed because the disk is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return isinstance(error, SdkitError) and free_bytes(folder) < needed
