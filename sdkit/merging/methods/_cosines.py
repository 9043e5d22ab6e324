"""Cosines of columns, taken as they are or stretched over the range they have in the whole model."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from sdkit.merging.measures import column_cosines
from sdkit.merging.method import Tiles
from sdkit.merging.whole import Whole

if TYPE_CHECKING:
    import torch

Spread = tuple[float, float]
TRIMMED = 1.0  # percent at each end


def model_spread(whole: Whole, *, averaged: bool) -> Spread:
    """The smallest and the largest cosine in the whole model, without the outermost percent at either end.

    Args:
        whole: two models.
        averaged: each column's cosine is averaged with its tensor's.
    """
    import numpy

    found = []
    for name, (first, _) in whole.tensors.items():
        if first.shape and not name.startswith("vae."):
            each, tensor = column_cosines(Tiles(partial(whole.rows, name), math.prod(first.shape)))
            found.append(((each + tensor) / 2 if averaged else each).reshape(-1).numpy())
    cosines = numpy.concatenate(found) if found else numpy.zeros(1)
    cosines = cosines[cosines >= numpy.percentile(cosines, TRIMMED, method="midpoint")]
    cosines = cosines[cosines <= numpy.percentile(cosines, 100 - TRIMMED, method="midpoint")]
    return float(cosines.min()), float(cosines.max())


def share_of_b(cosines: torch.Tensor, spread: Spread | None, alpha: float) -> torch.Tensor:
    """1 − clamp(c − α, 0, 1), c stretched over `spread` where there is one."""
    if spread is not None and spread[1] > spread[0]:
        cosines = (cosines - spread[0]) / (spread[1] - spread[0])
    return (cosines - alpha).clamp(0, 1).neg_().add_(1)
