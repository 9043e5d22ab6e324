"""FLUX.1: a transformer of two streams and then one, CLIP ViT-L/14 for the pooled text and T5 for its tokens."""

from __future__ import annotations

from sdkit.families.flux_transformer import FluxLayout
from sdkit.families.parts import Parts
from sdkit.families.rules import Family, TextEncoder


def _objection(parts: Parts) -> str:
    is_flux = parts.transformer is not None and isinstance(parts.transformer.layout, FluxLayout)
    return "" if is_flux else "it needs a transformer with blocks of two streams and of one"


FAMILY = Family(
    name="flux",
    title="FLUX.1",
    text_encoders=(
        TextEncoder("text_encoder", "text_encoders.clip_l.transformer.", "hf", "lora_te1"),
        TextEncoder("text_encoder_2", "text_encoders.t5xxl.transformer.", "t5", "lora_te3"),
    ),
    variants={
        "dev": {"in_channels": 64, "guidance": True},
        "schnell": {"in_channels": 64, "guidance": False},
        "control": {"in_channels": 128, "guidance": True},  # depth and canny: a picture beside the latent
        "fill": {"in_channels": 384, "guidance": True},  # a masked picture, and the mask's every pixel
    },
    objection=_objection,
    configs={"dev": "flux/dev", "schnell": "flux/schnell"},
    flow=True,
    vae_prefix="vae.",
)
