"""The guided prediction: away from what a negative prompt says (classifier-free guidance, arXiv:2207.12598)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.runtime.backbone import Backbone, Cond

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Guidance:
    """ε⁻ + w (ε⁺ − ε⁻), as samplers see it, with gradients to whatever the two texts are made of.

    Attributes:
        negative: the negative prompt, encoded anew each time, because it may be trained.
        scale: w; at 1 the negative prompt has no effect, as in samplers.
    """

    negative: str
    scale: float

    def __call__(self, backbone: Backbone, noised: torch.Tensor, timesteps: torch.Tensor, cond: Cond) -> torch.Tensor:
        """The prediction for `noised` [b, c, h, w] at `timesteps` [b], where `cond` is ε⁺'s."""
        if self.scale == 1.0:
            return backbone.denoise(noised, timesteps, cond)
        other = self._other(backbone, cond, tuple(noised.shape[-2:]))
        positive, negative = both_predictions(backbone, noised, timesteps, cond, other)
        return negative + self.scale * (positive - negative)

    def _other(self, backbone: Backbone, cond: Cond, latents: tuple[int, ...]) -> Cond:
        """What the negative prompt says, of pictures cut as those of `cond` are."""
        height, width = (side * backbone.pixels_per_latent for side in latents)
        text = backbone.encode_text(backbone.tokenize([self.negative]), (width, height))
        count = len(cond.context)
        said = {"text_embeds": text.added["text_embeds"].expand(count, -1)} if "text_embeds" in text.added else {}
        return Cond(text.context.expand(count, -1, -1), {**cond.added, **said})


def both_predictions(
    backbone: Backbone, noised: torch.Tensor, timesteps: torch.Tensor, cond: Cond, other: Cond
) -> tuple[torch.Tensor, torch.Tensor]:
    """The predictions for `noised` [b, c, h, w] with each of two conditionings, in one call of the denoiser."""
    import torch

    twice = torch.cat([timesteps, timesteps])
    first, second = backbone.denoise(torch.cat([noised, noised]), twice, Cond.join([cond, other])).chunk(2)
    return first, second


def unconditional(negative: Cond) -> Cond:
    """An empty negative prompt: SDXL was trained on zeros in its place, other families on the encoded empty text."""
    import torch

    if "text_embeds" not in negative.added:
        return negative
    added = {**negative.added, "text_embeds": torch.zeros_like(negative.added["text_embeds"])}
    return Cond(torch.zeros_like(negative.context), added)
