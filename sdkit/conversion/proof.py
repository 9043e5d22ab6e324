"""The proof of a conversion: what was written is opened anew, recognised by its names, and compared with the source.

The comparison goes by parameter, not by tensor: each parameter is found in the written file by the family's rules, as
any reader would find it, and its numbers must be those of the source. So a wrong name, a wrong order of fused rows or a
forgotten transposition cannot pass. It reads both sides once more, in small pieces, a parameter per thread.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdkit.conversion.checkpoint import Checkpoint, Located
from sdkit.conversion.plan import Plan, PlannedFile, target_file
from sdkit.core.errors import SdkitError
from sdkit.families import identify
from sdkit.families.family import Place
from sdkit.families.spell import spellings
from sdkit.streaming.engine import default_threads
from sdkit.streaming.expression import Read, torch_dtype
from sdkit.streaming.quantised import quantisation_scale
from sdkit.weights import DType, Weights, open_weights
from sdkit.weights.reader import open_file

_PIECE_ELEMENTS = 1 << 20
Piece = bytearray


@dataclass(frozen=True, slots=True)
class Proof:
    """What reading back has shown.

    Attributes:
        parameters: how many were compared by name.
        tensors: how many others: kept, laid beside, position ids.
        exact: whether every number is the source's; False where a coarser type rounded some, each to the nearest.
        sha256: of all parameters' names and sha256, as they were read back: equal for two models of equal weights,
            whatever their layout.
        seconds: wall time it took.
    """

    parameters: int
    tensors: int
    exact: bool
    sha256: str
    seconds: float


def prove(
    checkpoint: Checkpoint, plan: Plan, path: Path, advance: Callable[[int], None], *, threads: int | None = None
) -> Proof:
    """Compare what was written at `path` with the source.

    Raises:
        SdkitError: something differs; it is named.
    """
    began, digest, exact = time.perf_counter(), hashlib.sha256(), True
    hubs = sorted(checkpoint.located)
    with open_weights(path) as written, ThreadPoolExecutor(threads or default_threads()) as pool:
        compare = _Compare(checkpoint, written, identify(written).places, len(plan.parts) == 1, advance)
        try:
            for hub, (same, content) in zip(hubs, pool.map(compare, hubs), strict=True):
                digest.update(hub.encode() + b"\0" + content)
                exact &= same
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    others = sum(_compare_others(plan, file, path, advance) for file in plan.files)
    return Proof(len(hubs), others, exact, digest.hexdigest(), time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class _Compare:
    """The comparison of one parameter, by its hub name: whether its numbers are the source's, and their sha256."""

    checkpoint: Checkpoint
    written: Weights
    places: Mapping[str, Place]
    alone: bool
    advance: Callable[[int], None]

    def __call__(self, hub: str) -> tuple[bool, bytes]:
        source = self.checkpoint.located[hub]
        place = self.places.get(hub) or (_alone(self.places, hub) if self.alone else None)
        if place is None or place.shape != source.place.shape:
            raise _differs(self.written.path, hub)
        found, content = Located(self.written, place), hashlib.sha256()
        scale = quantisation_scale(source.weights, source.place.key)
        halved = source.place.swapped or place.swapped
        before, after = (_pieces(side, halved=halved) for side in (source, found))
        where = _Where(self.written.path, hub, content.update, scale)
        same = _compare(before, after, _type(source), _type(found), where)
        self.advance(_type(found).nbytes(math.prod(place.shape)))
        return same, content.digest()


def _differs(path: Path, name: str) -> SdkitError:
    return SdkitError(
        f"{path}: {name} does not read back as it was written; the output is removed", "please report this"
    )


@dataclass(frozen=True, slots=True)
class _Where:
    """What is being compared, for messages, what takes its bytes, and what the source's numbers are multiplied with."""

    path: Path
    name: str
    update: Callable[[Piece], None]
    scale: float = 1.0


def _alone(places: Mapping[str, Place], hub: str) -> Place | None:
    """A component in a file of its own cannot say which of several it is."""
    components = {name.partition(".")[0] for name in places}
    return places.get(f"{components.pop()}.{hub.partition('.')[2]}") if len(components) == 1 else None


def _compare(before: Iterator[Piece], after: Iterator[Piece], was: DType, now: DType, where: _Where) -> bool:
    """Whether every number is exactly what it was; an error where one is not even its rounding."""
    exact = True
    for one, other in zip(before, after, strict=True):
        where.update(other)
        if was != now:
            exact &= _is_exact(one, other, was, now, where)
        elif one != other:
            raise _differs(where.path, where.name)
    return exact


def _is_exact(before: Piece, after: Piece, was: DType, now: DType, where: _Where) -> bool:
    import torch

    one = torch.frombuffer(before, dtype=torch_dtype(was))
    other = torch.frombuffer(after, dtype=torch_dtype(now))
    wide = torch.float64 if now.name == "F64" else torch.float32
    rounded = (one.to(wide) * where.scale).to(other.dtype)
    if not torch.equal(rounded.double(), other.double()):
        raise _differs(where.path, where.name)
    return torch.equal(one.double() * where.scale, other.double())


def _type(where: Located) -> DType:
    return where.weights.tensors[where.place.key].dtype


def _pieces(where: Located, *, halved: bool) -> Iterator[Piece]:
    """The bytes of a parameter in its own row-major order, piece by piece.

    Args:
        halved: whether no piece may cross the middle, because one side of the comparison has the halves swapped.
    """
    info, shape = where.weights.tensors[where.place.key], where.place.shape
    if where.place.transposed:
        matrix = Read(where.weights, info).load().T.contiguous()
        whole, size = bytearray(matrix.flatten().view(_uint8()).numpy()), info.dtype.nbytes(_PIECE_ELEMENTS)
        yield from (whole[start : start + size] for start in range(0, len(whole), size))
        return
    first, half = where.place.rows[0] * math.prod(shape[1:]) if where.place.rows else 0, math.prod(shape) // 2
    spans = [(first, math.prod(shape))]
    if halved:
        spans = [(half, half), (0, half)] if where.place.swapped else [(0, half), (half, half)]
    for start, count in spans:
        yield from _stretch(Read(where.weights, info), start, count)


def _stretch(read: Read, first: int, count: int) -> Iterator[Piece]:
    """Elements from `first` on, piece by piece; pieces of one length lie in the same memory, one after the other."""
    data = bytearray()
    for start in range(0, count, _PIECE_ELEMENTS):
        size = read.dtype.nbytes(min(_PIECE_ELEMENTS, count - start))
        data = data if len(data) == size else bytearray(size)
        read.weights.read_into(read.info, memoryview(data), read.dtype.nbytes(first + start))
        yield data


def _uint8() -> Any:
    import torch

    return torch.uint8


def _compare_others(plan: Plan, file: PlannedFile, path: Path, advance: Callable[[int], None]) -> int:
    """Compare the tensors of a file that are no parameters; how many there are."""
    keys = {spelling.key for spelling in spellings(plan.parts)}
    others = [output for output in file.tensors if file.prefix + output.name not in keys]
    with open_file(target_file(path, file)) as written:
        for output in others:
            source, info = output.expression, written.tensors.get(output.name)
            assert isinstance(source, Read)  # nothing else is ever planned for what is no parameter
            if info is None or info.shape != source.shape:
                raise _differs(path, output.name)
            where = _Where(path, output.name, lambda data: None)
            before = _stretch(source, 0, source.info.numel)
            _compare(before, _stretch(Read(written, info), 0, info.numel), source.dtype, info.dtype, where)
            advance(output.nbytes)
    return len(others)
