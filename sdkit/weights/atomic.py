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
from sdkit.core.human import human_bytes
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
            raise cannot_write(self.path, error) from None

    def _open(self) -> int:
        folder = self.path.parent
        if positional.ACCELERATED and hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir():
            with contextlib.suppress(OSError):  # the file system may not have nameless files
                return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
        return self._open_partial(partial_path(self.path))

    def _open_partial(self, partial: Path) -> int:
        # The existing partial file of a killed run is taken over, never followed if it is a link.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(partial, flags, 0o666)
        try:
            lock(descriptor, partial, self.path)
            os.ftruncate(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._partial = partial
        return descriptor

    def reserve(self, size: int) -> None:
        """Claim `size` bytes now, so that a full disk is reported before any work is done.

        Raises:
            SdkitError: the disk has not that much room, or no file may be that large.
        """
        check_space(self.path, size)
        try:
            if positional.ACCELERATED and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.descriptor, 0, size)
            else:
                os.ftruncate(self.descriptor, size)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise no_space(self.path, size) from None
            if error.errno == errno.EFBIG:
                raise too_large(self.path, size) from None
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
        try:
            self._give_name()
        except FileExistsError:
            raise exists_error(self.path) from None
        self._partial = None
        self._close()
        sync_folder(self.path.parent)

    def abort(self) -> None:
        """Leave nothing behind."""
        if sys.platform == "win32":
            self._close()  # Windows removes no open file
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)  # before the lock goes: afterwards it could be another run's
            self._partial = None
        self._close()

    def _give_name(self) -> None:
        if self._partial is None and not self.overwrite:
            _link_descriptor(self.descriptor, self.path)  # fails if the name is taken
            return
        if self._partial is None:  # no system call links over an existing name; renaming does that
            partial = partial_path(self.path)
            partial.unlink(missing_ok=True)
            _link_descriptor(self.descriptor, partial)
            self._partial = partial
        if sys.platform == "win32":
            self._close()  # Windows renames no open file
        rename = os.replace if self.overwrite else os.rename  # Windows' rename fails if the name is taken
        rename(self._partial, self.path)

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
    if not overwrite and os.path.lexists(path):
        raise exists_error(path)
    if not path.parent.is_dir():
        raise SdkitError(f"{path}: the folder {path.parent} does not exist", f"mkdir -p {path.parent}")


def exists_error(path: Path) -> SdkitError:
    """The error for an output that is already there."""
    return SdkitError(f"{path}: already exists", "choose another name with -o, or replace it with --force")


def check_space(path: Path, size: int) -> None:
    """Refuse an output of `size` bytes that the disk has no room for.

    Raises:
        SdkitError: saying how much is needed and how much is free.
    """
    if free_bytes(path) < size:
        raise no_space(path, size)


def free_bytes(path: Path) -> int:
    """What is free where `path` is, or will be."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def no_space(path: Path, size: int) -> SdkitError:
    """The error for a full disk."""
    return SdkitError(
        f"{path}: needs {human_bytes(size)}, the disk has {human_bytes(free_bytes(path))} free",
        "free some space, or write to another disk with -o",
    )


def too_large(path: Path, size: int) -> SdkitError:
    """The error for a file above the limit of its file system (4 GB on FAT) or of `ulimit -f`."""
    return SdkitError(
        f"{path}: no file of {human_bytes(size)} may be written there",
        "write to another disk with -o, or check `ulimit -f`",
    )


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure, where the system can."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):  # some network drives refuse; the rename itself has happened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _link_descriptor(descriptor: int, name: Path) -> None:
    """Give a nameless file its first name."""
    folder = os.open(name.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        # Only with a folder descriptor does Python call linkat, which follows /proc's link to the file itself.
        os.link(f"/proc/self/fd/{descriptor}", name.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def lock(descriptor: int, partial: Path, target: Path) -> None:
    """Make the unfinished file or folder `partial`, just opened as `descriptor`, this process's own until it is closed.

    Raises:
        SdkitError: another process is writing `target`.
    """
    try:
        _lock(descriptor)
    except (BlockingIOError, PermissionError):
        raise _busy(target) from None
    except OSError:
        return  # a file system without locks
    # Its owner may have finished between our opening and our locking: then this is its result, no longer unfinished.
    if not _is_named(descriptor, partial):
        raise _busy(target)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1 << 62, os.SEEK_SET)  # Windows' locks bar reading and writing: lock where no data can be
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _busy(path: Path) -> SdkitError:
    return SdkitError(f"{path}: another process is writing it", "wait for it to finish")


def cannot_write(path: Path, error: OSError) -> SdkitError:
    """The error for a place where nothing can be written."""
    hint = f"check who may write in {path.parent}, or choose another place with -o"
    if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENOTDIR}:  # a link, a folder for a file or a file for a folder
        hint = f"remove {partial_path(path)}, which is in the way"
    return SdkitError(f"{path}: cannot be written: {error.strerror}", hint)
