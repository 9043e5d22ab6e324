"""Pictures led back to the noise they come from, and drawn from it again under guidance.

Without guidance DDIM runs backwards nearly exactly; guidance multiplies the little it is off. Null-text inversion
(arXiv:2211.09794) makes up for that with an empty text of each step's own; negative-prompt inversion (arXiv:2305.16807)
puts the prompt in its place, which takes guidance out of the reconstruction at no cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.runtime.backbone import Backbone, Cond
from sdkit.runtime.ddim import Ddim
from sdkit.runtime.guidance import both_predictions

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class NullTexts:
    """What stands in the place of the empty text at each step.

    Attributes:
        context: [rows, 1, tokens, width]; one row holds for all steps.
        pooled: [rows, 1, width], of families whose denoiser is told it.
    """

    context: torch.Tensor
    pooled: torch.Tensor | None = None

    def at(self, step: int, cond: Cond) -> Cond:
        """The conditioning of a step; what is no text in it is as in `cond`."""
        row = min(step, len(self.context) - 1)
        added = dict(cond.added)
        if self.pooled is not None:
            added["text_embeds"] = self.pooled[row].to(cond.context.device)
        return Cond(self.context[row].to(cond.context.device), added)


def invert(backbone: Backbone, ddim: Ddim, latents: torch.Tensor, cond: Cond) -> torch.Tensor:
    """The latents of every noise level, [steps + 1, 1, c, h, w]: from the noise down to `latents` [1, c, h, w].

    Args:
        cond: of the prompt; there is no guidance.
    """
    import torch

    levels = [latents]
    with torch.no_grad(), backbone.evaluating():
        for step in reversed(range(ddim.steps)):
            prediction = backbone.denoise(levels[-1], times(backbone, ddim, step), cond)
            levels.append(ddim.up(levels[-1], prediction, step))
    return torch.stack(levels[::-1])


def replay(
    backbone: Backbone,
    ddim: Ddim,
    noise: torch.Tensor,
    cond: Cond,
    null: Callable[[int], Cond],
    guidance: float,
) -> torch.Tensor:
    """The latents [1, c, h, w] that guided DDIM draws from `noise`.

    Args:
        null: the conditioning in the place of the empty text, by step.
    """
    import torch

    latents = noise
    with torch.no_grad(), backbone.evaluating():
        for step in range(ddim.steps):
            timesteps = times(backbone, ddim, step)
            positive, negative = both_predictions(backbone, latents, timesteps, cond, null(step))
            latents = ddim.down(latents, guided(positive, negative, guidance), step)
    return latents


def times(backbone: Backbone, ddim: Ddim, step: int, count: int = 1) -> torch.Tensor:
    """The timestep of a step for `count` latents."""
    import torch

    return torch.full((count,), ddim.timesteps[step], device=backbone.device)


def guided(positive: torch.Tensor, negative: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """ε⁻ + w (ε⁺ − ε⁻), in float32: guidance multiplies what rounding leaves."""
    positive, negative = positive.float(), negative.float()
    return negative + scale * (positive - negative)
