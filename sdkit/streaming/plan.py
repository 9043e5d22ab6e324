"""What will be written: every output tensor with its expression, known before the first byte moves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdkit.streaming.expression import Cat, Expression, Read
from sdkit.streaming.rounding import Rounding
from sdkit.weights import DType, Weights


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor to write."""

    name: str
    dtype: DType
    expression: Expression
    rounding: Rounding = field(default_factory=Rounding)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return self.expression.shape

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return self.dtype.nbytes(math.prod(self.shape))

    @property
    def copied(self) -> Read | None:
        """The tensor whose bytes are simply copied, when that is all there is to do."""
        source = self.expression
        return source if isinstance(source, Read) and self._is_copy_of(source) else None

    @property
    def pieces(self) -> tuple[Read, ...]:
        """The tensors whose bytes, one behind the other, are this one's; empty where something must be computed.

        They are taken for such only where all of them lie in files: what lies in memory has no bytes that a system
        call could copy. (An empty tensor needs none.)
        """
        read = self.copied
        if read is not None:
            return (read,) if read.weights.files or not read.info.nbytes else ()
        if not isinstance(self.expression, Cat):
            return ()
        reads = tuple(read for read in self.expression.sources if isinstance(read, Read))
        whole = len(reads) == len(self.expression.sources)
        return reads if whole and all(read.weights.files and self._is_copy_of(read) for read in reads) else ()

    def _is_copy_of(self, read: Read) -> bool:
        return read.dtype == self.dtype and read.info.strides is None


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One safetensors file to write.

    Attributes:
        path: its final name.
        tensors: in file order.
        metadata: the header's ``__metadata__``.
        header: the exact header, when a file is to be restored byte for byte; see `SafetensorsWriter`.
    """

    path: Path
    tensors: tuple[Output, ...]
    metadata: Mapping[str, str]
    header: bytes | None = None

    def layout(self) -> list[tuple[str, DType, tuple[int, ...]]]:
        """Name, type and shape of each tensor."""
        return [(output.name, output.dtype, output.shape) for output in self.tensors]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(output.nbytes for output in self.tensors)


@dataclass(frozen=True, slots=True)
class CopyRun:
    """Bytes that go from one file to another unchanged."""

    weights: Weights
    file: int
    source: int
    target: int
    length: int


def copy_runs(file: OutputFile, offsets: Mapping[str, int], piece: int) -> Iterator[CopyRun]:
    """The unchanged tensors of `file`, neighbours joined into long runs, runs cut into pieces of at most `piece` bytes.

    Args:
        file: what is written.
        offsets: where each tensor begins in the written file.
        piece: bytes; small enough that threads share the work evenly.
    """
    run: CopyRun | None = None
    for output in file.tensors:
        target = offsets[output.name]
        for read in output.pieces:
            if not read.info.nbytes:
                continue
            here = CopyRun(read.weights, read.info.file, read.info.offset, target, read.info.nbytes)
            target += here.length
            if run is not None and _follows(run, here):
                run = CopyRun(run.weights, run.file, run.source, run.target, run.length + here.length)
                continue
            if run is not None:
                yield from _pieces(run, piece)
            run = here
    if run is not None:
        yield from _pieces(run, piece)


def _follows(run: CopyRun, here: CopyRun) -> bool:
    return (
        here.weights is run.weights
        and here.file == run.file
        and here.source == run.source + run.length
        and here.target == run.target + run.length
    )


def _pieces(run: CopyRun, piece: int) -> Iterator[CopyRun]:
    for done in range(0, run.length, piece):
        length = min(piece, run.length - done)
        yield CopyRun(run.weights, run.file, run.source + done, run.target + done, length)
