"""Writing the tensors of an adapter: what every codec that writes shares."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.streaming.expression import Read
from sdkit.weights import DTYPES, TensorInfo, positional
from sdkit.weights.atomic import AtomicFile, check_space
from sdkit.weights.hashes import WINDOW_START, WINDOW_STOP, library_data_start, library_order
from sdkit.weights.header import build_header
from sdkit.weights.metadata import STALE_KEYS
from sdkit.weights.writer import SafetensorsWriter

if TYPE_CHECKING:
    import torch

# A tensor of an opened file, or one number.
Content = Read | float


def write_adapter_file(
    path: Path, contents: Mapping[str, Content], metadata: Mapping[str, str], *, overwrite: bool
) -> None:
    """Write `contents` as a safetensors file whose bytes depend on the contents alone, its hashes among the metadata.

    The tensors stand in the order of the safetensors library: by falling type, then by name.
    """
    infos = sorted((_info(name, content) for name, content in contents.items()), key=library_order)
    layout = [(info.name, info.dtype, info.shape) for info in infos]
    kept = {"format": "pt", **{key: value for key, value in metadata.items() if key not in STALE_KEYS}}
    start = library_data_start(infos, kept)
    blank = {**kept, **_hashes("0" * 64, "0" * 8 if start <= WINDOW_START else None, kept)}
    with SafetensorsWriter(path, layout, blank, overwrite=overwrite) as writer:
        digest = hashlib.sha256()
        for info in infos:
            data = _bytes(contents[info.name])
            digest.update(data)
            writer.write_tensor(info.name, data)
        legacy = _legacy_hash(writer, sum(info.nbytes for info in infos), start)
        # All hashes have fixed lengths: with the true ones in place of zeros the header keeps its size.
        writer.write(build_header(layout, {**kept, **_hashes(digest.hexdigest(), legacy, kept)}), 0)
        writer.commit()


def write_pickle(path: Path, contents: Mapping[Any, Any] | torch.Tensor, nbytes: int, *, overwrite: bool) -> None:
    """Write what only web UIs' pickles can say, with ``torch.save``, whole or not at all.

    Args:
        contents: tensors, plain values, and tables of them: nothing that ``torch.load(weights_only=True)`` refuses.
        nbytes: of the tensors.
    """
    import torch

    with AtomicFile(path, overwrite=overwrite) as file:
        check_space(path, nbytes)
        with open(file.descriptor, "wb", closefd=False) as stream:
            torch.save(contents, stream)
        file.commit()


def _info(name: str, content: Content) -> TensorInfo:
    # Numbers stay float32 whatever the factors' type: an alpha rounded to float16 would change the adapter.
    dtype, shape = (content.dtype, content.shape) if isinstance(content, Read) else (DTYPES["F32"], ())
    return TensorInfo(name, dtype, shape, 0)


def _bytes(content: Content) -> bytes:
    return content.weights.read(content.info) if isinstance(content, Read) else struct.pack("<f", content)


def _hashes(data: str, legacy: str | None, metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata that name a file by its tensors. Web UIs trust them unseen, so they must be right."""
    hashes = {"sshs_model_hash": data}
    if legacy is not None:
        hashes["sshs_legacy_hash"] = legacy
    if any(key.startswith("modelspec.") for key in metadata):
        hashes["modelspec.hash_sha256"] = f"0x{data}"
    return hashes


def _legacy_hash(writer: SafetensorsWriter, nbytes: int, library_start: int) -> str | None:
    """See `FileHashes.sshs_legacy_hash`: a window of the tensors' bytes, which stand in the library's order here."""
    if library_start > WINDOW_START:
        return None
    begin, end = (min(limit - library_start, nbytes) for limit in (WINDOW_START, WINDOW_STOP))
    window = bytearray(end - begin)
    positional.read_into(writer.descriptor, memoryview(window), writer.size - nbytes + begin)
    return hashlib.sha256(window).hexdigest()[:8]
