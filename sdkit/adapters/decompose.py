"""Singular values of weight changes: of products through their small cores, of dense matrices by subspace iteration.

ΔW = up @ down has rank r at most. With up = Q₁R₁ and downᵀ = Q₂R₂ its singular values are those of the r×r core
R₁R₂ᵀ, exactly, for a hundredth of the work of decomposing ΔW itself.

A dense difference of two checkpoints has no such factors. Its leading singular vectors are found by block power
iteration with the captured energy measured at every step (Halko, Martinsson, Tropp: arXiv:0909.4061, algorithm 4.4).
The energy of the whole is known, hence the true error of what is kept, whether or not the iteration has converged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sdkit.adapters.ranks import RankRule

if TYPE_CHECKING:
    import torch

# Up to this many rows or columns a matrix is decomposed exactly: the eigenvectors of its Gram matrix cost milliseconds.
EXACT_SIZE = 384
OVERSAMPLING = 16
MAX_ITERATIONS = 12
# The iteration ends when a step finds less than this share of the energy that is captured already.
GAIN = 5e-3
# Least ratio of the diagonal of R for which Cholesky's is taken: 1e-16 / ratio² is about the relative error.
WELL_CONDITIONED = 1e-3


@dataclass(frozen=True, slots=True)
class Decomposition:
    """The leading singular triples of a change.

    Attributes:
        left: [rows, k], orthonormal columns as far as its type goes.
        values: [k] or more, falling, float64; those beyond k come without vectors.
        right: [k, columns], orthonormal rows.
        energy: sum of the squares of all singular values, also of those left out.
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor
    energy: float

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(up, down) of the best change of this rank; each has the root of the values, so neither gets tiny."""
        root = self.values[:rank].sqrt().to(self.left.dtype)
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]


class Cores:
    """The singular values of ``scale · up @ down``, in float64, and from them its best approximations.

    Args:
        up: [rows, r], float64 or float32; singular vectors come in the type of their factor.
        down: [r, columns], the same.
        scale: of the product.
    """

    def __init__(self, up: torch.Tensor, down: torch.Tensor, scale: float = 1.0) -> None:
        import torch

        self._left, self._right = _orthogonal(up), _orthogonal(down.t())
        core = (self._left.upper @ self._right.upper.t()).mul_(scale)
        self._u, self.values, self._vt = torch.linalg.svd(core, full_matrices=False)
        self.energy = float(self.values.square().sum())

    def decomposition(self, rank: int) -> Decomposition:
        """The leading `rank` triples."""
        left = self._left.times(self._u[:, :rank])
        right = self._right.times(self._vt[:rank].t()).t()
        return Decomposition(left, self.values, right, self.energy)


class _Orthogonal(Protocol):
    """A matrix as Q @ R: orthonormal columns times an upper triangle."""

    @property
    def upper(self) -> torch.Tensor:
        """R."""
        ...

    def times(self, vectors: torch.Tensor) -> torch.Tensor:
        """Q @ vectors."""
        ...


def _orthogonal(matrix: torch.Tensor) -> _Orthogonal:
    """Q and R of a matrix: by Cholesky where its columns are far from dependent, for that is much faster."""
    import torch

    wide = matrix.double()
    if matrix.shape[0] >= matrix.shape[1]:
        upper, failed = torch.linalg.cholesky_ex(wide.t() @ wide, upper=True)
        diagonal = upper.diagonal()
        if not int(failed) and float(diagonal.min()) > WELL_CONDITIONED * float(diagonal.max()):
            return _ByCholesky(matrix, upper)
    return _ByHouseholder(torch.geqrf(wide), matrix.dtype)


@dataclass(frozen=True, slots=True)
class _ByCholesky:
    """MᵀM = RᵀR, Q = M R⁻¹. The relative error is that of float64 times the square of M's condition."""

    matrix: torch.Tensor
    upper: torch.Tensor

    def times(self, vectors: torch.Tensor) -> torch.Tensor:
        """Q @ vectors, without forming Q."""
        import torch

        turned = torch.linalg.solve_triangular(self.upper, vectors, upper=True)
        found: torch.Tensor = self.matrix @ turned.to(self.matrix.dtype)
        return found


