"""The registry's database: one SQLite file that several processes use at once, with a backup of its own.

On a local disk it keeps a write-ahead log, so that readers never wait; on network drives, where that is unsafe, a
rollback journal. Whoever finds it busy waits. A damaged database is put aside and its newest backup takes its place.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sdkit.core.errors import SdkitError
from sdkit.registry.drives import is_local
from sdkit.registry.migrations import MIGRATIONS, statements
from sdkit.weights.atomic import lock

NAME, BACKUP = "registry.db", "registry.backup.db"
BUSY_SECONDS = 60.0
BACKUP_AGE_SECONDS = 3600.0

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_ELSEWHERE = "SDKIT_HOME may name another folder; SDKIT_REGISTRY=off does without it"


class RepairedError(SdkitError):
    """The database was damaged, and is sound again; the message says what came of it. Opening it again will do."""

    def __init__(self, told: str) -> None:
        super().__init__(told, "run the same command again")


class Database:
    """An open database. Reading needs no care; writing happens within `writing`.

    Args:
        folder: holds the database and its backup; made if need be.

    Raises:
        RepairedError: it was damaged.
        SdkitError: it cannot be opened, is busy for too long, or was made by a newer sdkit.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = self._open()
        except FileExistsError:
            raise SdkitError(f"{folder}: is a file, and the registry's folder should be there", _ELSEWHERE) from None
        except OSError as error:
            raise SdkitError(f"{folder}: cannot be made: {error.strerror}", _ELSEWHERE) from None
        except sqlite3.Error as error:
            raise explained(self.path, error) from error

    def _open(self) -> sqlite3.Connection:
        local = is_local(self.path.parent)
        if not local and self.path.exists():
            _leave_log(self.path)
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if local:
                _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL"))
                connection.execute("PRAGMA synchronous = NORMAL")  # a power failure may cost the last rows, no more
            if version < len(MIGRATIONS):
                self._migrate(connection)
            elif version > len(MIGRATIONS):
                raise SdkitError(
                    f"{self.path}: was made by a newer sdkit (version {version}, this one knows {len(MIGRATIONS)})",
                    "update sdkit, or name another folder with SDKIT_HOME",
                )
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        _patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()  # another process may have been faster
            for step in MIGRATIONS[version:]:
                for statement in statements(step):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """The rows of a query."""
        return self._connection.execute(query, values).fetchall()

    def row(self, query: str, *values: Any) -> sqlite3.Row | None:
        """The first row of a query."""
        found: sqlite3.Row | None = self._connection.execute(query, values).fetchone()
        return found

    def run(self, statement: str, *values: Any) -> int:
        """Change something; returns the id of the row inserted last."""
        return self._connection.execute(statement, values).lastrowid or 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        """All changes within it happen, or none. Inside another one it is part of that."""
        if self._connection.in_transaction:
            yield
            return
        _patiently(lambda: self._connection.execute("BEGIN IMMEDIATE"))
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    def back_up(self, older_than: float = BACKUP_AGE_SECONDS) -> bool:
        """Renew the backup, if it is older than that many seconds; a damaged database never replaces it.

        Raises:
            SdkitError: it cannot be written.
        """
        backup = self.path.with_name(BACKUP)
        with contextlib.suppress(OSError):
            if time.time() - backup.stat().st_mtime < older_than:
                return False
        partial = backup.with_name(f".{BACKUP}.{os.getpid()}.partial")
        try:
            return self._copied_to(partial, backup)
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.Error) and is_damage(error):
                raise
            told = f"{backup}: cannot be renewed: {error}"
            raise SdkitError(told, "what was to be written down is; free some space, or see who may write") from None
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _copied_to(self, partial: Path, backup: Path) -> bool:
        with closing(sqlite3.connect(partial)) as copy:
            self._connection.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
        if not is_sound(partial):
            return False
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        partial.replace(backup)
        return True

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file is broken, and not that it is busy or cannot be read."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DAMAGED


def is_sound(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with a database."""
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
            checked = connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
            return bool(checked and connection.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error as error:
        if is_damage(error):
            return False
        raise


def repair(path: Path) -> str:
    """Put a damaged database aside and its backup in its place; returns what was done, for a person to read.

    Raises:
        SdkitError: another process is at it.
    """
    guard = path.with_name("registry.lock")
    with open(guard, "ab") as file:
        lock(file.fileno(), guard, path)
        if path.exists() and is_sound(path):
            return f"{path}: another process has repaired it"
        aside = _free_name(path)
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{path}{suffix}", f"{aside}{suffix}")
        backup = path.with_name(BACKUP)
        if not (backup.exists() and is_sound(backup)):
            told = "the registry was damaged and begins anew; `sdkit models scan DIR` fills it"
            return f"{told} ({aside.name} is the old one)"
        with closing(sqlite3.connect(backup)) as source, closing(sqlite3.connect(path)) as target:
            source.backup(target)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(backup.stat().st_mtime))
        return (
            f"the registry was damaged; its backup of {when} is back, and `sdkit models scan` finds what is newer "
            f"({aside.name} is the damaged one)"
        )


def explained(path: Path, error: sqlite3.Error) -> SdkitError:
    """SQLite's error in a person's words; damage is repaired first."""
    if is_damage(error):
        return RepairedError(repair(path))
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _BUSY:
        return SdkitError(f"{path}: other processes kept it busy for {BUSY_SECONDS:.0f} s", "try again")
    if code == sqlite3.SQLITE_FULL:
        return SdkitError(f"{path}: the disk is full", "free some space, try again; what was written stays")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        what = "cannot be opened" if code == sqlite3.SQLITE_CANTOPEN else "cannot be written"
        return SdkitError(f"{path}: {what}: {error}", f"`ls -la {path.parent}` says who may; {_ELSEWHERE}")
    if code == sqlite3.SQLITE_IOERR:
        return SdkitError(f"{path}: the disk does not do as asked: {error}", f"check the disk; {_ELSEWHERE}")
    return SdkitError(f"{path}: {error}", _ELSEWHERE)


def _patiently(action: Any) -> None:
    """Do what SQLite may refuse at once although waiting helps (it does not wait where two could wait in circles)."""
    ends = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            action()
            return
        except sqlite3.OperationalError as error:
            if (error.sqlite_errorcode & 0xFF) not in _BUSY or time.monotonic() > ends:
                raise
            time.sleep(random.uniform(0.01, 0.1))


def _leave_log(path: Path) -> None:
    """Take the write-ahead log from a database that has come to a network drive; alone, that needs no shared memory.

    (Only SQLite may look into the file: were it opened and closed otherwise, all locks of this process on it would go.)
    """
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            connection.execute("PRAGMA journal_mode = DELETE")


def _free_name(path: Path) -> Path:
    number = 1
    while (name := path.with_name(f"registry.damaged-{number}.db")).exists():
        number += 1
    return name
