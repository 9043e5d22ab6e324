"""A folder that appears whole or not at all: filled beside its target under another name, then renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from sdkit.core.errors import SdkitError
from sdkit.weights.atomic import exists_error, partial_path, sync_folder


class AtomicFolder:
    """A folder being filled; use it as a context manager, write below `work`, and call `commit` at the end.

    Args:
        path: the final name.
        overwrite: whether a folder already at `path` may be replaced.

    Raises:
        SdkitError: `path` exists and may not be overwritten, or its parent is missing.
    """

    def __init__(self, path: Path | str, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        check_folder_target(self.path, overwrite=overwrite)
        self.work = partial_path(self.path)
        shutil.rmtree(self.work, ignore_errors=True)  # what a killed run left
        self.work.mkdir()

    def commit(self) -> None:
        """Give the folder its name; an old folder of that name goes away only then."""
        check_folder_target(self.path, overwrite=self.overwrite)
        old = self.path.with_name(f".{self.path.name}.old")
        if self.path.exists():
            os.replace(self.path, old)
        os.replace(self.work, self.path)
        sync_folder(self.path.parent)
        shutil.rmtree(old, ignore_errors=True)

    def abort(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.work, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()  # after a commit there is nothing left to undo


def check_folder_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot or may not be written, before any work is done.

    Raises:
        SdkitError: it exists (and `overwrite` is off), is a file, or its parent is missing.
    """
    if path.is_file():
        raise SdkitError(f"{path}: is a file; the base is a folder, so the output is one too", "name a folder with -o")
    if path.exists() and not overwrite:
        raise exists_error(path)
    if not path.parent.is_dir():
        raise SdkitError(f"{path}: the folder {path.parent} does not exist", f"mkdir -p {path.parent}")
