"""The same tensors under another header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sdkit.core.progress import NoProgress, Progress
from sdkit.weights.reader import open_file
from sdkit.weights.writer import SafetensorsWriter

_PIECE_BYTES = 8 << 20


def with_metadata(path: Path, target: Path, metadata: Mapping[str, str], progress: Progress | None = None) -> Path:
    """Copy a safetensors file with other metadata; its tensors keep their order and their bytes."""
    progress = progress or NoProgress()
    with open_file(path) as weights:
        infos = list(weights.tensors.values())
        layout = [(info.name, info.dtype, info.shape) for info in infos]
        progress.start(f"copying {path.name}", sum(info.nbytes for info in infos))
        with SafetensorsWriter(target, layout, metadata) as writer:
            for info in infos:
                for start in range(0, info.nbytes, _PIECE_BYTES):
                    piece = bytearray(min(_PIECE_BYTES, info.nbytes - start))
                    weights.read_into(info, memoryview(piece), start)
                    writer.write_tensor(info.name, piece, start)
                    progress.advance(len(piece))
            writer.commit()
    return target
