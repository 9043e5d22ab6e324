"""Numbers as people say them."""

from __future__ import annotations


def human_bytes(count: float) -> str:
    """A number of bytes as people read it: ``6.9 GB``, in powers of 1000 as disks and hubs count."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def plural(count: int, noun: str) -> str:
    """A number of things: ``1 tensor``, ``2,531 tensors``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def human_seconds(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
