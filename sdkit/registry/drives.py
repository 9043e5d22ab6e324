"""Whether a folder lies on a disk of this machine: SQLite's write-ahead log needs memory that all its users share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# What Linux calls file systems of other machines, or of unknown programs. (https://www.sqlite.org/wal.html, §1)
_REMOTE = frozenset(
    "9p afs beegfs ceph cifs coda davfs fuse gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs smb3 smbfs "
    "vboxsf virtiofs".split()
)
_FIXED_DRIVE, _RAM_DISK = 3, 6  # GetDriveTypeW


def is_local(folder: Path) -> bool:
    """Whether `folder` certainly lies on a local disk; where the system does not tell, it counts as remote."""
    try:
        if sys.platform == "win32":
            return _is_local_drive(folder)
        return _is_local_mount(folder.resolve(), Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _is_local_mount(folder: Path, mounts: str) -> bool:
    """By Linux's table of mounts: ``36 35 98:0 /root /mount/point options - type source``."""
    best, kind = "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].encode().decode("unicode_escape")  # a space is spelled \040
        inside = str(folder) == point or str(folder).startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split(" ")[0]
    return bool(kind) and kind.partition(".")[0] not in _REMOTE


def _is_local_drive(folder: Path) -> bool:
    import ctypes

    drive = os.path.splitdrive(os.path.abspath(folder))[0]
    kind = ctypes.windll.kernel32.GetDriveTypeW(f"{drive}\\")  # type: ignore[attr-defined,unused-ignore]
    return kind in (_FIXED_DRIVE, _RAM_DISK)
