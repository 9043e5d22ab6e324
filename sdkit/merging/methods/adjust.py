"""Adjust detail, contrast and colour of what A draws, by a hundredth or two of its first and last weights.

    conv_in          weight · (1 − 0.01 detail_in),     bias · (1 + 0.02 detail_in)
    conv_norm_out    weight · (1 − 0.01 detail_out),    bias · (1 + 0.02 detail_out)
    conv_out         weight · (1 − 0.01 smoothness),
                     bias + 0.02 (contrast · e + brightness · c₀ + red · c₁ + green · c₂ + blue · c₃)

e is the latent's first channel, cᵢ are directions in the other three, which differ between SD1 and SDXL.
Positive details add detail and noise; the colours go from cyan to red, from magenta to green, from yellow to blue.
Source: the `adjust` options of supermerger
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdkit.merging.method import Strength, Weight, merge_method
from sdkit.merging.where import Where
from sdkit.merging.whole import Whole

if TYPE_CHECKING:
    import torch

# Directions of brightness, red, green and blue in the second, third and fourth channel of the latent.
SD1_COLOURS = ((-1.0, 1 / 3, 2 / 3), (1.0, 1.0, 0.0), (0.0, -1.0, -1.0), (1.0, 0.0, 1.0))
SDXL_COLOURS = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (-1.0, -1.0, 0.0), (-1.0, 1.0, 0.0))


@merge_method("tensor", named=True)
def adjust(
    a: Weight,
    *,
    where: Where,
    whole: Whole,
    detail_in: Strength = 0.0,
    detail_out: Strength = 0.0,
    smoothness: Strength = 0.0,
    contrast: Strength = 0.0,
    brightness: Strength = 0.0,
    red: Strength = 0.0,
    green: Strength = 0.0,
    blue: Strength = 0.0,
) -> Weight:
    """A, adjusted."""
    factors = {
        "unet.conv_in.weight": 1 - 0.01 * detail_in,
        "unet.conv_in.bias": 1 + 0.02 * detail_in,
        "unet.conv_norm_out.weight": 1 - 0.01 * detail_out,
        "unet.conv_norm_out.bias": 1 + 0.02 * detail_out,
        "unet.conv_out.weight": 1 - 0.01 * smoothness,
    }
    if where.name == "unet.conv_out.bias" and a.numel() == 4:
        return a + _shift(a, whole.model.family, contrast, (brightness, red, green, blue))
    return a.mul_(factors.get(where.name, 1.0))


def _shift(a: torch.Tensor, family: str, contrast: float, amounts: tuple[float, ...]) -> torch.Tensor:
    """What is added to the four channels of the prediction."""
    directions = SDXL_COLOURS if family.startswith("sdxl") else SD1_COLOURS
    colours = [
        sum(amount * way[channel] for amount, way in zip(amounts, directions, strict=True)) for channel in range(3)
    ]
    return a.new_tensor([contrast, *colours]).mul_(0.02)
