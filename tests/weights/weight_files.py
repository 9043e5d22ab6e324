"""Small files for the tests of the floor below everything: written byte by byte, so that they can lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any


def entry(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw_file(path: Path, header: dict[str, Any] | str | bytes, data: bytes = b"") -> Path:
    """A safetensors file with this header, true or not."""
    text = header if isinstance(header, (str, bytes)) else json.dumps(header)
    text = text.encode() if isinstance(text, str) else text
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def floats(path: Path, **tensors: list[float]) -> Path:
    """A file of one-dimensional F32 tensors."""
    header, data = {}, b""
    for name, values in tensors.items():
        packed = struct.pack(f"<{len(values)}f", *values)
        header[name] = entry("F32", [len(values)], len(data), len(data) + len(packed))
        data += packed
    return raw_file(path, header, data)
