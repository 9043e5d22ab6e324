"""A safetensors file written tensor by tensor, in any order, by any thread, with bytes that depend on neither."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from sdkit.weights.atomic import AtomicFile
from sdkit.weights.dtypes import DType
from sdkit.weights.header import build_header


class SafetensorsWriter(AtomicFile):
    """Lays out all tensors at once, reserves their space, and takes their bytes at fixed positions.

    Args:
        path: the final name.
        tensors: name, element type and shape of each tensor, in file order.
        metadata: the header's ``__metadata__``.
        overwrite: whether a file already at `path` may be replaced.
        header: the exact header to write, length included, when a file is to be restored byte for byte; it must
            describe the same layout.
    """

    def __init__(
        self,
        path: Path | str,
        tensors: Iterable[tuple[str, DType, tuple[int, ...]]],
        metadata: Mapping[str, str],
        *,
        overwrite: bool = False,
        header: bytes | None = None,
    ) -> None:
        layout = list(tensors)
        header = header or build_header(layout, metadata)
        self.offsets: dict[str, int] = {}
        position = len(header)
        for name, dtype, shape in layout:
            self.offsets[name] = position
            position += dtype.nbytes(math.prod(shape))
        self.size = position
        super().__init__(path, overwrite=overwrite)
        try:
            self.reserve(self.size)
            self.write(header, 0)
        except BaseException:
            self.abort()
            raise

    def write_tensor(self, name: str, data: bytes | bytearray | memoryview, start: int = 0) -> None:
        """Write bytes of a tensor, beginning at its byte `start`."""
        self.write(data, self.offsets[name] + start)
