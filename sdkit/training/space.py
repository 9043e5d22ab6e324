"""Whether a failed save means that the disk is full."""

from __future__ import annotations

import errno
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.weights.atomic import free_bytes

_FULL = {errno.ENOSPC, errno.EDQUOT}


def is_full(error: Exception, folder: Path, needed: int) -> bool:
    """Whether a save failed because the disk is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return isinstance(error, SdkitError) and free_bytes(folder) < needed
