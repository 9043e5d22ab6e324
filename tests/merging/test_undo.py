from __future__ import annotations

import struct
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sdkit.core.errors import SdkitError
from sdkit.merging import undo
from sdkit.merging.undo import Changed, decode, encode, restored_outputs, write_undo
from sdkit.streaming import OutputFile, Stream
from sdkit.weights import open_weights
from sdkit.weights.reader import raw_header

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def planes_of(data: bytes) -> list[memoryview]:
    parts, view = [], memoryview(data)
    while view:
        length = int.from_bytes(view[:4], "little")
        parts.append(view[4 : 4 + length])
        view = view[4 + length :]
    return parts


@given(st.sampled_from([1, 2, 4, 8]), st.data())
def test_any_bits_come_back(itemsize, data) -> None:
    count = data.draw(st.integers(1, 40)) * itemsize
    base = bytearray(data.draw(st.binary(min_size=count, max_size=count)))
    merged = bytearray(data.draw(st.binary(min_size=count, max_size=count)))
    planes = planes_of(encode(base, merged, itemsize))
    assert len(planes) == itemsize
    bits = torch.frombuffer(merged, dtype=INTEGERS[itemsize])
    decode(planes, bits, itemsize)
    assert merged == base


def test_small_changes_take_little_room() -> None:
    base = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    merged = base + torch.randn(base.shape, generator=torch.Generator().manual_seed(1)).mul_(2e-4).half()
    raw = [bytearray(tensor.view(torch.uint8).numpy().tobytes()) for tensor in (base, merged)]
    assert len(encode(*raw, 2)) < 0.55 * len(raw[0])  # changes of a hundredth of the weights


@pytest.fixture
def merge(tmp_path, monkeypatch):
    """A base, a merged file, and the undo file between them, with chunks small enough that tensors have several."""
    monkeypatch.setattr(undo, "CHUNK_ELEMENTS", 64)
    generator = torch.Generator().manual_seed(3)
    tensors = {
        "kept": torch.arange(7),
        "half": torch.randn(20, 30, generator=generator).half(),
        "brain": torch.randn(65, generator=generator).bfloat16(),
        "single": torch.randn(3, 5, 7, generator=generator),
        "eight": torch.randn(130, generator=generator).to(torch.float8_e4m3fn),
    }
    changed = ["half", "brain", "single", "eight"]
    merged = {name: (t.float() * 1.01 + 0.001).to(t.dtype) if name in changed else t for name, t in tensors.items()}
    save_file(tensors, tmp_path / "base.safetensors", {"format": "pt", "note": "kept to the letter"})
    save_file(merged, tmp_path / "merged.safetensors", {"sdkit.recipe": "{}"})
    with open_weights(tmp_path / "base.safetensors") as base, open_weights(tmp_path / "merged.safetensors") as other:
        pairs = [
            Changed(base, info, other.descriptor(), other.tensors[name].offset)
            for name, info in base.tensors.items()
            if name in changed
        ]
        with write_undo(pairs, raw_header(base), tmp_path / "undo", overwrite=False, threads=2) as file:
            file.commit()
    return tmp_path


def restore(folder, threads=2) -> bytes:
    with open_weights(folder / "merged.safetensors") as merged, open_weights(folder / "undo") as correction:
        outputs, header = restored_outputs(merged, correction)
        file = OutputFile(folder / "restored.safetensors", tuple(outputs), {}, header)
        with Stream([file], overwrite=True, threads=threads) as stream:
            stream.run()
            stream.commit()
    return (folder / "restored.safetensors").read_bytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_base_comes_back_byte_for_byte(merge, threads) -> None:
    assert restore(merge, threads) == (merge / "base.safetensors").read_bytes()


def test_the_undo_file_is_plain_safetensors_and_the_same_every_time(merge) -> None:
    assert set(load_file(merge / "undo")) == {"header", "tensor/half", "tensor/brain", "tensor/single", "tensor/eight"}
    first = (merge / "undo").read_bytes()
    with open_weights(merge / "base.safetensors") as base, open_weights(merge / "merged.safetensors") as other:
        pairs = [
            Changed(base, info, other.descriptor(), other.tensors[name].offset)
            for name, info in base.tensors.items()
            if name != "kept"
        ]
        with write_undo(pairs, raw_header(base), merge / "again", overwrite=False, threads=5) as file:
            file.commit()
    assert (merge / "again").read_bytes() == first


def test_a_merged_file_that_was_changed_since_is_refused(merge) -> None:
    path = merge / "merged.safetensors"
    data = bytearray(path.read_bytes())
    with open_weights(path) as weights:
        data[weights.tensors["single"].offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(SdkitError, match="single: is not what the merge wrote"):
        restore(merge)
    assert not (merge / "restored.safetensors").exists()


def test_a_damaged_correction_is_noticed(merge) -> None:
    path = merge / "undo"
    with open_weights(path) as weights:
        info = weights.tensors["tensor/half"]
    data = bytearray(path.read_bytes())
    data[info.offset + info.nbytes - 30] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(SdkitError):
        restore(merge)
    assert not (merge / "restored.safetensors").exists()


def test_another_file_is_no_undo_file(merge) -> None:
    with open_weights(merge / "merged.safetensors") as merged, pytest.raises(SdkitError, match="is no undo file"):
        restored_outputs(merged, merged)


def rewrite(folder, metadata=None, **tensors) -> None:
    """Put other bytes and metadata into the undo file, which stays a valid safetensors file."""
    with open_weights(folder / "undo") as weights:
        said = {**weights.metadata, **(metadata or {})}
    parts = {name: tensor.clone() for name, tensor in load_file(folder / "undo").items()}
    parts |= {
        name.replace("__", "/"): torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in tensors.items()
    }
    save_file(parts, folder / "undo", said)


@pytest.mark.parametrize("checks", ["", "[]", '{"half": 3}', '{"half": [1, "x"]}', "[" * 100_000])
def test_checksums_that_cannot_be_read_are_refused(merge, checks) -> None:
    rewrite(merge, {"sdkit.undo.crc32": checks})
    with pytest.raises(SdkitError, match="checksums|does not fit"):
        restore(merge)


@pytest.mark.parametrize("change", [b'"half"', b"[", b"\x00"])
def test_a_header_of_another_layout_is_refused(merge, change) -> None:
    header = load_file(merge / "undo")["header"].numpy().tobytes()
    other = {b'"half"': header.replace(b'"half"', b'"hulf"'), b"[": header[:-1] + b"[", b"\x00": b"\x00" + header[1:]}
    rewrite(merge, header=other[change])
    with pytest.raises(SdkitError, match="not that of the merged file's base"):
        restore(merge)
    assert not (merge / "restored.safetensors").exists()


def test_a_correction_never_unpacks_to_more_than_its_chunk(merge) -> None:
    bomb = zlib.compress(bytes(1 << 24))
    planes = struct.pack("<I", len(bomb)) + bomb
    rewrite(merge, tensor__half=planes * 2)
    with pytest.raises(SdkitError):
        restore(merge)
    assert not (merge / "restored.safetensors").exists()
