"""A folder that appears whole or not at all: filled beside its target under another name, then renamed.

A killed process leaves that other folder, ``.NAME.partial``; the next run with the same target takes it over.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from sdkit.core.errors import SdkitError
from sdkit.weights.atomic import cannot_write, exists_error, lock, partial_path, sync_folder

# One of these lies in every folder of a model, so that `overwrite` never removes a folder of anything else.
MODEL_FILES = ("model_index.json", "config.json", "adapter_config.json", "*.index.json")


class AtomicFolder:
    """A folder being filled; use it as a context manager, write below `work`, and call `commit` at the end.

    Args:
        path: the final name.
        overwrite: whether a model's folder already at `path` may be replaced.

    Raises:
        SdkitError: `path` exists and may not be overwritten, or its parent is missing, or another process writes it.
    """

    def __init__(self, path: Path | str, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        check_folder_target(self.path, overwrite=overwrite)
        self.work = partial_path(self.path)
        try:
            self._lock = _claim(self.work, self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self._open = True

    def commit(self) -> None:
        """Flush to the disk and give the folder its name; an old folder of that name goes away only then."""
        check_folder_target(self.path, overwrite=self.overwrite)
        _sync_tree(self.work)
        old = self.path.with_name(f".{self.path.name}.old")
        replaces = os.path.lexists(self.path)
        if replaces:
            _remove(old)
            os.replace(self.path, old)
        try:
            os.replace(self.work, self.path)
        except OSError:
            if replaces:
                os.replace(old, self.path)
            raise
        self._close()
        sync_folder(self.path.parent)
        if replaces:
            _remove(old)

    def abort(self) -> None:
        """Leave nothing behind."""
        if self._open:
            _remove(self.work)
            self._close()

    def _close(self) -> None:
        self._open = False
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()  # after a commit there is nothing left to undo


def check_folder_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot or may not be written, before any work is done.

    Raises:
        SdkitError: it exists (and `overwrite` is off, or it holds no model), is a file, or its parent is missing.
    """
    if path.name in {"", ".."}:
        raise SdkitError(f"{path}: has no name of its own", "name a new folder with -o")
    if path.is_file():
        raise SdkitError(f"{path}: is a file; the base is a folder, so the output is one too", "name a folder with -o")
    if os.path.lexists(path) and not overwrite:
        raise exists_error(path)
    if path.is_dir() and any(path.iterdir()) and not any(any(path.glob(name)) for name in MODEL_FILES):
        raise SdkitError(f"{path}: holds no model, so it is not replaced", "remove it yourself, or choose another name")
    if not path.parent.is_dir():
        raise SdkitError(f"{path}: the folder {path.parent} does not exist", f"mkdir -p {path.parent}")


def _claim(work: Path, target: Path) -> int | None:
    """Make the folder `work`, or empty the one a killed run left, and lock it (Windows cannot)."""
    with contextlib.suppress(FileExistsError):
        work.mkdir()
    descriptor = None
    if sys.platform != "win32":
        descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if descriptor is not None:
            lock(descriptor, work, target)
        for entry in work.iterdir():
            _remove(entry)
    except BaseException:
        if descriptor is not None:
            os.close(descriptor)
        raise
    return descriptor


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _sync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(folder, name), "r+b") as file:
                os.fsync(file.fileno())
        sync_folder(Path(folder))
