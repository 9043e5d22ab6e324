"""Writing the tensors of an adapter: what every codec that writes shares."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from sdkit.streaming.expression import Read
from sdkit.weights import DTYPES
from sdkit.weights.writer import SafetensorsWriter

# A tensor of an opened file, or one number.
Content = Read | float


def write_adapter_file(
    path: Path, contents: Mapping[str, Content], metadata: Mapping[str, str], *, overwrite: bool
) -> None:
    """Write `contents` as a safetensors file, sorted by name, so that the bytes depend on the contents alone."""
    names = sorted(contents)
    layout = []
    for name in names:
        content = contents[name]
        # Numbers stay float32 whatever the factors' type: an alpha rounded to float16 would change the adapter.
        layout.append((name, content.dtype, content.shape) if isinstance(content, Read) else (name, DTYPES["F32"], ()))
    with SafetensorsWriter(path, layout, {"format": "pt", **metadata}, overwrite=overwrite) as writer:
        for name in names:
            content = contents[name]
            data = content.weights.read(content.info) if isinstance(content, Read) else struct.pack("<f", content)
            writer.write_tensor(name, data)
        writer.commit()
