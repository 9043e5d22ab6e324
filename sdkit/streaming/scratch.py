"""Memory a worker uses again for every tile: a page touched for the first time is slow, and fresh ones add up."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Block(NamedTuple):
    """One piece of scratch memory, as a flat tensor and as the bytes below it."""

    tensor: torch.Tensor
    memory: memoryview


class Scratch:
    """Hands out blocks in the order they are asked for and takes them all back at once.

    The evaluation of one expression asks for the same sizes tile after tile, so after the first tile no memory is
    allocated any more.
    """

    def __init__(self) -> None:
        self._blocks: list[mmap.mmap] = []
        self._used = 0

    def take(self, count: int, dtype: torch.dtype) -> Block:
        """A block of `count` elements; its content is arbitrary."""
        import torch

        size = max(1, count * dtype.itemsize)
        block = self._next(size)
        tensor = torch.frombuffer(block, dtype=torch.uint8, count=size)[: count * dtype.itemsize].view(dtype)
        return Block(tensor, memoryview(block)[: count * dtype.itemsize])

    def _next(self, size: int) -> mmap.mmap:
        if self._used == len(self._blocks):
            self._blocks.append(mmap.mmap(-1, size))
        elif len(self._blocks[self._used]) < size:
            self._blocks[self._used] = mmap.mmap(-1, size)
        self._used += 1
        return self._blocks[self._used - 1]

    def mark(self) -> int:
        """A point to `release` to."""
        return self._used

    def release(self, mark: int = 0) -> None:
        """Take back every block handed out since `mark`."""
        self._used = mark
