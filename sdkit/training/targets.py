"""Which layers of a model a LoRA goes beside, told from the header alone."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Collection

from sdkit.core.errors import UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.families.family import Model

# What each name means for the U-Net, as patterns of module names within it.
PRESETS = {
    "attention": r"\.attn[12]\.to_(?:q|k|v|out\.0)$",
    "transformer": r"\.(?:proj_in|proj_out|attn[12]\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2))$",
}
_CONVOLUTIONS = re.compile(r"\.(?:conv1|conv2|conv_shortcut|time_emb_proj|downsamplers\.0\.conv|upsamplers\.0\.conv)$")
_TEXT = re.compile(r"\.(?:self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12])$")


def lora_targets(model: Model, preset: str, *, text: bool, conv_rank: int) -> dict[str, tuple[int, ...]]:
    """Hub module → shape of its weight, in the model's order.

    Args:
        preset: ``attention``, ``transformer`` (as kohya's scripts: attention, its projections and the feed-forward
            layers) or a regular expression for module names.
        text: whether the text encoders' layers are included.
        conv_rank: above 0 the residual layers and the resizing convolutions are included (LoCon); at 0 nothing with a
            kernel is.

    Raises:
        UsageError: the preset matches nothing.
    """
    pattern = _compile(preset)
    found = {
        name.removesuffix(".weight"): place.shape
        for name, place in model.places.items()
        if name.endswith(".weight")
        and len(place.shape) >= 2
        and _wanted(name, pattern, text, conv_rank)
        and (conv_rank or not has_kernel(place.shape))
    }
    if not found:
        raise UsageError(f"targets={preset} matches no layer of this base", nearest_hint(preset, PRESETS))
    return found


def has_kernel(shape: tuple[int, ...]) -> bool:
    """Whether a weight of this shape is a convolution's with a kernel, which has a rank and an alpha of its own."""
    return math.prod(shape[2:]) > 1


def lora_scale(alpha: float, rank: int, *, rank_stabilised: bool = False) -> float:
    """alpha / rank, or alpha / √rank (rsLoRA, arXiv:2312.03732), with an alpha that a file can hold exactly."""
    alpha = alpha * math.sqrt(rank) if rank_stabilised else alpha
    stored: float = struct.unpack("<f", struct.pack("<f", alpha))[0]
    return stored / rank


def _wanted(name: str, pattern: re.Pattern[str], text: bool, conv_rank: int) -> bool:
    module = name.removesuffix(".weight")
    if module.startswith("unet."):
        return bool(pattern.search(module)) or (conv_rank > 0 and bool(_CONVOLUTIONS.search(module)))
    return text and module.startswith("text_encoder") and bool(_TEXT.search(module))


def _compile(preset: str) -> re.Pattern[str]:
    try:
        return re.compile(PRESETS.get(preset, preset))
    except re.error as error:
        raise UsageError(f"targets={preset}: {error}", f"use {' or '.join(PRESETS)}, or a regular expression") from None


def component_parameters(model: Model, components: Collection[str]) -> dict[str, int]:
    """Hub parameter → number of elements, of whole components."""
    return {
        name: math.prod(place.shape) for name, place in model.places.items() if name.partition(".")[0] in components
    }
