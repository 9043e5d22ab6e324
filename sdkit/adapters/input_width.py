"""First layers of other widths: which change of what a denoiser reads fits which model.

Models that read more than the latent (a mask, a picture beside it) have a wider first layer, whose further columns
stand behind the usual ones. A change that was made for the plain model concerns the usual columns alone. A control LoRA
of FLUX.1 was made for the wide layer and brings along what the further columns do: it goes into the plain model, whose
layer gets columns of zeros for it to change.
"""

from __future__ import annotations

import math

from sdkit.adapters.artifact import Target
from sdkit.families.family import Model

Shape = tuple[int, ...]
FLUX_INPUT = "transformer.x_embedder"
# First layer → the last, which has as many rows as the plain model's first reads numbers.
_LAST = {"unet.conv_in": "unet.conv_out", FLUX_INPUT: "transformer.proj_out"}


def is_narrower(target: Target, change: Shape, model: Model) -> bool:
    """Whether a change was made for the plain model, and this one reads more."""
    weight = model.places[target.name].shape
    plain = _plain_width(target, model)
    return _differ_in_width(target, change, weight) and change[1] < weight[1] and plain in (None, change[1])


def widens(target: Target, change: Shape, model: Model) -> bool:
    """Whether a change was made for a wide FLUX.1, and this one is plain."""
    weight = model.places[target.name].shape
    plain = _plain_width(target, model) if target.module == FLUX_INPUT and model.family == "flux" else None
    return _differ_in_width(target, change, weight) and change[1] > weight[1] == plain


def columns_of(change: Shape) -> int:
    """Columns of a change, seen as a matrix."""
    return math.prod(change[1:])


def _differ_in_width(target: Target, change: Shape, weight: Shape) -> bool:
    alike = target.parameter == "weight" and len(change) == len(weight) > 1
    return target.module in _LAST and alike and (change[0], *change[2:]) == (weight[0], *weight[2:])


def _plain_width(target: Target, model: Model) -> int | None:
    """How many numbers the plain model's first layer reads; None where the last layer is not there to tell."""
    place = model.places.get(f"{_LAST.get(target.module)}.weight")
    return place.shape[0] if place is not None else None
