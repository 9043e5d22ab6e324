"""The compressed correction that turns a merged checkpoint back into its base, bit for bit.

For every changed tensor the difference of the stored bit patterns (as integers, base minus merged) is small, because a
merge moves weights by few units in the last place. Differences are zigzag-coded, split into byte planes, and deflated:
the lowest plane with Huffman codes alone, the others, which are nearly all zero, by run length. Nothing else is
needed to undo the merge: neither the adapter nor the same arithmetic on another machine.

An undo file is a safetensors file: ``header`` holds the base's header, ``tensor/NAME`` the compressed correction of a
tensor, chunk by chunk (per chunk and byte plane: a 32-bit length, then the deflated bytes).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.core.errors import SdkitError
from sdkit.streaming import Output, Read
from sdkit.streaming.expression import Context, TileFunction, torch_dtype
from sdkit.weights import DTYPES, DType, TensorInfo, Weights, positional
from sdkit.weights.atomic import AtomicFile
from sdkit.weights.header import LENGTH_BYTES, DamagedFileError, build_header

if TYPE_CHECKING:
    import torch

VERSION_KEY = "sdkit.undo"
VERSION = "1"
CHECKS_KEY = "sdkit.undo.crc32"
CHUNK_ELEMENTS = 1 << 18
TENSOR_PREFIX = "tensor/"
HEADER_NAME = "header"
_LENGTH = struct.Struct("<I")
_WIDEST = 1 << 62  # longer than any correction, to reserve room for the header's digits


@dataclass(frozen=True, slots=True)
class Changed:
    """A tensor of the base and where its merged bytes lie."""

    base: Weights
    info: TensorInfo
    descriptor: int
    offset: int


def write_undo(
    changed: Sequence[Changed], base_header: bytes, path: Path, *, overwrite: bool, threads: int
) -> AtomicFile:
    """Write the undo file of a merge whose output is still open; the caller commits it.

    Args:
        changed: the tensors that differ, in file order; both sides have one element type.
        base_header: the length and header of the base file.
        path: the undo file.
        overwrite: whether it may be replaced.
        threads: how many chunks are compressed at once.
    """
    names = [TENSOR_PREFIX + entry.info.name for entry in changed]
    checks = {"base": [0] * len(names), "merged": [0] * len(names)}
    widest = _layout(names, [_WIDEST] * len(names), len(base_header))
    room = len(build_header(widest, _metadata(names, checks, pad=True)))
    file = AtomicFile(path, overwrite=overwrite)
    try:
        position = room
        file.write(base_header, position)
        position += len(base_header)
        sizes = [0] * len(names)
        with ThreadPoolExecutor(threads) as pool:
            for chunk in _compressed(pool, changed, threads):
                file.write(chunk.data, position)
                position += len(chunk.data)
                sizes[chunk.tensor] += len(chunk.data)
                checks["base"][chunk.tensor] ^= chunk.base_crc
                checks["merged"][chunk.tensor] ^= chunk.merged_crc
        header = build_header(_layout(names, sizes, len(base_header)), _metadata(names, checks), size=room)
        file.write(header, 0)
    except BaseException:
        file.abort()
        raise
    return file


def _layout(names: Sequence[str], sizes: Sequence[int], header: int) -> list[tuple[str, DType, tuple[int, ...]]]:
    entries = [(HEADER_NAME, header), *zip(names, sizes, strict=True)]
    return [(name, DTYPES["U8"], (size,)) for name, size in entries]


def _metadata(names: Sequence[str], checks: dict[str, list[int]], *, pad: bool = False) -> dict[str, str]:
    rows = {name.removeprefix(TENSOR_PREFIX): [checks["base"][i], checks["merged"][i]] for i, name in enumerate(names)}
    if pad:
        rows = {name: [0xFFFFFFFF, 0xFFFFFFFF] for name in rows}
    return {VERSION_KEY: VERSION, CHECKS_KEY: json.dumps(rows, separators=(",", ":"))}


@dataclass(frozen=True, slots=True)
class _Chunk:
    tensor: int
    data: bytes
    base_crc: int
    merged_crc: int


def _compressed(pool: ThreadPoolExecutor, changed: Sequence[Changed], threads: int) -> Iterator[_Chunk]:
    """Every chunk of every tensor, in order; a few are compressed ahead."""
    ahead: deque[Future[_Chunk]] = deque()
    for number, entry in enumerate(changed):
        for start, stop in chunk_spans(entry.info.numel):
            ahead.append(pool.submit(_compress, number, entry, start, stop))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _compress(number: int, entry: Changed, start: int, stop: int) -> _Chunk:
    size = entry.info.dtype.itemsize
    base, merged = bytearray((stop - start) * size), bytearray((stop - start) * size)
    entry.base.read_into(entry.info, memoryview(base), start * size)
    positional.read_into(entry.descriptor, memoryview(merged), entry.offset + start * size)
    data = encode(base, merged, size)
    return _Chunk(number, data, _crc(base, start), _crc(merged, start))


def _crc(data: bytes | bytearray, start: int) -> int:
    """The checksum of one chunk; a tensor's is the exclusive or of its chunks', so order does not matter."""
    return zlib.crc32(data, zlib.crc32(struct.pack("<Q", start)))


def chunk_spans(count: int) -> list[tuple[int, int]]:
    """First and last element of each chunk of a tensor of `count` elements."""
    return [(start, min(start + CHUNK_ELEMENTS, count)) for start in range(0, count, CHUNK_ELEMENTS)]


def encode(base: bytearray, merged: bytearray, itemsize: int) -> bytes:
    """What has to be added to the integers in `merged` to get those in `base`."""
    import torch

    kind = _integer(itemsize)
    difference = torch.frombuffer(base, dtype=kind) - torch.frombuffer(merged, dtype=kind)
    zigzag = (difference << 1) ^ (difference >> (8 * itemsize - 1))
    planes = bytearray(len(base))
    view = torch.frombuffer(planes, dtype=torch.uint8).view(itemsize, -1)
    view.copy_(zigzag.view(torch.uint8).view(-1, itemsize).T)
    count = len(base) // itemsize
    parts = (_deflate(memoryview(planes)[i * count : (i + 1) * count], lowest=i == 0) for i in range(itemsize))
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def decode(data: Iterable[memoryview], merged: torch.Tensor, itemsize: int) -> None:
    """Add a chunk's differences, given as its deflated planes, to `merged`, integers of `itemsize` bytes, in place."""
    import torch

    planes = [_inflate(part, merged.numel()) for part in data]
    stacked = torch.stack([torch.frombuffer(bytearray(plane), dtype=torch.uint8) for plane in planes], 1)
    zigzag = stacked.contiguous().view(-1).view(_integer(itemsize))
    # The sign bit must not be dragged along by the shift, as it would be for a signed integer.
    magnitude = (zigzag >> 1) & ((1 << (8 * itemsize - 1)) - 1)
    merged.add_(magnitude ^ -(zigzag & 1))


