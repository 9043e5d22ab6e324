"""Stable Diffusion XL: two text encoders side by side, the second's pooled text, and how the picture was cut.

The context is the last but one hidden state of both encoders, joined in width. Beside it the denoiser is told the
projected text of the second encoder and six numbers: the picture's own height and width, the upper left corner of what
is shown of it, and the height and width shown (arXiv:2307.01952, section 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdkit.runtime.backbone import Backbone, Cond, Frame

if TYPE_CHECKING:
    import torch

FAMILIES = ("sdxl",)


class SDXL(Backbone):
    """Stable Diffusion XL, base."""

    def encode_text(self, ids: Mapping[str, torch.Tensor], size: tuple[int, int], *, clip_skip: int = 1) -> Cond:
        """Context, pooled text, and the numbers of a whole picture of `size`.

        Args:
            clip_skip: the layer that is read, counted from the end; the last is never read, so that 1 means 2.
        """
        import torch

        states, pooled = [], None
        for name in ("text_encoder", "text_encoder_2"):
            encoder: Any = self.components[name]
            output = encoder(ids[name].to(self.device), output_hidden_states=True)
            states.append(output.hidden_states[-max(2, clip_skip)])
            pooled = output[0]
        assert pooled is not None
        cond = Cond(torch.cat(states, -1), {"text_embeds": pooled})
        return self.framed(cond, [Frame.whole(size)] * len(pooled))

    def framed(self, cond: Cond, frames: Sequence[Frame]) -> Cond:
        """The same text for pictures cut in other ways."""
        import torch

        # In float32: bfloat16 has no odd numbers above 256.
        numbers = torch.tensor([frame.numbers for frame in frames], dtype=torch.float32, device=cond.context.device)
        return Cond(cond.context, {**cond.added, "time_ids": numbers})

    def denoise(self, noised: torch.Tensor, timesteps: torch.Tensor, cond: Cond) -> torch.Tensor:
        """One call of the U-Net, in the components' type."""
        added = {"text_embeds": cond.added["text_embeds"].to(self.dtype), "time_ids": cond.added["time_ids"]}
        inputs = (noised.to(self.dtype), timesteps, cond.context.to(self.dtype))
        prediction: torch.Tensor = self.unet(*inputs, added_cond_kwargs=added, return_dict=False)[0]
        return prediction


BACKBONE = SDXL
