"""The store: files kept under the names of their contents, for people who want sdkit to keep theirs.

SDKIT_HOME/store/ab/ab12…ef.safetensors     the name is the file's sha256
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.core.hashing import BLOCK_BYTES
from sdkit.core.paths import data_folder
from sdkit.core.progress import NoProgress, Progress
from sdkit.weights.atomic import AtomicFile, check_space


def store_folder() -> Path:
    """Where the store lies."""
    return data_folder() / "store"


def keep(path: Path, progress: Progress | None = None) -> Path:
    """Copy a file into the store; returns its place there. What is there already stays.

    Raises:
        SdkitError: it is a folder, or the disk is full.
    """
    if path.is_dir():
        raise SdkitError(f"{path}: the store keeps single files, and this is a folder", "register it where it is")
    progress = progress or NoProgress()
    size = path.stat().st_size
    incoming = store_folder() / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    partial = incoming / f"{os.getpid()}-{path.name}"
    check_space(partial, size)
    progress.start(f"storing {path.name}", size)
    try:
        name = f"{_copy(path, partial, progress)}{path.suffix.lower()}"
        target = store_folder() / name[:2] / name
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            with contextlib.suppress(OSError):  # a file system without modes
                partial.chmod(0o444)  # what others link to must not be edited in place
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _copy(path: Path, target: Path, progress: Progress) -> str:
    """Copy a file whole; returns the sha256 of what was written."""
    digest, position = hashlib.sha256(), 0
    with open(path, "rb") as source, AtomicFile(target, overwrite=True) as file:
        while block := source.read(BLOCK_BYTES):
            digest.update(block)
            file.write(block, position)
            position += len(block)
            progress.advance(len(block))
        file.commit()
    return digest.hexdigest()
