from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sdkit.core.errors import SdkitError
from sdkit.weights import DTYPES, open_weights, positional
from sdkit.weights.header import read_header
from sdkit.weights.writer import SafetensorsWriter

LAYOUT = [
    ("a", DTYPES["F16"], (3,)),
    ("empty", DTYPES["F32"], (0, 4)),
    ("scalar", DTYPES["F32"], ()),
    ("bytes", DTYPES["U8"], (1000, 1000)),
]
CONTENT = {"a": b"123456", "empty": b"", "scalar": b"\0\0\x80?", "bytes": bytes(range(250)) * 4000}


def write(path: Path, order: list[str]) -> bytes:
    with SafetensorsWriter(path, LAYOUT, {"z": "1", "a": "2"}) as writer:
        pieces = [(name, start) for name in order for start in range(0, len(CONTENT[name]), 100_000)]
        with ThreadPoolExecutor(4) as pool:
            for name, start in pieces:
                pool.submit(writer.write_tensor, name, CONTENT[name][start : start + 100_000], start)
        writer.commit()
    return path.read_bytes()


@pytest.mark.parametrize("accelerated", [True, False])
def test_bytes_depend_on_neither_order_nor_threads(
    tmp_path: Path, accelerated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positional, "ACCELERATED", accelerated)
    one = write(tmp_path / "one.safetensors", list(CONTENT))
    two = write(tmp_path / "two.safetensors", list(CONTENT)[::-1])
    assert one == two
    with open_weights(tmp_path / "one.safetensors") as weights:
        assert list(weights.tensors) == ["a", "empty", "scalar", "bytes"]
        assert {name: weights.read(info) for name, info in weights.tensors.items()} == CONTENT


def test_the_data_begin_on_an_eight_byte_boundary(tmp_path: Path) -> None:
    for length in range(9):
        path = tmp_path / f"{length}.safetensors"
        with SafetensorsWriter(path, LAYOUT[:1], {"k": "x" * length}) as writer:
            writer.write_tensor("a", CONTENT["a"])
            writer.commit()
        assert read_header(path).data_start % 8 == 0


def test_a_given_header_is_written_as_it_is(tmp_path: Path) -> None:
    whole = write(tmp_path / "one.safetensors", list(CONTENT))
    header = whole[: read_header(tmp_path / "one.safetensors").data_start]
    with SafetensorsWriter(tmp_path / "two.safetensors", LAYOUT, {}, header=header) as writer:
        for name, content in CONTENT.items():
            writer.write_tensor(name, content)
        writer.commit()
    assert (tmp_path / "two.safetensors").read_bytes() == whole


def test_a_file_without_tensors_can_be_written(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "none.safetensors", [], {"only": "metadata"}) as writer:
        writer.commit()
    assert open_weights(tmp_path / "none.safetensors").metadata == {"only": "metadata"}


def test_a_layout_that_does_not_fit_the_disk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SdkitError, match="the disk has"):
        SafetensorsWriter(tmp_path / "out.safetensors", [("a", DTYPES["F32"], (2**50,))], {})
    assert list(tmp_path.iterdir()) == []
