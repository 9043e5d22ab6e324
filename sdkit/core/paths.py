"""Folders of the person who runs sdkit, all of which ``SDKIT_HOME`` moves; and what a path takes of a disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_NAME = "sdkit-studio"  # the name `sdkit` belongs to another program, which keeps files of its own


def data_folder() -> Path:
    """Where things stay that are worth keeping: ``SDKIT_HOME``, else the system's folder for a program's data."""
    chosen = os.environ.get("SDKIT_HOME")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return _local_app_data() / _NAME
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / _NAME
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / _NAME


def cache_folder() -> Path:
    """Where things go that can be made again: ``SDKIT_CACHE``, else below ``SDKIT_HOME``, else the system's folder."""
    chosen = os.environ.get("SDKIT_CACHE")
    if chosen:
        return Path(chosen)
    if os.environ.get("SDKIT_HOME") or sys.platform == "win32":
        return data_folder() / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / _NAME
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / _NAME


def written_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of all files in a folder."""
    place = Path(path)
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())


def _local_app_data() -> Path:
    return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
