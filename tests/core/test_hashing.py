from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdkit.core import hashing
from sdkit.core.hashing import Span, digest_spans, quick_id


class Counter:
    def __init__(self) -> None:
        self.done = 0

    def start(self, label: str, total: int) -> None:
        raise AssertionError("digest_spans does not know the label")

    def advance(self, nbytes: int) -> None:
        self.done += nbytes


spans = st.builds(Span, st.integers(0, 40), st.none() | st.integers(0, 40))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=40), asked=st.lists(spans, max_size=4), block=st.integers(1, 9))
def test_one_pass_equals_hashing_each_span_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, asked: list[Span], block: int
) -> None:
    monkeypatch.setattr(hashing, "BLOCK_BYTES", block)
    path = tmp_path / "file"
    path.write_bytes(data)
    counter = Counter()
    digests = digest_spans(path, asked, counter)
    assert digests.sha256 == tuple(hashlib.sha256(data[span.start : span.stop]).hexdigest() for span in asked)
    assert int(digests.crc32, 16) == zlib.crc32(data)
    assert digests.size == counter.done == len(data)


def model(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def test_quick_id_keeps_its_meaning(tmp_path: Path) -> None:
    # The scheme spelled out a second time: ids already written into files must stay true.
    content = model(b"{}" + b" " * 30, bytes(index % 251 for index in range(300_000)))
    path = tmp_path / "model"
    path.write_bytes(content)
    digest = hashlib.sha256(struct.pack("<Q", len(content)) + content[:40])
    for index in range(128):
        start = 40 + (len(content) - 4096 - 40) * index // 127
        digest.update(content[start : start + 4096])
    assert quick_id(path) == f"quick1-300040-{digest.hexdigest()[:32]}"
    assert quick_id(path) == "quick1-300040-539be6dcac0089d84097fb0ba63339fb"


@pytest.mark.parametrize("position", [9, 39, 40, 4000, 499_999])
def test_quick_id_sees_a_change_in_header_begin_and_end(tmp_path: Path, position: int) -> None:
    content = bytearray(model(b"{}" + b" " * 30, bytes(500_000 - 40)))
    (tmp_path / "a").write_bytes(content)
    content[position] ^= 1
    (tmp_path / "b").write_bytes(content)
    assert quick_id(tmp_path / "a") != quick_id(tmp_path / "b")


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 8, b"\xff" * 100_000], ids=len)
def test_quick_id_names_any_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert quick_id(path).startswith(f"quick1-{len(content)}-")


def test_quick_id_of_several_files_depends_on_contents_alone(tmp_path: Path) -> None:
    one, two, renamed = tmp_path / "1", tmp_path / "2", tmp_path / "0"
    one.write_bytes(b"first")
    two.write_bytes(b"second")
    renamed.write_bytes(b"second")
    assert quick_id(one, two) == quick_id(two, one) == quick_id(renamed, one)
    assert quick_id(one, two).startswith("quick1-11-")
    assert quick_id(one, two) != quick_id(one, one)
