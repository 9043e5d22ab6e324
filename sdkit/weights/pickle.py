"""Pickled weights (``.ckpt``, ``.pt``, ``.bin``), read without executing anything that is in them.

A pickle is a program. This reader runs it on a machine of its own that knows no imports and no calls
(`pickle_machine`), finds where the tensors' bytes lie in the file, checks every such claim against the file, and hands
out the same `Weights` as a safetensors file gives, tensors read in place. It needs neither torch nor numpy, and it
reads genuine old checkpoints that ``torch.load(weights_only=True)`` refuses: Lightning's callbacks, ParameterDict,
numpy scalars.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sdkit.core.errors import SdkitError
from sdkit.weights.header import DamagedFileError, TensorInfo, _HeaderError
from sdkit.weights.pickle_names import name_tensors, plain_values
from sdkit.weights.pickle_records import PickleError, Tensor, UnsafeCallError
from sdkit.weights.reader import Container, Weights
from sdkit.weights.torch_contents import Contents
from sdkit.weights.torch_legacy import read_legacy
from sdkit.weights.torch_zip import read_zip

_TAR_MAGIC_AT = 257
_WORDS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}  # memoryview's formats, by size


class UnsafePickleError(SdkitError):
    """The file asks for a call that no model file needs. The call was not made.

    Attributes:
        path: the file.
        call: the dotted name of what it would call.
    """

    def __init__(self, path: Path | str, reason: str, call: str) -> None:
        hint = "nothing in it was run; get the model as .safetensors, or from somebody you trust"
        super().__init__(f"{path}: unsafe pickle: {reason}", hint)
        self.path = Path(path)
        self.call = call


class PickleWeights(Weights):
    """The tensors of a pickled file.

    Attributes:
        left_out: how many tensors of the file have no name here, because they are no part of the model (a trainer's
            optimizer state, what a placeholder object keeps to itself).
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, TensorInfo], extra: Mapping[str, Any], left_out: int = 0
    ) -> None:
        facts = {name: str(value) for name, value in extra.items() if isinstance(value, (str, int, float))}
        super().__init__(path, Container.PICKLE, [path], tensors, facts, extra=extra)
        self.left_out = left_out
        self._gathered: tuple[str, bytearray] = ("", bytearray())

    def read_into(self, info: TensorInfo, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the bytes of a tensor in row-major order, beginning at its byte `start`.

        A transposed tensor is read whole and put in order first; the last one is kept, for the next tile of it.

        Raises:
            DamagedFileError: the file has become shorter since it was opened.
        """
        if info.strides is None:
            super().read_into(info, buffer, start)
            return
        name, data = self._gathered
        if name != info.name:
            data = self._gather(info, info.strides)
            self._gathered = (info.name, data)  # one assignment, so that threads see a matching pair
        buffer[:] = memoryview(data)[start : start + len(buffer)]

    def _gather(self, info: TensorInfo, strides: tuple[int, ...]) -> bytearray:
        last = sum((size - 1) * stride for size, stride in zip(info.shape, strides, strict=True))
        stored = bytearray((last + 1) * info.dtype.itemsize)
        super().read_into(info, memoryview(stored))
        ordered = bytearray(info.nbytes)
        word = _WORDS[info.dtype.itemsize]
        with memoryview(stored).cast(word) as source, memoryview(ordered).cast(word) as target:
            _copy_strided(source, target, info.shape, strides)
        return ordered


def open_pickle(path: Path | str) -> PickleWeights:
    """Open a file that ``torch.save`` wrote, in either of its two formats.

    Raises:
        UnsafePickleError: the pickle in it would run code if it were loaded the usual way.
        DamagedFileError: it is damaged, deceptive, or holds no tensors.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    try:
        return _weights(path, _read(path))
    except UnsafeCallError as error:
        raise UnsafePickleError(path, str(error), error.call) from None
    except (PickleError, _HeaderError) as error:
        raise DamagedFileError(path, str(error)) from None


def _read(path: Path) -> Contents:
    with open(path, "rb") as file:
        start = file.read(_TAR_MAGIC_AT + 5)
        file.seek(0)
        if start.startswith(b"PK\3\4"):
            return read_zip(file)
        if start[_TAR_MAGIC_AT:] == b"ustar":
            raise PickleError("it is a tar archive of torch before 0.1.10; load and save it with torch once")
        return read_legacy(file)


def _weights(path: Path, contents: Contents) -> PickleWeights:
    named = name_tensors(contents.root)
    if not named:
        raise PickleError("it holds no tensors")
    infos = sorted((_info(name, tensor, contents) for name, tensor in named.items()), key=lambda info: info.offset)
    left_out = len(contents.tensors - set(named.values()))
    return PickleWeights(path, {info.name: info for info in infos}, plain_values(contents.root), left_out)


def _info(name: str, tensor: Tensor, contents: Contents) -> TensorInfo:
    storage = tensor.storage
    offset = contents.places[storage.key].offset + storage.start * storage.itemsize
    return TensorInfo(
        name, tensor.dtype, tensor.shape, offset + tensor.offset * tensor.dtype.itemsize, strides=tensor.strides
    )


def _copy_strided(source: memoryview, target: memoryview, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """Copy the elements of a strided tensor to row-major order, one slice along its longest dimension at a time."""
    steps = [1] * len(shape)
    for axis in range(len(shape) - 1, 0, -1):
        steps[axis - 1] = steps[axis] * shape[axis]
    longest = max(range(len(shape)), key=shape.__getitem__)
    length, stride, step = shape[longest], strides[longest], steps[longest]
    others = [axis for axis in range(len(shape)) if axis != longest]
    for index in itertools.product(*(range(shape[axis]) for axis in others)):
        begin = sum(i * strides[axis] for i, axis in zip(index, others, strict=True))
        place = sum(i * steps[axis] for i, axis in zip(index, others, strict=True))
        if stride:
            line = source[begin : begin + (length - 1) * stride + 1 : stride]
            target[place : place + (length - 1) * step + 1 : step] = line
        else:  # an expanded dimension repeats one element
            for item in range(length):
                target[place + item * step] = source[begin]
