"""FLUX.2: a transformer of two streams and then one, told the text by a language model. Adapters of it are read."""

from __future__ import annotations

from sdkit.families.flux2_transformer import Flux2Layout
from sdkit.families.parts import Parts
from sdkit.families.rules import Family


def _objection(parts: Parts) -> str:
    is_flux2 = parts.transformer is not None and isinstance(parts.transformer.layout, Flux2Layout)
    return "" if is_flux2 else "it needs a transformer whose blocks share their modulations"


def _published(heads: int, double: int, single: int, text_dim: int, *, guidance: bool = False) -> Flux2Layout:
    width = 128 * heads
    return Flux2Layout(width, 128, 3 * width, double, single, 128, 128, text_dim, 256, guidance)


FAMILY = Family(
    name="flux2",
    title="FLUX.2",
    text_encoders=(),
    variants={
        "klein-4b": {"width": 3072},
        "klein-9b": {"width": 4096},
        "dev": {"width": 6144},
    },
    objection=_objection,
    # As https://huggingface.co/black-forest-labs/FLUX.2-klein-4B, FLUX.2-klein-9B and FLUX.2-dev have them.
    layouts={
        "klein-4b": _published(24, 5, 20, 7680),
        "klein-9b": _published(32, 8, 24, 12288),
        "dev": _published(48, 8, 48, 15360, guidance=True),
    },
    flow=True,
)
