"""Folders of the person who runs sdkit."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Where things go that can be made again: ``SDKIT_CACHE``, else the system's cache folder."""
    chosen = os.environ.get("SDKIT_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "sdkit" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sdkit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdkit"
