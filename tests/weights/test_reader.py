"""Opening a file by what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sdkit.weights import open_weights


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_header_length_spelled_like_a_pickle(sparse: Callable[..., Path], protocol: int) -> None:
    size = 0x80 + (protocol << 8)
    filler = size - len(sparse({"a": ("F32", [1])}, {"x": ""}).read_bytes()) + 8 + 4
    path = sparse({"a": ("F32", [1])}, {"x": "x" * filler})
    assert path.read_bytes()[:8] == bytes([0x80, protocol, 0, 0, 0, 0, 0, 0])
    assert list(open_weights(path).tensors) == ["a"]
