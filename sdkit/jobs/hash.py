"""Compute every hash by which hubs and web UIs know a file."""

from __future__ import annotations

import os
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.core.progress import NoProgress, Progress
from sdkit.jobs.pull import local_path
from sdkit.weights.hashes import FileHashes, hash_file


def hash(path: Path | str, progress: Progress | None = None) -> FileHashes:
    """Compute sha256, AutoV1, AutoV2, AutoV3, CRC-32 and the two ``sshs`` hashes of one file, reading it once.

    Args:
        path: of a file, or whatever else names one, see `sdkit.jobs.pull.local_path`.
        progress: told about the bytes.

    Raises:
        SdkitError: `path` is a folder.
        OSError: the file cannot be read.
    """
    path = local_path(path)
    if os.path.isdir(path):
        raise SdkitError(f"{path} is a folder; a hash belongs to one file", f"sdkit hash {path}/*.safetensors")
    progress = progress or NoProgress()
    progress.start(f"hashing {os.path.basename(path)}", os.path.getsize(path))
    return hash_file(path, progress)
