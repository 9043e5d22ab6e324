from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdkit.weights import positional

CONTENT = os.urandom(3 * positional.COPY_BUFFER_BYTES + 12345)


@pytest.fixture(params=["accelerated", "plain"])
def path_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(positional, "ACCELERATED", request.param == "accelerated")
    return str(request.param)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A file that holds CONTENT, and an empty one."""
    (tmp_path / "source").write_bytes(CONTENT)
    source, target = os.open(tmp_path / "source", os.O_RDONLY), os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield source, target
    os.close(source)
    os.close(target)


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


@pytest.mark.usefixtures("path_kind")
def test_reads_and_writes_at_a_position(files: tuple[int, int]) -> None:
    source, target = files
    buffer = bytearray(2 * positional.COPY_BUFFER_BYTES)
    positional.read_into(source, memoryview(buffer), 777)
    assert buffer == CONTENT[777 : 777 + len(buffer)]
    positional.write(target, memoryview(buffer), 55)
    assert content(target) == b"\0" * 55 + buffer


@pytest.mark.usefixtures("path_kind")
def test_nothing_is_read_or_written_for_an_empty_range(files: tuple[int, int]) -> None:
    source, target = files
    positional.read_into(source, memoryview(b"").toreadonly(), 10**9)
    positional.write(target, memoryview(b""), 10)
    positional.copy(source, 0, target, 0, 0)
    assert content(target) == b""


@pytest.mark.usefixtures("path_kind")
def test_the_end_of_the_file_is_an_error(files: tuple[int, int]) -> None:
    source, target = files
    with pytest.raises(EOFError, match=f"ends at byte {len(CONTENT):,}, 8 bytes too early"):
        positional.read_into(source, memoryview(bytearray(10)), len(CONTENT) - 2)
    with pytest.raises(EOFError):
        positional.copy(source, 0, target, 0, len(CONTENT) + 1)


@pytest.mark.usefixtures("path_kind")
def test_copies_a_range(files: tuple[int, int]) -> None:
    source, target = files
    positional.copy(source, 3, target, 100, len(CONTENT) - 3)
    assert content(target)[100:] == CONTENT[3:]


def refuse_after(calls: int, code: int) -> Callable[..., int]:
    """copy_file_range that copies a little, `calls` times, then says it cannot."""
    real, made = os.copy_file_range, [0]

    def copy(source: int, target: int, count: int, from_: int, to: int) -> int:
        made[0] += 1
        if made[0] > calls:
            raise OSError(code, os.strerror(code))
        return real(source, target, min(count, 1000), from_, to)

    return copy


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="this system has no copy_file_range")
@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM])
@pytest.mark.parametrize("calls", [0, 3])
def test_a_refused_kernel_copy_goes_on_plainly(
    files: tuple[int, int], code: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", refuse_after(calls, code))
    positional.copy(files[0], 0, files[1], 0, len(CONTENT))
    assert content(files[1]) == CONTENT


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="this system has no copy_file_range")
def test_a_kernel_copy_that_moves_nothing_goes_on_plainly(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    positional.copy(files[0], 0, files[1], 0, len(CONTENT))
    assert content(files[1]) == CONTENT


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="this system has no copy_file_range")
def test_a_full_disk_is_no_reason_to_go_on(files: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", refuse_after(1, errno.ENOSPC))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        positional.copy(files[0], 0, files[1], 0, len(CONTENT))


def test_short_reads_and_writes_are_continued(
    files: tuple[int, int], path_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path_kind == "accelerated" and not hasattr(os, "preadv"):
        pytest.skip("this system has no preadv")
    preadv, pwrite, read, write = os.preadv, os.pwrite, os.read, os.write
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:1001]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:997], at))
    monkeypatch.setattr(os, "read", lambda fd, count: read(fd, min(count, 1001)))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:997]))
    buffer = bytearray(100_000)
    positional.read_into(files[0], memoryview(buffer), 5)
    positional.write(files[1], memoryview(buffer), 0)
    assert content(files[1]) == CONTENT[5:100_005]


@pytest.mark.usefixtures("path_kind")
def test_threads_do_not_disturb_each_other(files: tuple[int, int]) -> None:
    source, target = files
    piece = len(CONTENT) // 64 + 1
    threads = [
        threading.Thread(
            target=lambda begin: positional.copy(source, begin, target, begin, min(piece, len(CONTENT) - begin)),
            args=(begin,),
        )
        for begin in range(0, len(CONTENT), piece)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert content(target) == CONTENT