def _inflate(data: memoryview, length: int) -> bytes:
    """Decompress to exactly `length` bytes; a hostile file could ask for terabytes."""
    try:
        plane = zlib.decompressobj().decompress(data, length + 1)
    except zlib.error:
        plane = b""
    if len(plane) != length:
        raise SdkitError("the undo file is damaged: a chunk has the wrong length", "only the untouched file can undo")
    return plane


def _integer(itemsize: int) -> torch.dtype:
    import torch

    return {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[itemsize]


def _deflate(data: memoryview, *, lowest: bool) -> bytes:
    strategy = zlib.Z_HUFFMAN_ONLY if lowest else zlib.Z_RLE
    compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return compressor.compress(data) + compressor.flush()


@dataclass(frozen=True, slots=True)
class Restored:
    """The base's tensor: the merged one plus its correction. Checked against the base's checksum at the end."""

    merged: Weights
    info: TensorInfo
    undo: Weights
    checks: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """The merged tensor's."""
        return self.info.shape

    @property
    def unit(self) -> int:
        """A chunk."""
        return CHUNK_ELEMENTS

    def bind(self, context: Context) -> TileFunction:
        """Load the compressed correction and undo chunk by chunk, in order."""
        size, stored = self.info.dtype.itemsize, torch_dtype(self.info.dtype)
        chunks = self._chunks()
        crcs = [0, 0]

        def tile(start: int, stop: int) -> torch.Tensor:
            block = context.scratch.take(stop - start, stored)
            self.merged.read_into(self.info, block.memory, start * size)
            for low, high in chunk_spans(stop - start):
                memory = block.memory[low * size : high * size]
                crcs[1] ^= _crc(bytes(memory), start + low)
                decode(next(chunks), block.tensor[low:high].view(_integer(size)), size)
                crcs[0] ^= _crc(bytes(memory), start + low)
            if stop == self.info.numel and tuple(crcs) != self.checks:
                raise self._mismatch(crcs[1] != self.checks[1])
            return block.tensor

        return tile

    def _mismatch(self, merged_changed: bool) -> SdkitError:
        if merged_changed:
            return SdkitError(
                f"{self.info.name}: is not what the merge wrote, so the undo file does not fit",
                "use the undo file with the merged file it was made for",
            )
        return SdkitError(f"{self.undo.path}: the correction of {self.info.name} is damaged")

    def _chunks(self) -> Iterator[list[memoryview]]:
        data = memoryview(self.undo.read(self.undo.tensors[TENSOR_PREFIX + self.info.name]))
        position = 0
        for _ in chunk_spans(self.info.numel):
            planes = []
            for _ in range(self.info.dtype.itemsize):
                if position + _LENGTH.size > len(data):
                    raise SdkitError(f"{self.undo.path}: the correction of {self.info.name} is cut short")
                (length,) = _LENGTH.unpack_from(data, position)
                position += _LENGTH.size
                planes.append(data[position : position + length])
                position += length
            yield planes


def restored_outputs(merged: Weights, undo: Weights) -> tuple[list[Output], bytes]:
    """The tensors of the base, in its order, and its header.

    Raises:
        SdkitError: `undo` is no undo file, or belongs to another merged file.
    """
    if undo.metadata.get(VERSION_KEY) != VERSION or HEADER_NAME not in undo.tensors:
        raise SdkitError(f"{undo.path}: is no undo file", "give the file that `sdkit merge --undo FILE` wrote")
    checks = _checks(undo)
    names = [name.removeprefix(TENSOR_PREFIX) for name in undo.tensors if name.startswith(TENSOR_PREFIX)]
    missing = [name for name in names if name not in merged.tensors or name not in checks]
    if missing:
        raise SdkitError(
            f"{merged.path}: has no tensor {missing[0]}, so the undo file does not fit",
            "use the undo file with the merged file it was made for",
        )
    changed = set(names)
    outputs = []
    for info in merged.tensors.values():
        base = Restored(merged, info, undo, checks[info.name]) if info.name in changed else Read(merged, info)
        outputs.append(Output(info.name, info.dtype, base))
    return outputs, _base_header(merged, undo)


def _checks(undo: Weights) -> dict[str, tuple[int, int]]:
    """Tensor's name → checksums of the base's and the merged one's bytes."""
    try:
        rows = json.loads(undo.metadata.get(CHECKS_KEY, "{}"))
        return {str(name): (int(base), int(merged)) for name, (base, merged) in rows.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise DamagedFileError(undo.path, "its checksums cannot be read") from None


def _base_header(merged: Weights, undo: Weights) -> bytes:
    """The base's header, which must describe tensors that lie as the merged file's do."""
    header = undo.read(undo.tensors[HEADER_NAME])
    try:
        fields = json.loads(header[LENGTH_BYTES:])
        fields.pop("__metadata__", None)
    except (ValueError, AttributeError, TypeError, RecursionError):
        fields = None
    wanted, begin = {}, 0
    for info in merged.tensors.values():
        place = [begin, begin + info.nbytes]
        wanted[info.name] = {"dtype": info.dtype.name, "shape": list(info.shape), "data_offsets": place}
        begin += info.nbytes
    if fields != wanted or header[:LENGTH_BYTES] != struct.pack("<Q", len(header) - LENGTH_BYTES):
        raise DamagedFileError(undo.path, "its header is not that of the merged file's base")
    return header
