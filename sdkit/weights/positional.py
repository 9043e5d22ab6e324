"""Reading, writing and copying at a position, without a shared file pointer, so that threads need no lock.

Linux has `preadv`, `pwrite` and `copy_file_range`; where a system lacks them (macOS the last, Windows all) the same
functions take a lock, seek, and read or write. Tests force that plain path by clearing `ACCELERATED`.
"""

from __future__ import annotations

import errno
import os
import sys
import threading

ACCELERATED = True
COPY_BUFFER_BYTES = 1 << 20
# How copy_file_range says "not between these two files": another file system, an old kernel, a network drive.
_COPY_REFUSED = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}

_seek_lock = threading.Lock()


def read_into(fd: int, buffer: memoryview, offset: int) -> None:
    """Fill `buffer` with the bytes at `offset`.

    Raises:
        EOFError: the file ends before the buffer is full (somebody truncated it after its header was read).
    """
    filled = 0
    while filled < len(buffer):
        count = _read_some(fd, buffer[filled:], offset + filled)
        if count == 0:
            raise EOFError(f"the file ends at byte {offset + filled:,}, {len(buffer) - filled:,} bytes too early")
        filled += count


def write(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    written = 0
    while written < len(data):
        written += _write_some(fd, data[written:], offset + written)


def copy(source: int, source_offset: int, target: int, target_offset: int, length: int) -> None:
    """Copy `length` bytes between files, inside the kernel where it can (a reflink where the file system can)."""
    copied = 0
    if ACCELERATED and hasattr(os, "copy_file_range"):
        copied = _copy_in_kernel(source, source_offset, target, target_offset, length)
    buffer = memoryview(bytearray(min(COPY_BUFFER_BYTES, length - copied)))
    while copied < length:
        part = buffer[: min(len(buffer), length - copied)]
        read_into(source, part, source_offset + copied)
        write(target, part, target_offset + copied)
        copied += len(part)


def _copy_in_kernel(source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
    copied = 0
    while copied < length:
        try:
            count = os.copy_file_range(source, target, length - copied, source_offset + copied, target_offset + copied)
        except OSError as error:
            if error.errno in _COPY_REFUSED:
                return copied
            raise
        if count == 0:  # the end of the source, or a file system that copies nothing: the plain path tells which
            return copied
        copied += count
    return copied


if sys.platform == "win32":
    _HAS_POSITIONAL = False
else:
    _HAS_POSITIONAL = hasattr(os, "preadv") and hasattr(os, "pwrite")


def _read_some(fd: int, buffer: memoryview, offset: int) -> int:
    if ACCELERATED and _HAS_POSITIONAL:
        return os.preadv(fd, [buffer], offset)
    with _seek_lock:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, min(len(buffer), COPY_BUFFER_BYTES))
    buffer[: len(data)] = data
    return len(data)


def _write_some(fd: int, data: memoryview, offset: int) -> int:
    if ACCELERATED and _HAS_POSITIONAL:
        return os.pwrite(fd, data, offset)
    with _seek_lock:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data[:COPY_BUFFER_BYTES])
