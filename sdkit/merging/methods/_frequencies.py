"""Which frequencies come from which model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def share_of_b(shape: tuple[int, ...], alpha: float, tilt: float) -> torch.Tensor:
    """B's share of each frequency of a real transform: a step at 1 − α, or a ramp."""
    import torch

    squares = torch.zeros(())
    for axis, size in enumerate(shape):
        frequency = torch.fft.rfftfreq(size) if axis == len(shape) - 1 else torch.fft.fftfreq(size).abs()
        frequency = frequency / max(float(frequency.max()), 1e-30)
        squares = squares.unsqueeze(-1) + frequency.square()
    radius = (squares / len(shape)).sqrt()
    if tilt == 0.0:
        return (radius > 1 - alpha).to(radius.dtype)
    slope = 1 / math.tan(math.pi * tilt / 2)
    return (slope * (radius + alpha - 1) + alpha).clamp_(0, 1)
