"""Z-Image: a transformer of one stream, told the text by a language model. Adapters of it are read."""

from __future__ import annotations

from sdkit.families.parts import Parts
from sdkit.families.rules import Family
from sdkit.families.z_image_transformer import ZImageLayout


def _objection(parts: Parts) -> str:
    is_z_image = parts.transformer is not None and isinstance(parts.transformer.layout, ZImageLayout)
    return "" if is_z_image else "it needs a transformer that refines picture and text before its blocks"


FAMILY = Family(
    name="z-image",
    title="Z-Image",
    text_encoders=(),
    variants={"base": {"in_channels": 16}},  # and Turbo, which is built alike
    objection=_objection,
    # As https://huggingface.co/Tongyi-MAI/Z-Image-Turbo has it.
    layouts={"base": ZImageLayout(3840, 128, 10240, 30, 2, 16, 2560, 256, 1024, 256)},
    flow=True,
)
