from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdkit.adapters.deltas.factors import read_factor, same_bytes
from sdkit.streaming.expression import Read
from sdkit.weights import DTYPES, TensorInfo, Weights
from sdkit.weights.header import DamagedFileError
from sdkit.weights.reader import Container


def strided(path: Path, values: torch.Tensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> Read:
    path.write_bytes(values.numpy().tobytes())
    info = TensorInfo("w", DTYPES["F32"], shape, 0, strides=strides)
    return Read(Weights(path, Container.PICKLE, [path], {"w": info}, {}), info)


def test_views_of_old_pickles(tmp_path):
    values = torch.arange(12.0)
    transposed = strided(tmp_path / "a", values, (3, 4), (1, 3))
    assert torch.equal(read_factor(transposed, torch.float64), values.reshape(4, 3).T.double())
    part = strided(tmp_path / "b", values, (2, 3), (6, 1))
    assert torch.equal(read_factor(part, torch.float32), values.reshape(2, 6)[:, :3])


def test_a_file_that_shrank_is_an_error(tmp_path):
    read = strided(tmp_path / "a", torch.arange(4.0), (2, 3), (3, 1))
    with pytest.raises(DamagedFileError, match="w: the file ends"):
        read_factor(read, torch.float32)


def test_same_bytes(reads):
    file = reads(a=torch.ones(2, 2), b=torch.ones(2, 2), c=torch.eye(2), d=torch.ones(4), e=torch.ones(2, 2).half())
    assert same_bytes(file["a"], file["b"])
    assert not any(same_bytes(file["a"], file[name]) for name in "cde")
