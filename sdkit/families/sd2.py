"""Stable Diffusion 2: a U-Net whose attention sits between linear layers, and OpenCLIP ViT-H/14."""

from __future__ import annotations

from sdkit.families.parts import Parts
from sdkit.families.rules import LATENT_VARIANTS, Family, TextEncoder, single_file_text


def _objection(parts: Parts) -> str:
    layout, text = parts.unet_layout, single_file_text(parts)
    if layout is None:
        return "it needs a U-Net"
    if text and text != "cond_stage_model.model.":
        return f"its text encoder lies at cond_stage_model.model (OpenCLIP), this one at {text.rstrip('.')}"
    if layout.label_dim and layout.label_module == "add_embedding":
        return "its U-Net attends at the finest level, this one does not"
    if not layout.linear and not text:
        return "its attention is wrapped in linear layers, this one in 1x1 convolutions"
    return ""


FAMILY = Family(
    name="sd2",
    title="Stable Diffusion 2",
    text_encoders=(
        # The file holds OpenCLIP's 24 layers; the model reads the 23rd, and diffusers leaves the last one out.
        TextEncoder("text_encoder", "cond_stage_model.model.", "openclip", "lora_te", max_layers=23),
    ),
    variants=LATENT_VARIANTS | {"depth": {"in_channels": 5}},
    objection=_objection,
    configs={"base": "sd2/base", "inpainting": "sd2/inpainting"},
)
