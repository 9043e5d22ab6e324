"""Whether a model and the one made again are the same, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sdkit.weights import TensorInfo, Weights, open_weights

_PIECE_BYTES = 8 << 20


def compare(one: Path, other: Path) -> tuple[list[str], bool]:
    """What differs between a model and the one made again: tensors, else files; and whether all bytes agree."""
    with open_weights(one) as first, open_weights(other) as second:
        if len(first.files) != len(second.files) or not all(map(_same_bytes, first.files, second.files)):
            names = list(dict.fromkeys([*first.tensors, *second.tensors]))
            return [name for name in names if not _same_tensor(name, first, second)], False
        files = [name for name in _files(other, second) if not _same_bytes(one / name, other / name)]
        return files, not files


def _files(folder: Path, weights: Weights) -> Iterator[str]:
    """What was written beside the weights of a folder; what others have laid there since is none of it."""
    for file in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if file.is_file() and file not in weights.files:
            yield file.relative_to(folder).as_posix()


def _same_bytes(one: Path, other: Path) -> bool:
    if not one.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with open(one, "rb") as first, open(other, "rb") as second:
        while piece := first.read(_PIECE_BYTES):
            if piece != second.read(_PIECE_BYTES):
                return False
    return True


def _same_tensor(name: str, first: Weights, second: Weights) -> bool:
    one, other = first.tensors.get(name), second.tensors.get(name)
    if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(a == b for a, b in zip(_pieces(first, one), _pieces(second, other), strict=True))


def _pieces(weights: Weights, info: TensorInfo) -> Iterator[bytes]:
    for start in range(0, info.nbytes, _PIECE_BYTES):
        piece = bytearray(min(_PIECE_BYTES, info.nbytes - start))
        weights.read_into(info, memoryview(piece), start)
        yield bytes(piece)
