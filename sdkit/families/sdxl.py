"""Stable Diffusion XL, base and refiner: no attention at the finest level, sizes and pooled text as a label."""

from __future__ import annotations

from sdkit.families.parts import Parts
from sdkit.families.rules import LATENT_VARIANTS, Family, TextEncoder, single_file_text

_CLIP_L = TextEncoder("text_encoder", "conditioner.embedders.0.transformer.", "hf", "lora_te1")
_CLIP_G = TextEncoder("text_encoder_2", "conditioner.embedders.1.model.", "openclip", "lora_te2", projects=True)
_REFINER_CLIP_G = TextEncoder(
    component="text_encoder_2",
    prefix="conditioner.embedders.0.model.",
    style="openclip",
    kohya="lora_te2",
    projects=True,
    folders=("text_encoder_2", "text_encoder"),
)


def _xl_objection(parts: Parts) -> str:
    layout, text = parts.unet_layout, single_file_text(parts)
    if layout is None:
        return "it needs a U-Net"
    if text.startswith("cond_stage_model."):
        return f"its text encoders lie at conditioner.embedders, this one at {text.rstrip('.')}"
    if not layout.label_dim:
        return "its U-Net has a label embedding (sizes, pooled text), this one has none"
    if layout.label_module != "add_embedding":
        return "its U-Net does not attend at the finest level, this one does"
    return ""


def _attends_at_the_coarsest_level(parts: Parts) -> bool:
    layout = parts.unet_layout
    return layout is not None and any(layout.down[-1])


def _base_objection(parts: Parts) -> str:
    if objection := _xl_objection(parts):
        return objection
    return "" if _attends_at_the_coarsest_level(parts) else "its U-Net attends at the coarsest level, this one does not"


def _refiner_objection(parts: Parts) -> str:
    if objection := _xl_objection(parts):
        return objection
    if _attends_at_the_coarsest_level(parts):
        return "its U-Net does not attend at the coarsest level, this one does"
    return ""


BASE = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    text_encoders=(_CLIP_L, _CLIP_G),
    variants=LATENT_VARIANTS,
    objection=_base_objection,
    configs={"base": "sdxl/base", "inpainting": "sdxl/inpainting"},
)

REFINER = Family(
    name="sdxl-refiner",
    title="Stable Diffusion XL refiner",
    text_encoders=(_REFINER_CLIP_G,),
    variants=LATENT_VARIANTS,
    objection=_refiner_objection,
    configs={"base": "sdxl-refiner/base"},
)
