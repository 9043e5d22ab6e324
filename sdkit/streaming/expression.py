"""Lazy tensors: what an output tensor is made of, as an expression the engine evaluates tile by tile."""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.weights import DType, TensorInfo, Weights


@dataclass(frozen=True, slots=True)
class Read:
    """A tensor of an opened file."""

    weights: Weights
    info: TensorInfo

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return self.info.shape

    @property
    def dtype(self) -> DType:
        """Its element type as stored."""
        return self.info.dtype
