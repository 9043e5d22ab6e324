"""The hashes by which hubs and web UIs name model files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdkit.core.hashing import Span, digest_spans
from sdkit.core.progress import Progress
from sdkit.weights.header import ALIGNMENT, DamagedFileError, TensorInfo, build_header, read_header
from sdkit.weights.reader import Weights, open_safetensors

# Where the first web UI looked: 64 KiB at the first mebibyte, which says nothing about the rest.
WINDOW_START, WINDOW_STOP = 0x100000, 0x110000

# The safetensors library writes tensors by falling dtype, then by name; this is the order of its dtypes.
_LIBRARY_DTYPES = (
    "BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ "
    "I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64"
).split()


@dataclass(frozen=True, slots=True)
class FileHashes:
    """Every common hash of one file, in lower-case hex.

    Attributes:
        path: the file, as it was named.
        size: bytes.
        sha256: of the whole file; what hubs list and what identifies a download.
        autov1: the web UI's first hash: the first 8 digits of the sha256 of 64 KiB at 1 MiB. Files that end before all
            have the hash of nothing, ``e3b0c442``.
        autov2: the first 10 digits of `sha256`.
        autov3: the first 12 digits of `sshs_model_hash`.
        crc32: of the whole file.
        sshs_model_hash: sha256 of the tensors' bytes, without the header; unlike `sha256` it survives edits of the
            metadata. None for files that are not safetensors.
        sshs_legacy_hash: `autov1` of the file as the safetensors library would write it with its ``ss_*`` metadata
            alone. None for files that are not safetensors, and where such a header reaches past 1 MiB: the library
            orders metadata at random, so the hash would be too.
        problem: why a file that looks like safetensors has no `sshs` hashes; empty otherwise.
    """

    path: str
    size: int
    sha256: str
    autov1: str
    autov2: str
    autov3: str | None
    crc32: str
    sshs_model_hash: str | None
    sshs_legacy_hash: str | None
    problem: str = ""


def hash_file(path: Path | str, progress: Progress | None = None) -> FileHashes:
    """Compute all hashes of the file at `path` while reading it once.

    Raises:
        OSError: the file cannot be read.
    """
    data_start, problem = _data_start(Path(path))
    spans = [Span(), Span(WINDOW_START, WINDOW_STOP)] + ([Span(data_start)] if data_start else [])
    digests = digest_spans(path, spans, progress)
    sha256, window = digests.sha256[:2]
    data = digests.sha256[2] if data_start else None
    return FileHashes(
        path=str(path),
        size=digests.size,
        sha256=sha256,
        autov1=window[:8],
        autov2=sha256[:10],
        autov3=data[:12] if data else None,
        crc32=digests.crc32,
        sshs_model_hash=data,
        sshs_legacy_hash=legacy_hash(Path(path)) if data else None,
        problem=problem,
    )


def _data_start(path: Path) -> tuple[int, str]:
    """Where the tensors of a safetensors file begin; zero for other files, with the reason if it should be one."""
    try:
        return read_header(path).data_start, ""
    except DamagedFileError as error:
        return 0, error.reason if path.suffix == ".safetensors" else ""


def legacy_hash(path: Path) -> str | None:
    """The `sshs_legacy_hash` of a safetensors file, of which no more than 64 KiB are read."""
    with open_safetensors(path) as weights:
        tensors = sorted(weights.tensors.values(), key=library_order)
        data_start = library_data_start(tensors, weights.metadata)
        if data_start > WINDOW_START:
            return None
        return hashlib.sha256(_window(weights, tensors, data_start)).hexdigest()[:8]


def library_data_start(tensors: list[TensorInfo], metadata: Mapping[str, str]) -> int:
    """Where the library would begin the data, had it only the ``ss_*`` metadata to write (even when there are none)."""
    training = {name: text for name, text in metadata.items() if name.startswith("ss_")}
    header = build_header(((info.name, info.dtype, info.shape) for info in tensors), training)
    end = len(header.rstrip(b" ")) + (0 if training else len('"__metadata__":{},'))
    return end + -end % ALIGNMENT


def library_order(info: TensorInfo) -> tuple[int, str]:
    """The key by which the safetensors library sorts tensors when it writes them."""
    return -_LIBRARY_DTYPES.index(info.dtype.name), info.name


def _window(weights: Weights, tensors: list[TensorInfo], position: int) -> bytes:
    """The bytes of the web UI's window when `tensors` follow each other from byte `position` on."""
    window = bytearray()
    for info in tensors:
        start = max(WINDOW_START - position, 0)
        stop = min(WINDOW_STOP - position, info.nbytes)
        if start < stop:
            piece = bytearray(stop - start)
            weights.read_into(info, memoryview(piece), start)
            window += piece
        position += info.nbytes
    return bytes(window)
