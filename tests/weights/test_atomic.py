from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdkit.core.errors import SdkitError
from sdkit.weights import positional
from sdkit.weights.atomic import AtomicFile, partial_path, sync_folder, write_file
from sdkit.weights.atomic_folder import AtomicFolder

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such thing")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has nameless files")


@pytest.fixture(params=["nameless", "plain"])
def path_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to write; the plain one is what macOS and Windows have."""
    if request.param == "nameless" and sys.platform != "linux":
        pytest.skip("only Linux has nameless files")
    monkeypatch.setattr(positional, "ACCELERATED", request.param == "nameless")
    return str(request.param)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positional, "ACCELERATED", False)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.usefixtures("path_kind")
class TestBothWays:
    def test_a_committed_file_is_there_and_alone(self, tmp_path: Path) -> None:
        with AtomicFile(tmp_path / "out") as file:
            file.reserve(5)
            file.write(b"lo", 3)
            file.write(b"hel", 0)
            file.commit()
        assert (tmp_path / "out").read_bytes() == b"hello"
        assert names(tmp_path) == ["out"]

    def test_an_uncommitted_file_leaves_nothing(self, tmp_path: Path) -> None:
        with AtomicFile(tmp_path / "out") as file:
            file.write(b"hello", 0)
        assert names(tmp_path) == []

    def test_a_failure_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt), AtomicFile(tmp_path / "out") as file:
            file.write(b"hello", 0)
            raise KeyboardInterrupt
        assert names(tmp_path) == []

    def test_an_existing_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_bytes(b"old")
        with pytest.raises(SdkitError, match="already exists"):
            AtomicFile(tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == b"old"
        assert names(tmp_path) == ["out"]

    def test_an_existing_file_stays_until_the_commit(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_bytes(b"old")
        with AtomicFile(tmp_path / "out", overwrite=True) as file:
            file.write(b"new", 0)
            assert (tmp_path / "out").read_bytes() == b"old"
            file.commit()
        assert (tmp_path / "out").read_bytes() == b"new"
        assert names(tmp_path) == ["out"]

    def test_a_file_that_appears_meanwhile_is_not_replaced(self, tmp_path: Path) -> None:
        with AtomicFile(tmp_path / "out") as file:
            file.write(b"new", 0)
            (tmp_path / "out").write_bytes(b"theirs")
            with pytest.raises(SdkitError, match="already exists"):
                file.commit()
        assert (tmp_path / "out").read_bytes() == b"theirs"
        assert names(tmp_path) == ["out"]

    @on_posix
    def test_a_dangling_link_counts_as_existing(self, tmp_path: Path) -> None:
        (tmp_path / "out").symlink_to(tmp_path / "nowhere")
        with pytest.raises(SdkitError, match="already exists"):
            AtomicFile(tmp_path / "out")

    def test_a_folder_or_a_missing_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SdkitError, match="is a folder"):
            AtomicFile(tmp_path, overwrite=True)
        with pytest.raises(SdkitError, match="does not exist") as caught:
            AtomicFile(tmp_path / "missing" / "out")
        assert caught.value.hint == f"mkdir -p {tmp_path / 'missing'}"

    @on_posix
    @pytest.mark.parametrize("umask", [0o022, 0o077])
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_the_mode_follows_the_umask(self, tmp_path: Path, umask: int, overwrite: bool) -> None:
        before = os.umask(umask)
        try:
            write_file(tmp_path / "out", b"", overwrite=overwrite)
        finally:
            os.umask(before)
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o666 & ~umask

    def test_a_full_disk_is_told_before_any_work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
        with pytest.raises(SdkitError, match="needs 5.0 GB, the disk has 10 B free") as caught:
            with AtomicFile(tmp_path / "out") as file:
                file.reserve(5_000_000_000)
        assert "-o" in caught.value.hint
        assert names(tmp_path) == []

    @pytest.mark.parametrize(("code", "reason"), [(errno.ENOSPC, "needs"), (errno.EFBIG, "no file of 1.0 kB")])
    def test_a_refused_reservation_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        with pytest.raises(SdkitError, match=reason), AtomicFile(tmp_path / "out") as file:
            monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
            monkeypatch.setattr(os, "ftruncate", refuse)
            file.reserve(1000)
        assert names(tmp_path) == []

    def test_a_disk_that_fills_up_half_way_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), AtomicFile(tmp_path / "out") as file:
            file.write(b"half", 0)
            monkeypatch.setattr(os, "pwrite", full, raising=False)
            monkeypatch.setattr(os, "write", full)
            file.write(b"more", 4)
        assert names(tmp_path) == []

    def test_a_folder_that_cannot_be_flushed_is_no_failure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.fsync

        def refuse(descriptor: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", refuse)
        write_file(tmp_path / "out", b"hello")
        assert (tmp_path / "out").read_bytes() == b"hello"

    def test_a_rename_that_fails_leaves_the_old_file_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "out").write_bytes(b"old")

        def refuse(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            write_file(tmp_path / "out", b"new", overwrite=True)
        assert (tmp_path / "out").read_bytes() == b"old"
        assert names(tmp_path) == ["out"]

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
    def test_a_folder_that_may_not_be_written_is_an_error_with_a_hint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        def refuse(*_: object) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(SdkitError, match=f"cannot be written: {os.strerror(code)}") as caught:
            AtomicFile(tmp_path / "out")
        assert str(tmp_path) in caught.value.hint


def test_a_folder_without_read_permission_needs_no_flush(tmp_path: Path) -> None:
    sync_folder(tmp_path / "missing")  # like any folder that cannot be opened: the file has its name already


@on_linux
def test_a_folder_made_immutable_is_an_error_with_a_hint(tmp_path: Path) -> None:
    changed = (
        subprocess.run(["chattr", "+i", str(tmp_path)], capture_output=True, check=False) if _has("chattr") else None
    )
    if changed is None or changed.returncode:
        pytest.skip("this user or file system has no immutable folders")
    try:
        with pytest.raises(SdkitError, match="cannot be written") as caught:
            AtomicFile(tmp_path / "out")
    finally:
        subprocess.run(["chattr", "-i", str(tmp_path)], check=True)
    assert caught.value.hint


def _has(program: str) -> bool:
    import shutil

    return shutil.which(program) is not None


@on_linux
def test_a_file_system_without_nameless_files_gets_partial_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def open_(path: object, flags: int, *mode: int, **rest: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *mode, **rest)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "open", open_)
    with AtomicFile(tmp_path / "out") as file:
        assert names(tmp_path) == [".out.partial"]
        file.write(b"hello", 0)
        file.commit()
    assert names(tmp_path) == ["out"]


def test_a_file_system_that_cannot_preallocate_gets_sparse_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with AtomicFile(tmp_path / "out") as file:
        file.reserve(1000)
        file.commit()
    assert (tmp_path / "out").stat().st_size == 1000


@pytest.mark.usefixtures("plain")
class TestPartialFiles:
    def test_what_a_killed_run_left_is_taken_over(self, tmp_path: Path) -> None:
        partial_path(tmp_path / "out").write_bytes(b"x" * 100)
        with AtomicFile(tmp_path / "out") as file:
            file.write(b"new", 0)
            file.commit()
        assert (tmp_path / "out").read_bytes() == b"new"
        assert names(tmp_path) == ["out"]

    @on_posix
    def test_a_second_writer_is_refused(self, tmp_path: Path) -> None:
        with AtomicFile(tmp_path / "out") as file:
            file.write(b"first", 0)
            with pytest.raises(SdkitError, match="another process is writing it"):
                AtomicFile(tmp_path / "out")
            file.commit()
        assert (tmp_path / "out").read_bytes() == b"first"

    @on_posix
    def test_a_writer_that_was_late_never_touches_the_finished_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fcntl

        first = AtomicFile(tmp_path / "out", overwrite=True)
        first.write(b"first", 0)
        real = fcntl.flock

        def finish_then_lock(descriptor: int, operation: int) -> None:
            """The first writer commits after the second has opened the partial file and before it has locked it."""
            first.commit()
            real(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", finish_then_lock)
        with pytest.raises(SdkitError, match="another process is writing it"):
            AtomicFile(tmp_path / "out", overwrite=True)
        assert (tmp_path / "out").read_bytes() == b"first"

    @on_posix
    def test_aborting_removes_only_the_own_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = AtomicFile(tmp_path / "out")
        second: list[AtomicFile] = []
        real = os.close

        def close(descriptor: int) -> None:
            real(descriptor)
            monkeypatch.setattr(os, "close", real)
            second.append(AtomicFile(tmp_path / "out"))  # the lock has just become free

        monkeypatch.setattr(os, "close", close)
        first.abort()
        with second[0] as file:
            file.write(b"second", 0)
            file.commit()
        assert (tmp_path / "out").read_bytes() == b"second"

    @on_posix
    def test_a_link_in_place_of_the_partial_file_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "victim").write_bytes(b"precious")
        partial_path(tmp_path / "out").symlink_to(tmp_path / "victim")
        with pytest.raises(SdkitError, match="cannot be written") as caught:
            AtomicFile(tmp_path / "out")
        assert str(partial_path(tmp_path / "out")) in caught.value.hint
        assert (tmp_path / "victim").read_bytes() == b"precious"

    @on_posix
    def test_a_file_system_without_locks_still_writes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import fcntl

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refuse)
        write_file(tmp_path / "out", b"hello")
        assert (tmp_path / "out").read_bytes() == b"hello"


HALF_WAY = """
import sys, time
from collections.abc import Iterator
from pathlib import Path
from sdkit.weights import DTYPES, positional
from sdkit.weights.writer import SafetensorsWriter
positional.ACCELERATED = sys.argv[2] == "nameless"
with SafetensorsWriter(Path(sys.argv[1]), [("a", DTYPES["F32"], (1000, 1000))], {}, overwrite=True) as writer:
    writer.write_tensor("a", b"half" * 500_000)
    print("half way", flush=True)
    time.sleep(60)
