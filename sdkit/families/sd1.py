"""Stable Diffusion 1: a U-Net whose attention sits between 1×1 convolutions, and CLIP ViT-L/14."""

from __future__ import annotations

from sdkit.families.parts import Parts
from sdkit.families.rules import LATENT_VARIANTS, Family, TextEncoder, single_file_text


def _objection(parts: Parts) -> str:
    layout, text = parts.unet_layout, single_file_text(parts)
    if layout is None:
        return "it needs a U-Net"
    if text and text != "cond_stage_model.transformer.":
        return f"its text encoder lies at cond_stage_model.transformer, this one at {text.rstrip('.')}"
    if layout.label_dim:
        return "its U-Net has no label embedding, this one has"
    if layout.linear and not text:
        return "its attention is wrapped in 1x1 convolutions, this one in linear layers"
    return ""


FAMILY = Family(
    name="sd1",
    title="Stable Diffusion 1",
    text_encoders=(TextEncoder("text_encoder", "cond_stage_model.transformer.", "hf", "lora_te"),),
    variants=LATENT_VARIANTS,
    objection=_objection,
    configs={"base": "sd1/base", "inpainting": "sd1/inpainting"},
)
