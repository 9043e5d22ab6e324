"""Tensors in memory that read like those of a file, so that a trained adapter needs no file to be an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sdkit.weights.dtypes import DType
from sdkit.weights.header import TensorInfo
from sdkit.weights.reader import Container, Weights


class MemoryWeights(Weights):
    """Tensors whose bytes are held by this object.

    Args:
        name: what messages call it; nothing is looked for at this path.
        tensors: name → element type, shape and row-major little-endian bytes.
        metadata: as in a file's header.
    """

    def __init__(
        self,
        name: str,
        tensors: Mapping[str, tuple[DType, tuple[int, ...], bytes | bytearray]],
        metadata: Mapping[str, str],
    ) -> None:
        infos = {key: TensorInfo(key, dtype, shape, 0) for key, (dtype, shape, _) in tensors.items()}
        super().__init__(Path(name), Container.MEMORY, (), infos, metadata)
        self._data = {key: memoryview(data) for key, (_, _, data) in tensors.items()}

    def read_into(self, info: TensorInfo, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the bytes of a tensor, beginning at its byte `start`."""
        buffer[:] = self._data[info.name][start : start + len(buffer)]
