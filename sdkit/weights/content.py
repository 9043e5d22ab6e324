"""The content id: a name for the tensors of a model, whatever its header says and in whatever order they lie.

    content1-HEX    HEX is the sha256 of one line for each tensor, sorted by name:
                    NAME, element type, shape as 4x320, sha256 of its bytes; divided by NUL, ended by LF

Editing metadata, or writing a file anew with another library, changes a file's sha256 and not its content id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdkit.core.hashing import BLOCK_BYTES, Span, digest_spans
from sdkit.core.progress import NoProgress, Progress
from sdkit.weights.header import TensorInfo
from sdkit.weights.reader import Container, Weights, open_weights

SAMPLES = 64
SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Content:
    """What reading a model whole gave.

    Attributes:
        content_id: names its tensors.
        sha256: of the file; None for a folder.
    """

    content_id: str
    sha256: str | None


def hash_content(path: Path | str, progress: Progress | None = None) -> Content:
    """Read a model once and compute its content id and its sha256. (A pickle is read twice: tensors, then the file.)

    Raises:
        SdkitError: it is no weight file.
        OSError: it cannot be read.
    """
    progress = progress or NoProgress()
    with open_weights(path) as weights:
        progress.start(f"hashing {weights.path.name}", sum(file.stat().st_size for file in weights.files))
        if weights.container is Container.PICKLE:
            lines = [_line(info, _tensor_hash(weights, info)) for info in weights.tensors.values()]
            return Content(_id(lines), digest_spans(weights.files[0], [Span()], progress).sha256[0])
        lines, digests = [], []
        for index, file in enumerate(weights.files):
            tensors = [info for info in weights.tensors.values() if info.file == index]
            found, digest = _hash_file(file, tensors, progress)
            lines += found
            digests.append(digest)
        return Content(_id(lines), digests[0] if weights.container is Container.SAFETENSORS else None)


def sample_id(weights: Weights) -> str:
    """Names the tensors by names, types, shapes and a few kilobytes of 64 of them: cheap evidence, and no proof."""
    tensors = [weights.tensors[name] for name in sorted(weights.tensors)]
    digest = hashlib.sha256("".join([_line(info, "") for info in tensors]).encode())
    filled = [info for info in tensors if 0 not in info.shape]
    for info in filled[:: max(1, -(-len(filled) // SAMPLES))]:
        length = min(SAMPLE_BYTES, info.nbytes)
        piece = bytearray(length)
        weights.read_into(info, memoryview(piece), (info.nbytes - length) // 2)
        digest.update(piece)
    return f"sample1-{digest.hexdigest()[:32]}"


def _hash_file(file: Path, tensors: Sequence[TensorInfo], progress: Progress) -> tuple[list[str], str]:
    """The lines of a safetensors file's tensors, and the file's sha256. The two are computed side by side."""
    whole, walker = hashlib.sha256(), _TensorWalker(tensors)
    position = 0
    with open(file, "rb", buffering=0) as stream, ThreadPoolExecutor(2) as pool:
        block, spare = memoryview(bytearray(BLOCK_BYTES)), memoryview(bytearray(BLOCK_BYTES))
        count = stream.readinto(block)
        while count:
            jobs = [pool.submit(whole.update, block[:count]), pool.submit(walker.update, block[:count], position)]
            next_count = stream.readinto(spare)
            for job in jobs:
                job.result()
            progress.advance(count)
            position += count
            block, spare, count = spare, block, next_count
    return walker.lines, whole.hexdigest()


class _TensorWalker:
    """Hashes tensor after tensor as blocks of their file come by."""

    def __init__(self, tensors: Iterable[TensorInfo]) -> None:
        every = list(tensors)
        nothing = hashlib.sha256().hexdigest()
        # Empty tensors lie nowhere, so no block would finish them.
        self.lines = [_line(info, nothing) for info in every if not info.nbytes]
        self._open = sorted((info for info in every if info.nbytes), key=lambda info: info.offset, reverse=True)
        self._digest = hashlib.sha256()

    def update(self, block: memoryview, position: int) -> None:
        """Take the bytes that lie at `position` of the file."""
        stop = position + len(block)
        while self._open and self._open[-1].offset < stop:
            info = self._open[-1]
            begin = max(info.offset - position, 0)
            end = min(info.offset + info.nbytes - position, len(block))
            self._digest.update(block[begin:end])
            if info.offset + info.nbytes > stop:
                return
            self._finish()

    def _finish(self) -> None:
        self.lines.append(_line(self._open.pop(), self._digest.hexdigest()))
        self._digest = hashlib.sha256()


def _tensor_hash(weights: Weights, info: TensorInfo) -> str:
    digest = hashlib.sha256()
    for start in range(0, info.nbytes, BLOCK_BYTES):
        piece = bytearray(min(BLOCK_BYTES, info.nbytes - start))
        weights.read_into(info, memoryview(piece), start)
        digest.update(piece)
    return digest.hexdigest()


def _line(info: TensorInfo, digest: str) -> str:
    return f"{info.name}\0{info.dtype.name}\0{_spelled(info.shape)}\0{digest}\n"


@lru_cache(maxsize=4096)
def _spelled(shape: tuple[int, ...]) -> str:
    """A shape as 4x320: a model has hundreds of tensors of a dozen shapes."""
    return "x".join(f"{size:d}" for size in shape)


def _id(lines: Iterable[str]) -> str:
    return f"content1-{hashlib.sha256(''.join(sorted(lines)).encode()).hexdigest()}"
