"""The database file: its journal, its migrations, and what happens when it is damaged."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from sdkit.core.errors import SdkitError
from sdkit.jobs.models.files import scan_models
from sdkit.registry import open_registry, scan
from sdkit.registry.database import BACKUP, NAME, Database, RepairedError, explained, is_sound
from sdkit.registry.drives import _is_local_mount, is_local
from sdkit.registry.migrations import MIGRATIONS
from sdkit.registry.names import known_names
from sdkit.registry.registry import registry_exists

MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /mnt/nas rw,relatime - nfs4 nas:/models rw
31 22 0:41 / /mnt/my\\040disk rw shared:1 - fuse.sshfs me@host: rw
32 30 8:1 / /mnt/nas/local rw - xfs /dev/sda1 rw
"""


@pytest.mark.parametrize(
    ("folder", "local"),
    [
        ("/home/me", True),
        ("/mnt/nas/loras", False),
        ("/mnt/nasty", True),
        ("/mnt/my disk/x", False),
        ("/mnt/nas/local/y", True),
    ],
)
def test_network_drives_are_told_from_local_disks(folder: str, local: bool) -> None:
    assert _is_local_mount(Path(folder), MOUNTS) is local


def journal(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def test_a_network_drive_gets_a_rollback_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdkit.registry.database.is_local", lambda folder: True)
    Database(tmp_path).close()
    assert journal(tmp_path / NAME) == "wal"
    monkeypatch.setattr("sdkit.registry.database.is_local", lambda folder: False)
    database = Database(tmp_path)  # the same home, moved to a network drive
    database.run("INSERT INTO roots VALUES ('/x', '')")
    database.close()
    assert journal(tmp_path / NAME) == "delete"
    assert not (tmp_path / f"{NAME}-wal").exists()


def test_an_unknown_system_counts_as_a_network_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_proc(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", no_proc)
    assert not is_local(tmp_path)


def filled(folder: Path) -> None:
    database = Database(folder)
    with database.writing():
        for number in range(500):
            database.run("INSERT INTO roots VALUES (?, 'x')", f"/models/{number}" * 10)
    assert database.back_up(older_than=0)
    database.run("INSERT INTO roots VALUES ('/after', '')")
    database.close()
    with closing(sqlite3.connect(folder / NAME)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def test_damage_found_while_working_brings_the_backup_back(tmp_path: Path) -> None:
    filled(tmp_path)
    with closing(sqlite3.connect(tmp_path / NAME)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'roots'").fetchone()
    with open(tmp_path / NAME, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)
    with pytest.raises(SdkitError, match="its backup of .* is back"), open_registry(tmp_path) as registry:
        registry.roots()
    with open_registry(tmp_path) as registry:
        assert len(registry.roots()) == 500


def test_a_damaged_database_comes_back_from_its_backup(tmp_path: Path) -> None:
    filled(tmp_path)
    with open(tmp_path / NAME, "r+b") as file:
        file.write(b"\xa5" * 4096)
    with pytest.raises(RepairedError, match="its backup of .* is back"):
        Database(tmp_path)
    database = Database(tmp_path)
    (count,) = database.row("SELECT COUNT(*) FROM roots") or (0,)
    database.close()
    assert count == 500
    assert (tmp_path / "registry.damaged-1.db").exists()


def test_without_a_backup_it_begins_anew_and_keeps_the_damaged_one(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"this is no database" * 1000)
    with pytest.raises(RepairedError, match="begins anew"):
        Database(tmp_path)
    database = Database(tmp_path)
    assert database.rows("SELECT * FROM roots") == []
    database.close()
    assert (tmp_path / "registry.damaged-1.db").read_bytes().startswith(b"this is no database")


def test_a_damaged_database_never_replaces_its_backup(tmp_path: Path) -> None:
    filled(tmp_path)
    before = (tmp_path / BACKUP).read_bytes()
    database = Database(tmp_path)
    size = (tmp_path / NAME).stat().st_size
    with open(tmp_path / NAME, "r+b") as file:
        for page in range(30, size // 4096):
            file.seek(page * 4096)
            file.write(b"\xa5" * 4096)
    try:
        database.back_up(older_than=0)
    except sqlite3.DatabaseError:
        pass
    database.close()
    assert (tmp_path / BACKUP).read_bytes() == before
    assert is_sound(tmp_path / BACKUP)


def _refusal(database: str, *statements: str) -> sqlite3.Error:
    """What SQLite itself says to these."""
    with pytest.raises(sqlite3.Error) as caught, closing(sqlite3.connect(database, uri=True)) as connection:
        for statement in statements:
            connection.execute(statement)
    return caught.value


FULL = ("PRAGMA max_page_count = 2", "CREATE TABLE a (b)", "INSERT INTO a VALUES (zeroblob(99999))")


@pytest.mark.parametrize(
    ("database", "statements", "message", "hint"),
    [
        ("file:{}/a.db?mode=ro", ["CREATE TABLE b (c)"], "cannot be written", "ls -la"),
        ("file:{}/no/such.db?mode=ro", ["CREATE TABLE b (c)"], "cannot be opened", "ls -la"),
        ("file:{}/a.db", FULL, "the disk is full", "free some space"),
    ],
)
def test_each_refusal_is_named_with_what_to_do(
    tmp_path: Path, database: str, statements: Sequence[str], message: str, hint: str
) -> None:
    sqlite3.connect(tmp_path / "a.db").close()
    told = explained(tmp_path / NAME, _refusal(database.format(tmp_path), *statements))
    assert told.message.startswith(f"{tmp_path / NAME}: {message}") and hint in told.hint


def test_a_home_that_is_a_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(SdkitError, match="is a file"):
        Database(tmp_path / "home")
    monkeypatch.setenv("SDKIT_HOME", str(tmp_path / "home"))
    assert not registry_exists() and known_names("f") == []


def test_a_backup_that_cannot_be_written_loses_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / BACKUP).unlink()
    (tmp_path / BACKUP).mkdir()
    with closing(Database(tmp_path)) as database:
        with pytest.raises(SdkitError, match="cannot be renewed") as caught:
            database.back_up(older_than=-1)
        assert "what was to be written down is" in caught.value.hint
        assert len(database.rows("SELECT * FROM roots")) == 501
    assert not list(tmp_path.glob(".*partial*"))


@pytest.mark.parametrize("after", [1, 3])
def test_a_scan_that_is_killed_keeps_what_it_wrote(
    sparse: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Killed while a batch is being written: the batches before it are there, and the next scan finds the rest."""
    monkeypatch.setattr(scan, "_BATCH", 4)
    for number in range(20):
        sparse({f"x{number}.lora_up.weight": ("F16", [4, number + 1])}, name=f"{number:02}.safetensors")
    program = f"""
import os, signal
from sdkit.jobs.models.files import scan_models
from sdkit.registry import scan
from sdkit.registry.registry import Registry
scan._BATCH, seen, observe = 4, [], Registry.observe
def observed(self, facts, **more):
    seen.append(facts)
    if len(seen) == {4 * after + 2}:
        os.kill(os.getpid(), signal.SIGKILL)
    return observe(self, facts, **more)
Registry.observe = observed
scan_models([{str(tmp_path)!r}])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    with open_registry() as registry:
        assert len(registry.entries()) == 4 * after
    (found,) = scan_models([tmp_path]).scans
    assert found.models == 20 and len(found.new) == 20 - 4 * after


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    Database(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / NAME)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(SdkitError, match="newer sdkit"):
        Database(tmp_path)


def test_migrations_that_fail_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Database(tmp_path).close()
    monkeypatch.setattr("sdkit.registry.database.MIGRATIONS", (*MIGRATIONS, "CREATE TABLE one (x);\nNONSENSE;\n"))
    with pytest.raises(SdkitError):
        Database(tmp_path)
    with closing(sqlite3.connect(tmp_path / NAME)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert connection.execute("SELECT * FROM sqlite_master WHERE name = 'one'").fetchone() is None


def test_what_fails_within_a_change_undoes_it(tmp_path: Path) -> None:
    database = Database(tmp_path)
    with pytest.raises(ZeroDivisionError), database.writing():
        database.run("INSERT INTO roots VALUES ('/x', '')")
        raise ZeroDivisionError
    assert database.rows("SELECT * FROM roots") == []
    database.close()


def test_a_busy_database_is_waited_for_and_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Database(tmp_path).close()
    monkeypatch.setattr("sdkit.registry.database.BUSY_SECONDS", 0.1)
    other = sqlite3.connect(tmp_path / NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    database = Database(tmp_path)
    with pytest.raises(sqlite3.OperationalError, match="locked"), database.writing():
        pass
    other.execute("COMMIT")
    with database.writing():
        database.run("INSERT INTO roots VALUES ('/x', '')")
    database.close()
    other.close()
