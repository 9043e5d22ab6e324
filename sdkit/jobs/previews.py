"""Keeping the picture that a hub shows of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sdkit.core.errors import SdkitError
from sdkit.hubs.hub import RemoteFile
from sdkit.registry.previews import LARGEST_BYTES, keep_preview, kept_previews


class Reader(Protocol):
    """What can read a file of a hub."""

    def read_range(self, file: RemoteFile, start: int, stop: int) -> bytes:
        """Some bytes of a file."""
        ...


def fetch_preview(hub: Reader, picture: RemoteFile | None, sha256: str) -> tuple[Path | None, str]:
    """The picture of a model, kept from now on, and a remark where it did not come, which is no failure.

    Args:
        hub: where it lies.
        picture: which one; None where the hub has none that anybody may see.
        sha256: of the model's file; empty for a folder, whose pictures nobody would find again.
    """
    kept = kept_previews(sha256)
    if kept or picture is None or not sha256:
        return next(iter(kept), None), ""
    try:
        return keep_preview(sha256, hub.read_range(picture, 0, LARGEST_BYTES + 1)), ""
    except SdkitError as error:
        return None, f"its picture did not come: {error.message}"
