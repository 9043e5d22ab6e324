"""The content id against a reader written from its description, and against what it must and must not see."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from sdkit.weights import open_weights
from sdkit.weights.content import hash_content, sample_id

DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64"}


def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "b": random.normal(size=(3, 5)).astype(np.float16),
        "a": random.normal(size=(7,)).astype(np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "c": np.array(5, np.int64),
    }


def expected(path: Path) -> str:
    lines = []
    for name, values in load_file(path).items():
        shape = "x".join(map(str, values.shape))
        digest = hashlib.sha256(values.tobytes()).hexdigest()
        lines.append(f"{name}\0{DTYPES[str(values.dtype)]}\0{shape}\0{digest}\n")
    return "content1-" + hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def test_it_is_what_its_description_says(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors(), path)
    content = hash_content(path)
    assert content.content_id == expected(path)
    assert content.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_may_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors(), path)
    monkeypatch.setattr("sdkit.weights.content.BLOCK_BYTES", block)
    assert hash_content(path).content_id == expected(path)


def test_a_pickle_of_the_same_tensors_has_the_same_id(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a.safetensors")
    torch.save({name: torch.from_numpy(values) for name, values in tensors().items()}, tmp_path / "a.ckpt")
    one, other = hash_content(tmp_path / "a.safetensors"), hash_content(tmp_path / "a.ckpt")
    assert one.content_id == other.content_id
    assert one.sha256 != other.sha256 == hashlib.sha256((tmp_path / "a.ckpt").read_bytes()).hexdigest()


def test_metadata_change_neither_id_and_numbers_change_the_content_id(tmp_path: Path) -> None:
    ids, samples = {}, {}
    changed = {**tensors(), "a": tensors()["a"] + 1}
    for name, values, metadata in (
        ("plain", tensors(), None),
        ("tagged", tensors(), {"x": "y" * 100}),
        ("changed", changed, None),
        ("renamed", {"z" if key == "a" else key: value for key, value in tensors().items()}, None),
    ):
        path = tmp_path / f"{name}.safetensors"
        save_file(values, path, metadata)
        ids[name] = hash_content(path).content_id
        with open_weights(path) as weights:
            samples[name] = sample_id(weights)
    for found in (ids, samples):
        assert found["plain"] == found["tagged"]
        assert len(set(found.values())) == 3
