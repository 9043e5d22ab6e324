"""Families this version only recognises: one telling name each, so that "unknown" can say what it looks like."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Signature:
    """A name, or the dotted beginning of names, that only one family or kind of file has.

    Attributes:
        family: as `Model.family` has it; empty for kinds of file that are no checkpoint.
        title: as people write it.
        names: any of them tells.
    """

    family: str
    title: str
    names: tuple[str, ...]


KOLORS_LAYER = "encoder_hid_proj.weight"

# Order matters where a newer family keeps an older one's names. Those that have rules stand here for files that are not
# whole, and behind those that are not they.
SIGNATURES = (
    Signature("", "a ControlNet", ("control_model.input_blocks", "controlnet_cond_embedding", "input_hint_block")),
    Signature("", "an IP-Adapter", ("ip_adapter", "image_proj")),
    Signature("", "a tiny autoencoder (TAESD)", ("taesd_encoder", "decoder.layers.1.conv")),
    Signature("", "an upscaler", ("conv_first.weight", "model.0.weight")),
    Signature("kolors", "Kolors", (KOLORS_LAYER,)),
    Signature("chroma", "Chroma", ("distilled_guidance_layer",)),
    Signature("flux2", "FLUX.2", ("single_stream_modulation.lin.weight", "single_stream_modulation.linear.weight")),
    Signature("hunyuan-video", "HunyuanVideo", ("txt_in.individual_token_refiner", "context_embedder.token_refiner")),
    Signature("auraflow", "AuraFlow", ("double_layers.0.attn.w1q.weight", "joint_transformer_blocks")),
    Signature("qwen-image", "Qwen-Image", ("txt_norm.weight", "txt_in.text_norm.weight")),
    Signature("krea2", "Krea 2", ("txtfusion.projector.weight",)),
    Signature("flux", "FLUX.1", ("double_blocks.0.img_attn.norm.key_norm.scale", "single_transformer_blocks")),
    Signature("sd3", "Stable Diffusion 3", ("joint_blocks.0.context_block", "transformer_blocks.0.attn.add_q_proj")),
    Signature("pixart", "PixArt", ("t_block.1.weight", "adaln_single.linear.weight")),
    Signature("hunyuan-dit", "Hunyuan-DiT", ("mlp_t5.0.weight",)),
    Signature("z-image", "Z-Image", ("layers.0.adaLN_modulation.0.weight",)),
    Signature("lumina2", "Lumina 2", ("cap_embedder.0.weight",)),
    Signature("sana", "Sana", ("blocks.0.cross_attn.q_linear.weight",)),
    Signature("hidream", "HiDream", ("double_stream_blocks.0.block.adaLN_modulation.1.bias",)),
    Signature("wan", "Wan", ("head.modulation",)),
    Signature("ltx", "LTX-Video", ("patchify_proj.weight",)),
    Signature("mochi", "Mochi", ("blocks.0.attn.qkv_x.weight",)),
    Signature("cosmos", "Cosmos", ("x_embedder.proj.1.weight",)),
    Signature("cascade", "Stable Cascade", ("clip_txt_mapper.weight", "clip_mapper.weight")),
)

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.", "transformer/", "unet/", "prior/", "model.")


def look_alike(names: Iterable[str]) -> Signature | None:
    """The family or kind of file the names look like, among those this version does not read."""
    telling = [name for name in names if not name.startswith("lora_") and _ANY.match(name)]  # most files are LoRAs
    return next((entry for entry in SIGNATURES if any(map(_pattern(entry.names).match, telling))), None)


def _pattern(beginnings: Iterable[str]) -> re.Pattern[str]:
    """Matches names that are, or begin with one of these and a dot, whatever prefix stands before."""
    prefixes, ways = ("|".join(map(re.escape, texts)) for texts in (_PREFIXES, beginnings))
    return re.compile(rf"(?:{prefixes})?(?:{ways})(?:\.|$)")


_ANY = _pattern(name for entry in SIGNATURES for name in entry.names)  # one look at most names is enough
