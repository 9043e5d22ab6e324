"""Places that cannot be written to, full disks and killed processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from merge_files import BASE, LORA, PLACES, refused, run, sha256
from models import assert_merged, expected

import sdkit
from sdkit.weights import positional


@pytest.mark.parametrize("victim", ["base", "lora"])
@pytest.mark.parametrize("spelling", ["same", "dotted", "symlink", "hardlink", "through a linked folder"])
@pytest.mark.parametrize("options", [[], ["--force"]])
def test_the_output_is_no_input(base: Path, lora: Path, victim: str, spelling: str, options: list[str]) -> None:
    path = {"base": base, "lora": lora}[victim]
    other = path.with_name(f"other-{path.name}")
    if spelling == "dotted":
        other = path.parent / "." / ".." / path.parent.name / path.name
    elif spelling == "symlink":
        other.symlink_to(path)
    elif spelling == "hardlink":
        other.hardlink_to(path)
    elif spelling == "through a linked folder":
        (path.parent / "linked").symlink_to(path.parent)
        other = path.parent / "linked" / path.name
    else:
        other = path
    before = sha256(path)
    result = run(base, lora, "-o", other, *options)
    assert result.exit_code == 1
    assert f"{other}: is an input\n" in result.stderr
    assert sha256(path) == before
    assert other.is_symlink() == (spelling == "symlink")


def test_an_existing_output_stays_unless_forced(base: Path, lora: Path, out: Path) -> None:
    out.write_text("precious")
    assert "already exists" in refused(base, lora, output=out)
    assert out.read_text() == "precious"
    sdkit.merge(base, lora, out, force=True)
    assert_merged(out, BASE, expected(BASE, LORA, PLACES, 1.0))


def test_an_output_in_a_folder_that_is_not_there(base: Path, lora: Path) -> None:
    assert "mkdir -p" in refused(base, lora, output=base.parent / "missing" / "out.safetensors")


def test_a_full_disk_is_seen_beforehand(monkeypatch: pytest.MonkeyPatch, base: Path, lora: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    assert "the disk has" in refused(base, lora)


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("room", [0, 1000, 100_000, 1_000_000])
def test_a_disk_that_fills_half_way(
    monkeypatch: pytest.MonkeyPatch, base: Path, bundle: Path, room: int, accelerated: bool
) -> None:
    left, write = [room], positional.write

    def limited(descriptor: int, data: memoryview, offset: int) -> None:
        if left[0] < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(data)
        write(descriptor, data, offset)

    monkeypatch.setattr(positional, "write", limited)
    monkeypatch.setattr(positional, "ACCELERATED", accelerated)
    said = refused(base, bundle, "--undo", base.parent / "undo")
    assert "disk" in said or "space" in said


KILLED = """
import os, signal, sys
from sdkit.weights import positional
import sdkit
left, write = [int(sys.argv[4])], positional.write
def limited(descriptor, data, offset):
    left[0] -= len(data)
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write(descriptor, data, offset)
positional.write = limited
sdkit.merge(*sys.argv[1:4], force=True)
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="only Linux has files without a name")
@pytest.mark.parametrize("room", [10_000, 1_000_000])
def test_a_killed_process_leaves_the_old_file_and_nothing_else(base: Path, lora: Path, out: Path, room: int) -> None:
    out.write_text("old")
    before = {path: sha256(path) for path in out.parent.iterdir()}
    done = subprocess.run([sys.executable, "-c", KILLED, base, lora, out, str(room)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert {path: sha256(path) for path in out.parent.iterdir()} == before
