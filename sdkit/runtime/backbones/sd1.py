"""Stable Diffusion 1 and 2: one CLIP text encoder, whose last hidden states are the conditioning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sdkit.runtime.backbone import Backbone, Cond

if TYPE_CHECKING:
    import torch

FAMILIES = ("sd1", "sd2")


class SD1(Backbone):
    """Stable Diffusion 1 or 2."""

    def tokenize(self, texts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """Token ids, padded and cut to the text encoder's length."""
        return {"text_encoder": self._token_ids("text_encoder", texts)}

    def encode_text(self, ids: Mapping[str, torch.Tensor], size: tuple[int, int]) -> Cond:
        """The last hidden states. Pictures' sizes mean nothing to this family."""
        hidden = self.components["text_encoder"](ids["text_encoder"].to(self.device)).last_hidden_state
        return Cond(hidden)

    def denoise(self, noised: torch.Tensor, timesteps: torch.Tensor, cond: Cond) -> torch.Tensor:
        """One call of the U-Net, in the components' type."""
        inputs = (noised.to(self.dtype), timesteps, cond.context.to(self.dtype))
        prediction: torch.Tensor = self.unet(*inputs, return_dict=False)[0]
        return prediction


BACKBONE = SD1