"""


@on_posix
@pytest.mark.parametrize("existing", [False, True])
def test_a_killed_process_leaves_the_old_file_or_none(tmp_path: Path, path_kind: str, existing: bool) -> None:
    target = tmp_path / "out.safetensors"
    if existing:
        target.write_bytes(b"old")
    arguments = [sys.executable, "-c", HALF_WAY, str(target), path_kind]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = ["out.safetensors"] if existing else []
    assert names(tmp_path) == ([] if path_kind == "nameless" else [".out.safetensors.partial"]) + kept
    if existing:
        assert target.read_bytes() == b"old"
    write_file(target, b"new", overwrite=existing)
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["out.safetensors"]


TOO_LARGE = """
import resource, sys
from collections.abc import Iterator
from pathlib import Path
from sdkit.weights import DTYPES, positional
from sdkit.weights.writer import SafetensorsWriter
positional.ACCELERATED = sys.argv[2] == "nameless"
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
SafetensorsWriter(Path(sys.argv[1]), [("a", DTYPES["F32"], (1000, 1000))], {})
"""


@on_posix
def test_a_file_above_the_limit_is_an_error_and_leaves_nothing(tmp_path: Path, path_kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOO_LARGE, str(tmp_path / "out"), path_kind], capture_output=True, text=True, check=False
    )
    assert "SdkitError" in done.stderr
    assert "no file of 4.0 MB may be written there" in done.stderr
    assert names(tmp_path) == []


@on_linux
@pytest.mark.usefixtures("path_kind")
def test_a_small_disk_is_an_error_and_stays_empty(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(SdkitError, match="the disk has"), AtomicFile(disk / "out") as file:
            file.reserve(10 << 20)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), AtomicFile(disk / "out") as file:
            file.write(b"x" * (10 << 20), 0)
        assert names(disk) == []


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(folder)]
    if not _has("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: AtomicFolder, content: str) -> None:
    (folder.work / "unet").mkdir()
    (folder.work / "unet" / "config.json").write_text(content)
    (folder.work / "model_index.json").write_text("{}")


class TestFolders:
    def test_a_committed_folder_is_there_and_alone(self, tmp_path: Path) -> None:
        with AtomicFolder(tmp_path / "out") as folder:
            fill(folder, "new")
            assert names(tmp_path) == [".out.partial"]
            folder.commit()
        assert names(tmp_path) == ["out"]
        assert (tmp_path / "out" / "unet" / "config.json").read_text() == "new"

    def test_a_failure_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt), AtomicFolder(tmp_path / "out") as folder:
            fill(folder, "new")
            raise KeyboardInterrupt
        assert names(tmp_path) == []

    def test_a_model_is_replaced_only_when_asked_and_only_at_the_end(self, tmp_path: Path) -> None:
        for content in ("old", "new"):
            with AtomicFolder(tmp_path / "out", overwrite=True) as folder:
                fill(folder, content)
                if content == "new":
                    assert (tmp_path / "out" / "unet" / "config.json").read_text() == "old"
                folder.commit()
        assert (tmp_path / "out" / "unet" / "config.json").read_text() == "new"
        assert names(tmp_path) == ["out"]
        with pytest.raises(SdkitError, match="already exists"):
            AtomicFolder(tmp_path / "out")

    def test_a_folder_of_other_things_is_never_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("years of work")
        with pytest.raises(SdkitError, match="holds no model"):
            AtomicFolder(tmp_path / "out", overwrite=True)
        assert names(tmp_path) == ["out"]

    def test_an_empty_folder_is_replaced_when_asked(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        with AtomicFolder(tmp_path / "out", overwrite=True) as folder:
            fill(folder, "new")
            folder.commit()
        assert names(tmp_path / "out") == ["model_index.json", "unet"]

    def test_a_folder_that_appears_meanwhile_is_not_replaced(self, tmp_path: Path) -> None:
        with AtomicFolder(tmp_path / "out") as folder:
            fill(folder, "new")
            (tmp_path / "out").mkdir()
            with pytest.raises(SdkitError, match="already exists"):
                folder.commit()
        assert names(tmp_path / "out") == []
        assert names(tmp_path) == ["out"]

    def test_what_killed_runs_left_is_cleared(self, tmp_path: Path) -> None:
        (tmp_path / ".out.partial" / "unet").mkdir(parents=True)
        (tmp_path / ".out.partial" / "unet" / "half").write_text("half")
        (tmp_path / ".out.old" / "vae").mkdir(parents=True)
        (tmp_path / "out").mkdir()
        with AtomicFolder(tmp_path / "out", overwrite=True) as folder:
            assert names(folder.work) == []
            fill(folder, "new")
            folder.commit()
        assert names(tmp_path) == ["out"]

    def test_a_rename_that_fails_brings_the_old_folder_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("old")
        real = os.replace

        def replace(source: Path, target: Path) -> None:
            if Path(source).name == ".out.partial":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            with AtomicFolder(tmp_path / "out", overwrite=True) as folder:
                fill(folder, "new")
                folder.commit()
        assert names(tmp_path) == ["out"]
        assert (tmp_path / "out" / "config.json").read_text() == "old"

    @on_posix
    def test_a_second_writer_is_refused(self, tmp_path: Path) -> None:
        with AtomicFolder(tmp_path / "out") as folder:
            fill(folder, "first")
            with pytest.raises(SdkitError, match="another process is writing it"):
                AtomicFolder(tmp_path / "out")
            folder.commit()
        assert (tmp_path / "out" / "unet" / "config.json").read_text() == "first"

    @on_posix
    def test_a_link_in_place_of_the_partial_folder_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "victim").mkdir()
        (tmp_path / "victim" / "file").write_text("precious")
        (tmp_path / ".out.partial").symlink_to(tmp_path / "victim")
        with pytest.raises(SdkitError, match="cannot be written"):
            AtomicFolder(tmp_path / "out")
        assert (tmp_path / "victim" / "file").read_text() == "precious"

    def test_bad_targets_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(SdkitError, match="is a file"):
            AtomicFolder(tmp_path / "file", overwrite=True)
        with pytest.raises(SdkitError, match="does not exist"):
            AtomicFolder(tmp_path / "missing" / "out")
        with pytest.raises(SdkitError, match="no name of its own"):
            AtomicFolder("..", overwrite=True)


def test_two_threads_writing_one_new_name_give_one_whole_file(tmp_path: Path, path_kind: str) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def write(content: bytes) -> None:
        barrier.wait()
        try:
            with AtomicFile(tmp_path / "out") as file:
                file.write(content, 0)
                time.sleep(0.01)
                file.commit()
            outcomes.append("written")
        except SdkitError as error:
            outcomes.append(error.message)

    threads = [threading.Thread(target=write, args=(bytes([letter]) * 1000,)) for letter in b"abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("written") == 1
    assert len(set((tmp_path / "out").read_bytes())) == 1
    assert names(tmp_path) == ["out"]
