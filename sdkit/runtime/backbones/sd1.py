"""Stable Diffusion 1 and 2: one CLIP text encoder, whose last hidden states are the conditioning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sdkit.core.errors import UsageError
from sdkit.runtime.backbone import Backbone, Cond

if TYPE_CHECKING:
    import torch

FAMILIES = ("sd1", "sd2")


class SD1(Backbone):
    """Stable Diffusion 1 or 2."""

    def encode_text(self, ids: Mapping[str, torch.Tensor], size: tuple[int, int], *, clip_skip: int = 1) -> Cond:
        """The hidden states of one layer, normalised as the last are. Pictures' sizes mean nothing to this family."""
        encoder = self.components["text_encoder"]
        tokens = ids["text_encoder"].to(self.device)
        if clip_skip == 1:
            return Cond(encoder(tokens).last_hidden_state)
        layers: int = encoder.config.num_hidden_layers  # type: ignore[union-attr, assignment]
        if not 1 <= clip_skip <= layers:
            raise UsageError(f"clip skip {clip_skip}: the text encoder has {layers} layers", f"use 1 to {layers}")
        hidden = encoder(tokens, output_hidden_states=True).hidden_states[-clip_skip]
        return Cond(self.module("text_encoder.text_model.final_layer_norm")(hidden))

    def denoise(self, noised: torch.Tensor, timesteps: torch.Tensor, cond: Cond) -> torch.Tensor:
        """One call of the U-Net, in the components' type."""
        inputs = (noised.to(self.dtype), timesteps, cond.context.to(self.dtype))
        prediction: torch.Tensor = self.unet(*inputs, return_dict=False)[0]
        return prediction


BACKBONE = SD1
