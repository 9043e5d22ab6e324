"""Which elements a tile holds, and random numbers that belong to them and to nothing else."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
        first = self.start // BLOCK
        blocks = [self._block(stream, block, normal) for block in range(first, -(-stop // BLOCK))]
        drawn = torch.cat(blocks)[self.start - first * BLOCK : stop - first * BLOCK]
        return drawn.view(like.shape)

    def _block(self, stream: int, block: int, normal: bool) -> torch.Tensor:
        import torch

        key = hashlib.sha256(f"{self.seed}/{self.name}/{stream}/{block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        sample = torch.randn if normal else torch.rand
        return sample(BLOCK, generator=generator)
