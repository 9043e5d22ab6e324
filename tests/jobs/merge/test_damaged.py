"""Damaged and hostile files: a reason, a hint, exit code 1, nothing left behind, nothing run."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from merge_files import refused


def with_header(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a file's header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    fields = json.loads(data[8 : 8 + length])
    edit(fields)
    text = json.dumps(fields).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def overlap(path: Path) -> None:
    def edit(fields: dict[str, Any]) -> None:
        tensors = sorted((entry["data_offsets"], key) for key, entry in fields.items() if key != "__metadata__")
        (_, first), (_, second) = next(
            (a, b) for a, b in zip(tensors, tensors[1:], strict=False) if a[0][1] - a[0][0] == b[0][1] - b[0][0] > 4
        )
        fields[second]["data_offsets"] = fields[first]["data_offsets"]

    with_header(path, edit)


def hole(path: Path) -> None:
    def edit(fields: dict[str, Any]) -> None:
        del fields[next(key for key in fields if key != "__metadata__")]

    with_header(path, edit)


def ten_gigabytes(path: Path) -> None:
    path.write_bytes((10 * 1000**3).to_bytes(8, "little") + path.read_bytes()[8:])


def duplicate(path: Path) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].rstrip()
    key, entry = next(item for item in json.loads(text).items() if item[0] != "__metadata__")
    text = text[:-1] + f', "{key}": {json.dumps(entry)}}}'.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def cut_inside_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def web_page(path: Path) -> None:
    path.write_bytes(b"<!DOCTYPE html><html>401 Unauthorized</html>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def evil_pickle(path: Path) -> None:
    """A pickle that, unpickled, would make a file beside itself."""
    command = f"touch {path.parent / 'executed'}"
    path.write_bytes(b"\x80\x02cposix\nsystem\nX" + len(command).to_bytes(4, "little") + command.encode() + b"\x85R.")


def evil_archive(path: Path) -> None:
    """The same in the container of today's torch."""
    evil_pickle(path)
    code = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/version", "3")


DAMAGES = {
    overlap: "overlap",
    hole: "hole",
    ten_gigabytes: "10,000,000,000",
    duplicate: "twice",
    truncated: "truncated",
    cut_inside_the_header: "truncated",
    garbage: "not a safetensors file",
    web_page: "not a safetensors file",
    empty: "only 0 bytes",
    evil_pickle: "posix.system",
    evil_archive: "posix.system",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("victim", ["base", "lora"])
def test_damaged_files(base: Path, lora: Path, damage: Callable[[Path], None], victim: str) -> None:
    path = {"base": base, "lora": lora}[victim]
    damage(path)
    said = refused(base, lora)
    assert str(path) in said
    assert DAMAGES[damage] in said
    assert not (path.parent / "executed").exists()