@dataclass(frozen=True, slots=True)
class _ByHouseholder:
    """LAPACK's packed form, which any matrix has."""

    packed: torch.return_types.geqrf
    dtype: torch.dtype

    @property
    def upper(self) -> torch.Tensor:
        """R."""
        return self.packed.a[: min(self.packed.a.shape)].triu()

    def times(self, vectors: torch.Tensor) -> torch.Tensor:
        """Q @ vectors, without forming Q."""
        import torch

        rows, reflectors = self.packed.a.shape[0], len(self.packed.tau)
        padded = torch.cat([vectors, vectors.new_zeros(rows - len(vectors), vectors.shape[1])])
        return torch.ormqr(self.packed.a[:, :reflectors], self.packed.tau, padded).to(self.dtype)


def leading(matrix: torch.Tensor, rule: RankRule) -> Decomposition:
    """The singular triples of a dense matrix that `rule` asks for, and perhaps a few more.

    Args:
        matrix: [rows, columns], float32.
        rule: says when enough are known; its `rank` bounds the work.
    """
    import torch

    # In pieces: the whole matrix in float64 would be the largest thing in memory.
    energy = sum(float(rows.double().square_().sum()) for rows in torch.split(matrix, 64))
    smaller = min(matrix.shape)
    count = min(smaller, rule.rank or smaller)
    if smaller <= EXACT_SIZE or 3 * (count + OVERSAMPLING) > smaller and rule.fixed:
        return _exact(matrix, energy)
    size = count if rule.fixed else min(count, 2 * OVERSAMPLING)
    while True:
        found = _iterate(matrix, size, energy)
        if size >= count or rule.satisfied(found.values[:size], energy):
            return found
        size = min(count, 2 * size)
        if 3 * (size + OVERSAMPLING) > smaller:
            return _exact(matrix, energy)


def _exact(matrix: torch.Tensor, energy: float) -> Decomposition:
    """All triples, by the Gram matrix of the shorter side in float64.

    Squaring halves the digits: values below 1e-8 of the largest are noise, far below what any file's type holds.
    """
    import torch

    if matrix.shape[0] > matrix.shape[1]:
        turned = _exact(matrix.t(), energy)
        return Decomposition(turned.right.t(), turned.values, turned.left.t(), energy)
    wide = matrix.double()
    squares, vectors = torch.linalg.eigh(wide @ wide.t())
    left = vectors.flip(1)
    right = left.t() @ wide
    values = squares.flip(0).clamp_min(0).sqrt()
    return Decomposition(left, values, right / right.norm(dim=1, keepdim=True).clamp_min(1e-300), energy)


def _iterate(matrix: torch.Tensor, count: int, energy: float) -> Decomposition:
    """The `count` leading triples and some more, by block power iteration from a fixed random start."""
    import torch

    width = min(count + OVERSAMPLING, *matrix.shape)
    start = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(matrix @ start).Q
    captured = -1.0
    for step in range(MAX_ITERATIONS):
        rotated = torch.linalg.qr(matrix.t() @ basis)  # basisᵀ @ matrix = Rᵀ Qᵀ: its core is the small Rᵀ
        u, values, vt = torch.linalg.svd(rotated.R.double().t())
        before, captured = captured, float(values[:count].square().sum())
        if captured - before <= GAIN * captured or step == MAX_ITERATIONS - 1:
            break
        basis = torch.linalg.qr(matrix @ rotated.Q).Q
    left, right = basis @ u.float(), (rotated.Q @ vt.t().float()).t()
    return Decomposition(left, values, right, energy)
