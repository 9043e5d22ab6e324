"""The content id: a name for the tensors of a model, whatever its header says and in whatever order they lie.

    content1-HEX    HEX is the sha256 of one line for each tensor, sorted by name:
                    NAME, element type, shape as 4x320, sha256 of its bytes; divided by NUL, ended by LF

Editing metadata, or writing a file anew with another library, changes a file's sha256 and not its content id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdkit.core.hashing import BLOCK_BYTES, Span, digest_spans, overlap, read_blocks
from sdkit.core.progress import NoProgress, Progress
from sdkit.weights.header import TensorInfo, read_header
from sdkit.weights.reader import Container, Weights, open_weights

SAMPLES = 64
SAMPLE_BYTES = 4096


# Takes the bytes of tensors one after the other in pieces, and whether a piece is the tensor's last.
Take = Callable[[TensorInfo, memoryview, bool], None]


@dataclass(frozen=True, slots=True)
class Content:
    """What reading a model whole gave.

    Attributes:
        content_id: names its tensors.
        sha256: of the file; None for a folder.
        data_sha256: of a safetensors file behind its header; None for others, and where it was not asked for.
    """

    content_id: str
    sha256: str | None
    data_sha256: str | None = None


def hash_content(
    path: Path | str, progress: Progress | None = None, *, look: Take | None = None, data: bool = False
) -> Content:
    """Read a model once and compute its content id and its sha256. (A pickle is read twice: tensors, then the file.)

    Args:
        path: a file or folder.
        progress: told about the bytes read.
        look: told the bytes of every tensor as they come by, in another thread.
        data: also hash a safetensors file's bytes behind the header.

    Raises:
        SdkitError: it is no weight file.
        OSError: it cannot be read.
    """
    progress = progress or NoProgress()
    with open_weights(path) as weights:
        progress.start(f"hashing {weights.path.name}", sum(file.stat().st_size for file in weights.files))
        lines = _Lines()
        takers = (lines.take, look) if look is not None else (lines.take,)
        if weights.container is Container.PICKLE:
            for info in weights.tensors.values():
                _hand_over(weights, info, takers)
            return Content(lines.id, digest_spans(weights.files[0], [Span()], progress).sha256[0])
        is_one = weights.container is Container.SAFETENSORS
        span = Span(read_header(weights.path).data_start) if data and is_one else None
        digests = []
        for index, file in enumerate(weights.files):
            tensors = [info for info in weights.tensors.values() if info.file == index]
            walks = [_TensorWalker(tensors, take) for take in takers]
            digests.append(_hash_file(file, walks, span, progress))
        return Content(lines.id, *digests[0]) if is_one else Content(lines.id, None)


def sample_id(weights: Weights) -> str:
    """Names the tensors by names, types, shapes and a few kilobytes of 64 of them: cheap evidence, and no proof."""
    tensors = sorted(weights.tensors.values(), key=lambda info: info.name)
    digest = hashlib.sha256("".join(_line(info, "") for info in tensors).encode())
    filled = [info for info in tensors if 0 not in info.shape]
    for info in filled[:: max(1, -(-len(filled) // SAMPLES))]:
        length = min(SAMPLE_BYTES, info.nbytes)
        piece = bytearray(length)
        weights.read_into(info, memoryview(piece), (info.nbytes - length) // 2)
        digest.update(piece)
    return f"sample1-{digest.hexdigest()[:32]}"


def _hash_file(
    file: Path, walks: Sequence[_TensorWalker], span: Span | None, progress: Progress
) -> tuple[str, str | None]:
    """A file's sha256 and that of a span of it, its blocks shown to `walks`. All are computed side by side."""
    whole, part = hashlib.sha256(), hashlib.sha256()
    takes = [lambda block, position: whole.update(block), *(walk.update for walk in walks)]
    if span is not None:
        takes.append(lambda block, position: part.update(overlap(block, position, span)))
    read_blocks(file, takes, progress)
    return whole.hexdigest(), part.hexdigest() if span is not None else None


class _TensorWalker:
    """Hands tensor after tensor over as blocks of their file come by."""

    def __init__(self, tensors: Iterable[TensorInfo], take: Take) -> None:
        every = list(tensors)
        self._take = take
        for info in every:
            if not info.nbytes:  # it lies nowhere, so no block would finish it
                take(info, memoryview(b""), True)
        self._open = sorted((info for info in every if info.nbytes), key=lambda info: info.offset, reverse=True)

    def update(self, block: memoryview, position: int) -> None:
        """Take the bytes that lie at `position` of the file."""
        stop = position + len(block)
        while self._open and self._open[-1].offset < stop:
            info = self._open[-1]
            begin = max(info.offset - position, 0)
            end = min(info.offset + info.nbytes - position, len(block))
            done = info.offset + info.nbytes <= stop
            self._take(info, block[begin:end], done)
            if not done:
                return
            self._open.pop()


class _Lines:
    """The lines of the content id."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._digest = hashlib.sha256()

    def take(self, info: TensorInfo, piece: memoryview, done: bool) -> None:
        self._digest.update(piece)
        if done:
            self._lines.append(_line(info, self._digest.hexdigest()))
            self._digest = hashlib.sha256()

    @property
    def id(self) -> str:
        return f"content1-{hashlib.sha256(''.join(sorted(self._lines)).encode()).hexdigest()}"


def _hand_over(weights: Weights, info: TensorInfo, takers: Iterable[Take]) -> None:
    """Read one tensor of a pickle in pieces."""
    for start in range(0, max(info.nbytes, 1), BLOCK_BYTES):
        piece = bytearray(min(BLOCK_BYTES, info.nbytes - start))
        weights.read_into(info, memoryview(piece), start)
        for take in takers:
            take(info, memoryview(piece), start + len(piece) >= info.nbytes)


def _line(info: TensorInfo, digest: str) -> str:
    return f"{info.name}\0{info.dtype.name}\0{_spelled(info.shape)}\0{digest}\n"


@lru_cache(maxsize=4096)
def _spelled(shape: tuple[int, ...]) -> str:
    """A shape as 4x320: a model has hundreds of tensors of a dozen shapes."""
    return "x".join(f"{size:d}" for size in shape)
