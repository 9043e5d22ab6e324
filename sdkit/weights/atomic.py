"""Files that appear whole or not at all.

The bytes go to a file without a name (Linux) or to ``.NAME.partial`` beside the target (elsewhere), are flushed to the
disk, and get their name in one step. A killed process leaves nothing on Linux; elsewhere it leaves one partial file,
which the next run with the same target takes over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from sdkit.core.errors import SdkitError
from sdkit.weights import positional


class AtomicFile:
    """A file being written; use it as a context manager and call `commit` at the end.

    Args:
        path: the final name.
        overwrite: whether a file already at `path` may be replaced.

    Raises:
        SdkitError: `path` exists and may not be overwritten, or its folder cannot be written.
    """

    def __init__(self, path: Path | str, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        check_target(self.path, overwrite=overwrite)
        self._partial: Path | None = None
        try:
            self.descriptor = self._open()
        except OSError as error:
            raise SdkitError(f"{self.path}: cannot be written: {error.strerror}") from None

    def _open(self) -> int:
        folder = self.path.parent
        if positional.ACCELERATED and hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir():
            with contextlib.suppress(OSError):  # the file system may not have nameless files
                return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
        self._partial = partial_path(self.path)
        # The existing partial file of a killed run is taken over, never followed if it is a link.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(self._partial, flags, 0o666)
        try:
            _lock(descriptor, self.path)
            os.ftruncate(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def reserve(self, size: int) -> None:
        """Claim `size` bytes now, so that a full disk is reported before any work is done.

        Raises:
            SdkitError: the disk has not that much room.
        """
        free = shutil.disk_usage(self.path.parent).free
        if free < size:
            raise no_space(self.path, size, free)
        try:
            if positional.ACCELERATED and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.descriptor, 0, size)
            else:
                os.ftruncate(self.descriptor, size)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise no_space(self.path, size, free) from None
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise
            os.ftruncate(self.descriptor, size)  # a file system that cannot preallocate

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write `data` at `offset`; threads may call this at once."""
        positional.write(self.descriptor, memoryview(data), offset)

    def commit(self) -> None:
        """Flush to the disk and give the file its name.

        Raises:
            SdkitError: somebody else has meanwhile made a file of that name, and it may not be overwritten.
        """
        os.fsync(self.descriptor)
        check_target(self.path, overwrite=self.overwrite)
        if self._partial is None:
            self._link()
        else:
            self._rename(self._partial)
        self._partial = None
        self._close()
        sync_folder(self.path.parent)

    def abort(self) -> None:
        """Leave nothing behind."""
        self._close()
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)
            self._partial = None

    def _link(self) -> None:
        if not self.overwrite:
            try:
                _link_descriptor(self.descriptor, self.path)
            except FileExistsError:
                raise exists_error(self.path) from None
            return
        name = partial_path(self.path)
        name.unlink(missing_ok=True)
        _link_descriptor(self.descriptor, name)
        os.replace(name, self.path)

    def _rename(self, partial: Path) -> None:
        if sys.platform == "win32":
            self._close()  # Windows renames no open file
        os.replace(partial, self.path)

    def _close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()  # after a commit there is nothing left to undo


def write_file(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write a small file atomically."""
    with AtomicFile(path, overwrite=overwrite) as file:
        file.write(data, 0)
        file.commit()


def partial_path(path: Path) -> Path:
    """Where the unfinished `path` lies on systems without nameless files."""
    return path.with_name(f".{path.name}.partial")


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a target that cannot or may not be written, before any work is done.

    Raises:
        SdkitError: it exists (and `overwrite` is off), is a folder, or its folder is missing.
    """
    if path.is_dir():
        raise SdkitError(f"{path}: is a folder", "name an output file")
    if not overwrite and path.exists():
        raise exists_error(path)
    if not path.parent.is_dir():
        raise SdkitError(f"{path}: the folder {path.parent} does not exist", f"mkdir -p {path.parent}")


def exists_error(path: Path) -> SdkitError:
    """The error for an output that is already there."""
    return SdkitError(f"{path}: already exists", "choose another name with -o, or replace it with --force")


def no_space(path: Path, size: int, free: int) -> SdkitError:
    """The error for a full disk."""
    return SdkitError(
        f"{path}: needs {size / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free",
        "free some space, or write to another disk with -o",
    )


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure, where the system can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network drives refuse; the rename itself has happened
        pass
    finally:
        os.close(descriptor)


def _link_descriptor(descriptor: int, name: Path) -> None:
    """Give a nameless file its first name."""
    folder = os.open(name.parent, os.O_RDONLY)
    try:
        # Only with a folder descriptor does Python call linkat, which follows /proc's link to the file itself.
        os.link(f"/proc/self/fd/{descriptor}", name.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def _lock(descriptor: int, path: Path) -> None:
    if sys.platform == "win32":
        return  # Windows itself refuses to open a file somebody is writing
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SdkitError(f"{path}: another process is writing it", "wait for it to finish") from None
    except OSError:
        pass  # a file system without locks
