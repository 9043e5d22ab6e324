"""How strongly each weight is changed: the adapter's strength, times its component's, times its block's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sdkit.adapters.artifact import Target
from sdkit.families.family import Model
from sdkit.merging.blocks import BASE


@dataclass(frozen=True, slots=True)
class Strengths:
    """Factors by component and block.

    Attributes:
        unet: factor of everything in the U-Net, or the transformer in its place.
        text_encoder: factor of everything in the text encoders.
        blocks: factor by block name.
    """

    unet: float = 1.0
    text_encoder: float = 1.0
    blocks: Mapping[str, float] = field(default_factory=dict)

    def of(self, target: Target, model: Model) -> float:
        """The factor for one target."""
        factor = self.blocks.get(model.block_of(target.module), self.blocks.get(BASE, 1.0))
        if target.component.startswith("text_encoder"):
            return factor * self.text_encoder
        return factor * self.unet if target.component in ("unet", "transformer") else factor
