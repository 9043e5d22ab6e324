"""Stable Diffusion 3 and 3.5: a transformer of joint blocks, both CLIPs of SDXL, and T5."""

from __future__ import annotations

from sdkit.families.parts import Parts
from sdkit.families.rules import Family, TextEncoder
from sdkit.families.sd3_transformer import Sd3Layout


def _objection(parts: Parts) -> str:
    is_sd3 = parts.transformer is not None and isinstance(parts.transformer.layout, Sd3Layout)
    return "" if is_sd3 else "it needs a transformer with joint blocks and learned positions"


FAMILY = Family(
    name="sd3",
    title="Stable Diffusion 3",
    text_encoders=(
        TextEncoder("text_encoder", "text_encoders.clip_l.transformer.", "hf", "lora_te1", projects=True),
        TextEncoder("text_encoder_2", "text_encoders.clip_g.transformer.", "hf", "lora_te2", projects=True),
        TextEncoder("text_encoder_3", "text_encoders.t5xxl.transformer.", "t5", "lora_te3"),
    ),
    variants={
        "medium": {"normalises": False},
        "3.5-medium": {"normalises": True, "attends_twice": True},
        "3.5-large": {"normalises": True, "attends_twice": False},
    },
    objection=_objection,
    configs={"medium": "sd3/medium"},
    # As published; the sizes of 3.5 are in no configuration that comes with sdkit.
    sizes={
        "medium": {},
        "3.5-medium": {"head": 64, "second": 13, "positions": 384 * 384},
        "3.5-large": {"head": 64, "depth": 38, "width": 2432, "inner": 9728},
    },
    flow=True,
)
