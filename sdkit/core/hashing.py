"""Hashes of files: several in one pass, and a quick id that reads a few hundred kilobytes of any size of file."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sdkit.core.progress import NoProgress, Progress

BLOCK_BYTES = 4 << 20

QUICK_PIECES = 128
QUICK_PIECE_BYTES = 4096
QUICK_HEAD_BYTES = 1 << 16  # of a file without a safetensors header
QUICK_MAX_HEADER_BYTES = 25_000_000


@dataclass(frozen=True, slots=True)
class Span:
    """Some bytes of a file: from `start` up to `stop`, or to the end. What lies past the end counts as nothing."""

    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class Digests:
    """What one pass over a file gave: its size, its CRC-32, and the sha256 of each span asked for, in hex."""

    size: int
    crc32: str
    sha256: tuple[str, ...]


Take = Callable[[memoryview, int], None]  # a block and its position in the file


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...


def digest_spans(path: Path | str, spans: Sequence[Span], progress: Progress | None = None) -> Digests:
    """Hash several spans of one file while reading it once."""
    hashes, crc = [hashlib.sha256() for _ in spans], _Crc32()

    def into(digest: _Hash, span: Span) -> Take:
        return lambda block, position: digest.update(overlap(block, position, span))

    takes = [into(digest, span) for digest, span in zip(hashes, spans, strict=True)]
    size = read_blocks(path, [lambda block, position: crc.update(block), *takes], progress or NoProgress())
    return Digests(size, f"{crc.value:08x}", tuple(digest.hexdigest() for digest in hashes))


def read_blocks(path: Path | str, takes: Sequence[Take], progress: Progress) -> int:
    """Read a file once and show every block of it to all of `takes`; returns its size in bytes.

    Each runs in its own thread (the hash functions let go of the interpreter), and the next block is read meanwhile, so
    that several hashes of a large file cost little more than one.

    Args:
        path: the file.
        takes: called with a block, which is theirs only until they return, and its position in the file.
        progress: told about the bytes read.
    """
    position = 0
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(len(takes)) as pool:
        block, spare = memoryview(bytearray(BLOCK_BYTES)), memoryview(bytearray(BLOCK_BYTES))
        count = file.readinto(block)
        while count:
            jobs = [pool.submit(take, block[:count], position) for take in takes]
            next_count = file.readinto(spare)
            for job in jobs:
                job.result()
            progress.advance(count)
            position += count
            block, spare, count = spare, block, next_count
    return position


class _Crc32:
    def __init__(self) -> None:
        self.value = 0

    def update(self, data: memoryview) -> None:
        self.value = zlib.crc32(data, self.value)


def overlap(block: memoryview, position: int, span: Span) -> memoryview:
    """The part of `block`, which lies at `position` in its file, that belongs to `span`."""
    start = max(span.start - position, 0)
    stop = len(block) if span.stop is None else max(span.stop - position, 0)
    return block[start:stop]


def quick_id(*paths: Path | str) -> str:
    """Name a model by content in milliseconds, whatever its size: for parents in metadata, not against tampering.

    The id is ``quick1-SIZE-HEX``: the size in bytes and the first 32 digits of a sha256 over the size (eight bytes,
    little-endian), the head (the safetensors length and header; the first 64 KiB of any other file), and 128 pieces of
    4096 bytes spread evenly from the end of the head to the end of the file. The scheme will not change under this
    name. Several files (shards, a folder of components) have one id, ``quick1-TOTAL-HEX`` with the sha256 over their
    sorted ids, which depends on neither their names nor their order.
    """
    ids = sorted(_quick_id(path) for path in paths)
    if len(ids) == 1:
        return ids[0]
    total = sum(int(one.split("-")[1]) for one in ids)
    return f"quick1-{total}-{hashlib.sha256(chr(10).join(ids).encode()).hexdigest()[:32]}"


def _quick_id(path: Path | str) -> str:
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        head = _head_bytes(file.read(8), size)
        digest = hashlib.sha256(struct.pack("<Q", size))
        file.seek(0)
        digest.update(file.read(head))
        last = max(size - QUICK_PIECE_BYTES, head)
        for index in range(QUICK_PIECES):
            file.seek(head + (last - head) * index // (QUICK_PIECES - 1))
            digest.update(file.read(QUICK_PIECE_BYTES))
    return f"quick1-{size}-{digest.hexdigest()[:32]}"


def _head_bytes(prefix: bytes, size: int) -> int:
    """Bytes of a safetensors length and header, when the first eight bytes can be such a length."""
    if len(prefix) == 8:
        (length,) = struct.unpack("<Q", prefix)
        if length <= QUICK_MAX_HEADER_BYTES and 8 + length <= size:
            return 8 + int(length)
    return min(QUICK_HEAD_BYTES, size)
