"""The difference of two weights as an adapter's change of limited rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.adapters.decompose import leading
from sdkit.adapters.ranks import RankRule, relative_error
from sdkit.adapters.sums import Cut, shaped
from sdkit.core.errors import SdkitError
from sdkit.families.family import Place
from sdkit.streaming.expression import Read, torch_dtype
from sdkit.weights import DType, Weights

if TYPE_CHECKING:
    import torch

ROWS = 256  # how many are looked at together: copies of whole weights would be the largest things in memory


@dataclass(frozen=True, slots=True)
class Located:
    """A hub parameter in an opened checkpoint.

    Attributes:
        weights: the checkpoint.
        place: where the parameter lies in it.
        scale: what the stored numbers are multiplied with (scaled fp8), else 1.
    """

    weights: Weights
    place: Place
    scale: float = 1.0

    @property
    def read(self) -> Read:
        """The tensor that holds it."""
        return Read(self.weights, self.weights.tensors[self.place.key])

    def load(self) -> torch.Tensor:
        """The parameter in its own shape, in the stored type."""
        tensor = self.read.load()
        if self.place.rows is not None:
            tensor = tensor[slice(*self.place.rows)]
        if self.place.swapped:
            tensor = tensor.roll(len(tensor) // 2, 0)
        return (tensor.t() if self.place.transposed else tensor).reshape(self.place.shape)


def difference(tuned: Located, base: Located) -> torch.Tensor | None:
    """tuned − base in float32 and the base's shape; None where only rounding to the coarser type tells them apart.

    Raises:
        SdkitError: the difference is not finite.
    """
    import torch

    other = base.load()
    one = tuned.load().reshape(other.shape)
    if not _differ(tuned, one, base, other):
        return None
    delta = one.to(torch.float32, copy=True).mul_(tuned.scale)
    for rows, stored in zip(torch.split(delta, ROWS), torch.split(other, ROWS), strict=True):
        rows.sub_(stored.float(), alpha=base.scale)
        if not bool(torch.isfinite(rows).all()):
            raise SdkitError(f"{tuned.place.key}: a checkpoint holds NaN or infinity there", "repair or exclude it")
    return delta


def differs(tuned: Located, base: Located) -> bool:
    """Whether `difference` would find one; it is not computed, so this takes little memory."""
    other = base.load()
    return _differ(tuned, tuned.load().reshape(other.shape), base, other)


def _differ(tuned: Located, one: torch.Tensor, base: Located, other: torch.Tensor) -> bool:
    import torch

    if not tuned.scale == base.scale == 1.0:
        return True
    coarser = max((one.dtype, other.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    pairs = zip(torch.split(one, ROWS), torch.split(other, ROWS), strict=True)
    return not all(torch.equal(rows.to(coarser), stored.to(coarser)) for rows, stored in pairs)


def cut_difference(delta: torch.Tensor, rule: RankRule, dtype: DType, *, tucker: bool = False) -> Cut:
    """The best change of limited rank to stand for a difference.

    Args:
        delta: of the weight's shape, float32.
        rule: finds the rank.
        dtype: of the result.
        tucker: give a convolution with a kernel a small core between two 1×1 convolutions.
    """
    shape = tuple(delta.shape)
    if tucker and math.prod(shape[2:]) > 1:
        return _tucker(delta, rule, torch_dtype(dtype))
    found = leading(delta.flatten(1), rule)
    rank = rule.choose(found.values, found.energy)
    up, down = (factor.to(torch_dtype(dtype)) for factor in found.factors(rank))
    tensors = shaped(up, down, shape)
    return Cut(tensors, rank, math.sqrt(found.energy), relative_error(found.values, rank, found.energy))


def _tucker(delta: torch.Tensor, rule: RankRule, dtype: torch.dtype) -> Cut:
    """Project the output and the input channels on their leading singular vectors; what is left is the core.

    Both projections are orthogonal, so the lost energy is exactly what the core lacks. The core's magnitude is shared
    out among the three factors, which then all fit small types.
    """
    import torch

    rows, columns, *kernel = delta.shape
    outputs = leading(delta.flatten(1), rule)
    inputs = leading(delta.transpose(0, 1).flatten(1).contiguous(), rule)
    rank = max(rule.choose(outputs.values, outputs.energy), rule.choose(inputs.values, inputs.energy))
    rank = min(rank, outputs.left.shape[1], inputs.left.shape[1])
    left, right = outputs.left[:, :rank].float(), inputs.left[:, :rank].float()
    core = torch.einsum("oi...,op,ir->pr...", delta, left, right)
    lost = max(0.0, outputs.energy - float(torch.linalg.vector_norm(core, dtype=torch.float64)) ** 2)
    share = float(core.abs().max()) ** (1 / 3) or 1.0
    tensors = {
        "up": (left * share).reshape(rows, rank, *(1 for _ in kernel)).to(dtype),
        "down": (right.t() * share).reshape(rank, columns, *(1 for _ in kernel)).to(dtype),
        "mid": (core / share**2).to(dtype),
    }
    error = math.sqrt(lost / outputs.energy) if outputs.energy else 0.0
    return Cut(tensors, rank, math.sqrt(outputs.energy), error)
