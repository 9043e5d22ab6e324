"""Which elements a tile holds, and random numbers that belong to them and to nothing else."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch

BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Where:
    """A tile's place.

    Attributes:
        seed: of the whole merge.
        name: of the tensor.
        shape: of the tensor.
        start: index of the tile's first element within the tensor.
    """

    seed: int
    name: str
    shape: tuple[int, ...]
    start: int = 0

    @property
    def columns(self) -> int:
        """Elements of one row (of the first dimension)."""
        return max(1, math.prod(self.shape[1:]))

    def uniform(self, stream: int, like: torch.Tensor) -> torch.Tensor:
        """Numbers in [0, 1), one for each element of the tile `like`.

        They are drawn in blocks of fixed place, each from its own generator, so they depend on the seed, the tensor's
        name, the `stream` and the element alone: not on threads, nor on how the tensor was cut into tiles.
        """
        return self._draw(stream, like, normal=False)

    def normal(self, stream: int, like: torch.Tensor) -> torch.Tensor:
        """Numbers of the standard normal distribution, as `uniform`."""
        return self._draw(stream, like, normal=True)

    def _draw(self, stream: int, like: torch.Tensor, *, normal: bool) -> torch.Tensor:
        import torch

        stop = self.start + like.numel()
        first, last = self.start // BLOCK, -(-stop // BLOCK)
        drawn = torch.empty(last - first, BLOCK)
        for block, numbers in enumerate(drawn.numpy(), first):
            generator = self._generator(stream, block)
            draw = generator.standard_normal if normal else generator.random
            draw(dtype=numbers.dtype, out=numbers)
        return drawn.view(-1)[self.start - first * BLOCK : stop - first * BLOCK].view(like.shape)

    def _generator(self, stream: int, block: int) -> numpy.random.Generator:
        """SFC64, which takes two thirds of the time of torch's Mersenne twister."""
        import numpy

        key = hashlib.sha256(f"{self.seed}/{self.name}/{stream}/{block}".encode()).digest()
        return numpy.random.Generator(numpy.random.SFC64(int.from_bytes(key[:16], "little")))
