from __future__ import annotations

import pytest
import torch

from sdkit.adapters.deltas.factors import read_factor, same_bytes
from sdkit.streaming.expression import Read
from sdkit.weights import DTYPES, TensorInfo, Weights, open_weights
from sdkit.weights.header import DamagedFileError
from sdkit.weights.reader import Container


def test_views_of_old_pickles(tmp_path):
    values = torch.arange(12.0)
    torch.save({"turned": values.reshape(4, 3).T, "part": values.reshape(2, 6)[:, :3]}, tmp_path / "views.pt")
    with open_weights(tmp_path / "views.pt") as weights:
        turned, part = (Read(weights, weights.tensors[name]) for name in ("turned", "part"))
        assert torch.equal(read_factor(turned, torch.float64), values.reshape(4, 3).T.double())
        assert torch.equal(read_factor(part, torch.float32), values.reshape(2, 6)[:, :3])


def test_a_file_that_shrank_is_an_error(tmp_path):
    path = tmp_path / "w.bin"
    path.write_bytes(bytes(16))
    info = TensorInfo("w", DTYPES["F32"], (2, 3), 0)
    with pytest.raises(DamagedFileError, match="w: the file ends"):
        read_factor(Read(Weights(path, Container.SAFETENSORS, [path], {"w": info}, {}), info), torch.float32)


def test_same_bytes(reads):
    file = reads(a=torch.ones(2, 2), b=torch.ones(2, 2), c=torch.eye(2), d=torch.ones(4), e=torch.ones(2, 2).half())
    assert same_bytes(file["a"], file["b"])
    assert not any(same_bytes(file["a"], file[name]) for name in "cde")
