from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from sdkit.weights.hashes import hash_file

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.complex64,
]  # fmt: skip


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def data_of(content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 + length :]


def tensors_of_every_dtype() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = [f"{chr(97 + 7 * index % 26)}.{index}" for index in range(2 * len(DTYPES))]
    tensors = {}
    for index, name in enumerate(names):
        raw = torch.randint(0, 2, (8 * (5000 + index),), generator=generator, dtype=torch.uint8)
        tensors[name] = raw.view(DTYPES[index % len(DTYPES)])
    return tensors


def rewrite(content: bytes, metadata: dict[str, str]) -> bytes:
    """The same tensors in the opposite order, under other metadata, with an unpadded header."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    data, fields = b"", {"__metadata__": metadata}
    for name, entry in reversed(header.items()):
        begin, end = entry["data_offsets"]
        piece = data_of(content)[begin:end]
        fields[name] = {**entry, "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("training", [{}, {"ss_network_dim": "4", "ss_comment": 'é\x7f\x01\n"\\/'}], ids=["bare", "ss"])
def test_hashes_are_those_of_the_library_and_the_web_ui(tmp_path: Path, training: dict[str, str]) -> None:
    library = save(tensors_of_every_dtype(), training)
    assert len(library) > 0x110000, "the window must hold data"
    content = rewrite(library, {"modelspec.title": "late edit", **training})
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    hashes = hash_file(path)
    assert hashes.sha256 == sha256(content)
    assert hashes.autov1 == sha256(content[0x100000:0x110000])[:8]
    assert hashes.autov2 == sha256(content)[:10]
    assert hashes.autov3 == sha256(data_of(content))[:12]
    assert hashes.sshs_model_hash == sha256(data_of(content))
    assert hashes.sshs_legacy_hash == sha256(library[0x100000:0x110000])[:8]
    assert int(hashes.crc32, 16) == zlib.crc32(content)
    assert hashes.size == len(content)
    assert hashes.problem == ""


def test_metadata_edits_change_the_file_but_not_the_model(tmp_path: Path) -> None:
    one, two = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    one.write_bytes(save({"a": torch.ones(9)}, {}))
    two.write_bytes(save({"a": torch.ones(9)}, {"modelspec.title": "x"}))
    first, second = hash_file(one), hash_file(two)
    assert first.sha256 != second.sha256
    assert (first.autov3, first.sshs_legacy_hash) == (second.autov3, second.sshs_legacy_hash)


def test_training_metadata_past_the_window_have_no_legacy_hash(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"a": torch.ones(9)}, {"ss_tag_frequency": "x" * 0x100000}))
    hashes = hash_file(path)
    assert hashes.sshs_legacy_hash is None
    assert hashes.sshs_model_hash is not None


def test_damaged_and_other_files_are_hashed_as_bytes(tmp_path: Path) -> None:
    damaged, other = tmp_path / "damaged.safetensors", tmp_path / "notes.txt"
    damaged.write_bytes(save({"a": torch.ones(9)}, {})[:-1])
    other.write_bytes(b"")
    assert "truncated" in hash_file(damaged).problem
    assert hash_file(damaged).sshs_model_hash is None
    assert hash_file(damaged).sha256 == sha256(damaged.read_bytes())
    assert (hash_file(other).problem, hash_file(other).sha256) == ("", sha256(b""))


def test_a_real_file_with_an_unaligned_header(test_data: Path) -> None:
    path = test_data / "data/adapters/lora-cloneofsimo/lora_disney.safetensors"
    content = path.read_bytes()
    hashes = hash_file(path)
    assert hashes.sha256 == "cea222b3653ff7eb4ee8b89f70b995bf81d4cbf01111605128c2c9704ae66c19"
    assert hashes.sshs_model_hash == sha256(data_of(content))
    assert hashes.sshs_legacy_hash == sha256(save(load(content), {})[0x100000:0x110000])[:8]
