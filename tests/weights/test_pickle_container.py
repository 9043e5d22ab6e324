"""The two containers of torch.save: archives that deceive are refused, and real sizes open at once."""

from __future__ import annotations

import struct
import time
import warnings
import zipfile
from pathlib import Path

import pickle_assembly as asm
import pytest

from sdkit.weights.header import DamagedFileError
from sdkit.weights.pickle import open_pickle

GOOD = asm.checkpoint()
LOCAL, CENTRAL = b"PK\3\4", b"PK\1\2"


def refusal(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "a.ckpt"
    path.write_bytes(data)
    with pytest.raises(DamagedFileError) as caught:
        open_pickle(path)
    return caught.value.reason


def find(data: bytes, magic: bytes, record: str) -> int:
    """Where the header of `record` begins: the local one (name after 30 bytes) or the directory's (after 46)."""
    name_at = 30 if magic == LOCAL else 46
    position = data.find(magic)
    while data[position + name_at : position + name_at + len(record)] != record.encode():
        position = data.index(magic, position + 1)
    return position


def patched(record: str, magic: bytes, field: int, value: bytes, data: bytes | None = None) -> bytes:
    changed = bytearray(asm.torch_zip(GOOD) if data is None else data)
    start = find(bytes(changed), magic, record) + field
    changed[start : start + len(value)] = value
    return bytes(changed)


def test_a_good_archive_of_the_standard_library_opens(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(asm.torch_zip(GOOD))
    assert open_pickle(path).tensors["weight"].shape == (2, 2)


def test_two_records_of_one_name(tmp_path: Path) -> None:
    members = asm.records(GOOD)
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        warnings.simplefilter("ignore")
        for name, data in [*members.items(), ("archive/data.pkl", GOOD)]:
            file.writestr(name, data)
    assert "two records named archive/data.pkl" in refusal(tmp_path, (tmp_path / "a.zip").read_bytes())


@pytest.mark.parametrize("name", ["archive/other.pkl", "archive/data/evil.pkl", "archive/.hidden/data.pickle"])
def test_a_hidden_second_pickle(tmp_path: Path, name: str) -> None:
    assert f"hides a second pickle, {name}" in refusal(tmp_path, asm.archive({**asm.records(GOOD), name: GOOD}))


@pytest.mark.parametrize("name", ["other/data.pkl", "data.pkl"])
def test_pickles_of_two_folders(tmp_path: Path, name: str) -> None:
    reason = refusal(tmp_path, asm.archive({**asm.records(GOOD), name: GOOD}))
    assert "one data.pkl" in reason or "second pickle" in reason


def test_a_record_outside_the_folder(tmp_path: Path) -> None:
    assert "outside the folder" in refusal(tmp_path, asm.archive({**asm.records(GOOD), "elsewhere/x": b""}))


@pytest.mark.parametrize("name", ["archive/../../x", "archive/..", "archive\\x", "archive/\x1b[2J", "archive/\x7f"])
def test_a_deceptive_name(tmp_path: Path, name: str) -> None:
    assert "deceptive name" in refusal(tmp_path, asm.archive({**asm.records(GOOD), name: b""}))


def test_a_torchscript_program(tmp_path: Path) -> None:
    program = {**asm.records(GOOD), "archive/constants.pkl": GOOD, "archive/code/__torch__.py": b""}
    assert "TorchScript program" in refusal(tmp_path, asm.archive(program))


def test_another_kind_of_zip(tmp_path: Path) -> None:
    assert "not one of torch.save" in refusal(tmp_path, asm.archive({"weight.npy": b"\x93NUMPY"}))
    assert "not one of torch.save" in refusal(tmp_path, asm.archive({"data.pkl": GOOD}))


def test_a_compressed_archive(tmp_path: Path) -> None:
    assert "is compressed" in refusal(tmp_path, asm.archive(asm.records(GOOD), zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("record", ["archive/data.pkl", "archive/data/0"])
def test_an_encrypted_record(tmp_path: Path, record: str) -> None:
    both = patched(record, LOCAL, 6, b"\1\0", patched(record, CENTRAL, 8, b"\1\0"))
    assert "is encrypted" in refusal(tmp_path, both)
    assert "is encrypted" in refusal(tmp_path, patched(record, CENTRAL, 8, b"\1\0"))
    assert "contradicts" in refusal(tmp_path, patched(record, LOCAL, 6, b"\1\0"))


@pytest.mark.parametrize(
    ("field", "value"),
    [(0, b"PK\3\5"), (6, b"\0\x08"), (8, b"\x08"), (14, b"\1\2\3\4"), (18, b"\x0f"), (22, b"\x0f"), (30, b"b")],
    ids=["magic", "flags", "method", "crc", "packed size", "size", "name"],
)
def test_a_local_header_that_contradicts_the_directory(tmp_path: Path, field: int, value: bytes) -> None:
    assert "contradicts" in refusal(tmp_path, patched("archive/data/0", LOCAL, field, value))


def test_sizes_that_follow_the_data_may_be_missing_but_not_wrong(tmp_path: Path) -> None:
    asm.sparse_zip(tmp_path / "streamed.pt", GOOD, {"0": 16})
    streamed = (tmp_path / "streamed.pt").read_bytes()
    assert open_pickle(tmp_path / "streamed.pt").tensors["weight"].shape == (2, 2)
    for field in (14, 18, 22):
        assert "contradicts" in refusal(tmp_path, patched("archive/data/0", LOCAL, field, b"\x0f", streamed))


def test_a_wrong_checksum_of_the_pickle(tmp_path: Path) -> None:
    wrong = patched("archive/data.pkl", LOCAL, 14, b"\1\2\3\4", patched("archive/data.pkl", CENTRAL, 16, b"\1\2\3\4"))
    assert "checksum" in refusal(tmp_path, wrong)
    changed = asm.torch_zip(GOOD).replace(b"weight", b"wEight", 1)
    assert "checksum" in refusal(tmp_path, changed)


def test_records_that_overlap(tmp_path: Path) -> None:
    # Both storages at the place of the first: the directory's second entry points to the first header.
    data = asm.torch_zip(GOOD)
    first = struct.pack("<I", find(data, LOCAL, "archive/data/0"))
    assert "overlaps" in refusal(tmp_path, patched("archive/data/1", CENTRAL, 42, first))


def test_records_that_reach_too_far(tmp_path: Path) -> None:
    last = patched("archive/version", LOCAL, 18, struct.pack("<II", 99, 99))
    both = patched("archive/version", CENTRAL, 20, struct.pack("<II", 99, 99), last)
    assert "reaches into the directory" in refusal(tmp_path, both)
    away = patched("archive/version", CENTRAL, 42, struct.pack("<I", 2**31))
    assert "outside the file" in refusal(tmp_path, away)


def test_bytes_around_the_archive(tmp_path: Path) -> None:
    good = asm.torch_zip(GOOD)
    assert "mixed with the archive" in refusal(tmp_path, good + good)
    assert "truncated" in refusal(tmp_path, good + b"\0")
    commented = good[:-2] + b"\5\0hello"
    assert "truncated" in refusal(tmp_path, commented)
    assert "directory" in refusal(tmp_path, good[: good.index(CENTRAL)] + b"\0" * 50 + good[good.index(CENTRAL) :])


def test_a_directory_that_lies_about_its_size(tmp_path: Path) -> None:
    good = asm.torch_zip(GOOD)
    for field, value in [(8, b"\1\0"), (10, b"\x99\0"), (12, b"\xff\xff\xff\x7f"), (16, b"\0\0\0\0"), (4, b"\1\0")]:
        end = bytearray(good)
        end[len(good) - 22 + field : len(good) - 22 + field + len(value)] = value
        assert "directory" in refusal(tmp_path, bytes(end))


def test_a_file_of_a_big_endian_machine(tmp_path: Path) -> None:
    assert "big-endian" in refusal(tmp_path, asm.archive({**asm.records(GOOD), "archive/byteorder": b"big"}))
    assert "little-endian" in refusal(tmp_path, asm.torch_legacy(GOOD, little=False))


def test_a_tar_archive(tmp_path: Path) -> None:
    tar = bytearray(1024)
    tar[257:262] = b"ustar"
    assert "tar archive" in refusal(tmp_path, bytes(tar))


def test_a_pickle_that_torch_did_not_write(tmp_path: Path) -> None:
    assert "plain pickle" in refusal(tmp_path, asm.whole(asm.dict_of({"a": asm.number(1)})))
    assert "no tensors" in refusal(tmp_path, asm.torch_zip(asm.whole(asm.dict_of({"a": asm.number(1)}))))


def test_legacy_storages_that_do_not_fit(tmp_path: Path) -> None:
    zeros = bytes(16)
    assert "and has 5" in refusal(tmp_path, asm.torch_legacy(GOOD, {"0": (5, zeros)}))
    assert "and has -4" in refusal(tmp_path, asm.torch_legacy(GOOD, {"0": (-4, zeros)}))
    assert "truncated" in refusal(tmp_path, asm.torch_legacy(GOOD, {"0": (4, zeros[:8])}))
    assert "follow its last storage" in refusal(tmp_path, asm.torch_legacy(GOOD, {"0": (4, zeros + b"\0")}))
    assert "not that of its tensors" in refusal(tmp_path, asm.torch_legacy(GOOD, {"1": (4, zeros)}))
    assert "not that of its tensors" in refusal(tmp_path, asm.torch_legacy(GOOD, {}))


def test_legacy_views_of_a_storage(tmp_path: Path) -> None:
    # Before 0.4 a tensor's storage could itself be a window of another: (key, first element, elements).
    view = asm.tuple_of(asm.text("9"), asm.number(1), asm.number(2))
    path = tmp_path / "view.pt"
    held = asm.storage("0", 4, "FloatStorage", view)
    numbers = struct.pack("<4f", 1, 2, 3, 4)
    pickled = asm.whole(asm.dict_of({"w": asm.tensor((2,), (1,), held=held)}))
    path.write_bytes(asm.torch_legacy(pickled, {"0": (4, numbers)}))
    with open_pickle(path) as weights:
        assert weights.read(weights.tensors["w"]) == numbers[4:12]


def sd15_like(count: int, numel: int) -> bytes:
    tensors = {
        f"model.diffusion_model.blocks.{index}.weight": asm.tensor((numel,), (1,), held=asm.storage(str(index), numel))
        for index in range(count)
    }
    return asm.whole(asm.dict_of({"state_dict": asm.dict_of(tensors), "epoch": asm.number(3)}))


def test_a_checkpoint_of_two_gigabytes_opens_at_once(tmp_path: Path) -> None:
    path, count, numel = tmp_path / "big.ckpt", 1131, 480_000
    asm.sparse_zip(path, sd15_like(count, numel), {str(index): numel * 4 for index in range(count)})
    assert path.stat().st_size > 2e9
    best = 9.0
    for _ in range(3):
        started = time.perf_counter()
        weights = open_pickle(path)
        best = min(best, time.perf_counter() - started)
    assert len(weights.tensors) == count and weights.metadata == {"epoch": "3"}
    assert best < 0.15


def test_an_archive_above_four_gigabytes(tmp_path: Path) -> None:
    path, numel = tmp_path / "huge.ckpt", 3 << 28
    asm.sparse_zip(path, sd15_like(2, numel), {"0": numel * 4, "1": numel * 4})
    with open_pickle(path) as weights:
        last = weights.tensors["model.diffusion_model.blocks.1.weight"]
        assert last.offset > 3 << 30 and last.offset + last.nbytes > 2**32
        tail = bytearray(8)
        weights.read_into(last, memoryview(tail), last.nbytes - 8)
        assert tail == bytes(8)
