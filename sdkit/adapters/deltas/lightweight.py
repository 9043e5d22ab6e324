"""LiDB, Lightweight DreamBooth: a low-rank change within frozen orthogonal bases, of a few hundred numbers a layer.

ΔW = scale · (left @ up) @ (down @ right), with ``left`` [out, a] and ``right`` [b, in·k·k] orthonormal. Only ``up``
[a, rank] and ``down`` [rank, b] are trained and stored; the bases follow from a seed and the module's name.
HyperDreamBooth: arXiv:2307.06949.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from sdkit.adapters.deltas.factors import check_float, check_scale, factor_error, read_factor
from sdkit.adapters.deltas.low_rank import PreparedLowRank
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch

SCHEME = "philox-normal-qr-v1"  # names how bases follow from a seed; another way needs another name
GRID = 256  # bases are hashed in steps of 1 / GRID: processors round the last bits of a QR differently


@dataclass(frozen=True, slots=True)
class Basis:
    """The frozen bases of one weight, seen as a matrix.

    Attributes:
        seed: of the adapter.
        module: hub name of the weight's module, so that each layer has bases of its own.
        rows: of the weight.
        columns: of the weight, a kernel flattened into them.
        a: columns of ``left``, at most `rows`.
        b: rows of ``right``, at most `columns`.
    """

    seed: int
    module: str
    rows: int
    columns: int
    a: int
    b: int

    def left(self, dtype: torch.dtype) -> torch.Tensor:
        """[rows, a] with orthonormal columns."""
        return self._orthonormal("left", self.rows, self.a).to(dtype)

    def right(self, dtype: torch.dtype) -> torch.Tensor:
        """[b, columns] with orthonormal rows."""
        return self._orthonormal("right", self.columns, self.b).t().contiguous().to(dtype)

    def _orthonormal(self, side: str, height: int, width: int) -> torch.Tensor:
        """Haar-distributed: the Q of normal numbers, signed so that R's diagonal is positive. Float64 on the CPU."""
        import numpy as np
        import torch

        name = "\0".join([SCHEME, str(self.seed), self.module, side])
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
        normal = np.random.Generator(np.random.Philox(key=key)).standard_normal((height, width))
        q, r = np.linalg.qr(normal)
        return torch.from_numpy(q * np.where(np.diagonal(r) < 0, -1.0, 1.0))


def bases_digest(bases: Iterable[Basis]) -> str:
    """SHA-256 of bases, by which a file says which ones its factors belong to.

    It is of their numbers in steps of 1/256: the same on every processor, and another for any other basis.
    """
    return _digest(tuple(sorted(bases, key=lambda basis: basis.module)))


@cache
def _digest(bases: tuple[Basis, ...]) -> str:
    import torch

    digest = hashlib.sha256()
    for basis in bases:
        for side in (basis.left(torch.float64), basis.right(torch.float64)):
            digest.update((side * GRID).round().to(torch.int16).numpy().astype("<i2").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Lightweight:
    """ΔW = scale · (left @ up) @ (down @ right), its factors still in their file.

    Attributes:
        up: [a, rank].
        down: [rank, b].
        basis: what ``left`` and ``right`` are.
        scale: alpha / rank.

    Raises:
        SdkitError: the shapes do not fit together, the factors are not floating-point, or the scale is no number.
    """

    up: Read
    down: Read
    basis: Basis
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_float(self.up, self.down)
        check_scale(self.down, self.scale)
        up, down = self.up.shape, self.down.shape
        if len(up) != 2 or len(down) != 2 or up[1] != down[0]:
            raise factor_error(self.up, f"up {list(up)} and down {list(down)} are no pair of LiDB's factors")
        if (up[0], down[1]) != (self.basis.a, self.basis.b):
            raise factor_error(self.up, f"up {list(up)} and down {list(down)} do not fit bases {self.basis}")

    @property
    def kind(self) -> str:
        """``lidb``."""
        return "lidb"

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in); a convolution's kernel stays flattened into the columns."""
        return (self.basis.rows, self.basis.columns)

    @property
    def rank(self) -> int:
        """Rank of the change."""
        return self.up.shape[1]

    def factors(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The same change as a LoRA's factors, exactly: ``left @ up`` [out, rank] and ``down @ right`` [rank, columns].

        Raises:
            SdkitError: a factor holds NaN or infinity.
        """
        import torch

        double = torch.float64
        up = self.basis.left(double) @ read_factor(self.up, double)
        down = read_factor(self.down, double) @ self.basis.right(double)
        return up.to(dtype), down.to(dtype)

    def prepare(self, strength: float, dtype: torch.dtype) -> PreparedLowRank:
        """Read the factors, and fold the bases, `strength` and the scale in.

        Raises:
            SdkitError: a factor holds NaN or infinity.
        """
        up, down = self.factors(dtype)
        return PreparedLowRank(up.mul_(self.scale * strength), down)
