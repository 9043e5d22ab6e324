"""Scaled fp8: weights stored in one byte each, and a number beside each matrix that they are multiplied with in use.

Two spellings exist: ``layer.scale_weight`` (and the marker ``scaled_fp8``), and in newer files ``layer.weight_scale``
with a description ``layer.comfy_quant``. Scales of activations (``scale_input``, ``input_scale``) concern the runtime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.streaming.expression import Context, Expression, TileFunction
from sdkit.weights import Weights
from sdkit.weights.header import DamagedFileError

if TYPE_CHECKING:
    import torch

_SCALES = (".scale_weight", ".weight_scale")
_BESIDE = (*_SCALES, ".scale_input", ".input_scale", ".comfy_quant", ".scaled_fp8")


@dataclass(frozen=True, slots=True)
class Times:
    """A tensor times a number: stored fp8 weights times the scale that belongs to them."""

    source: Expression
    factor: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's."""
        return self.source.shape

    @property
    def unit(self) -> int:
        """The source's."""
        return self.source.unit

    def bind(self, context: Context) -> TileFunction:
        """Multiply in place."""
        tile = self.source.bind(context)

        def scaled(start: int, stop: int) -> torch.Tensor:
            return tile(start, stop).mul_(self.factor)

        return scaled


def quantisation_scale(weights: Weights, key: str) -> float:
    """The number a scaled fp8 weight is multiplied with when it is used; 1 for every other weight.

    The stored numbers are weight / scale, so a change must be divided by it too.

    Raises:
        DamagedFileError: it is zero or no finite number.
    """
    names = (key.removesuffix(".weight") + suffix for suffix in _SCALES)
    name = next((name for name in names if name in weights.tensors), None)
    if name is None or not key.endswith(".weight"):
        return 1.0
    scale = weights.scalar(name)
    if scale == 0.0 or not math.isfinite(scale):
        raise DamagedFileError(weights.path, f"{name} is {scale}, which no weight can be scaled with")
    return scale


def is_quantisation(name: str) -> bool:
    """Whether a tensor of this name says how others are quantised."""
    return name == "scaled_fp8" or name.endswith(_BESIDE)
