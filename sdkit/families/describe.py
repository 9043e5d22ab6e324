"""Configurations for layouts read off a header: the family's published ones, changed where the header says otherwise.

Widths and depths follow from shapes; the number of attention heads and of normalisation groups does not. Where the
widths are the published ones, so are these numbers; where they are not, the family's rule gives the heads, and a note
says that it did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sdkit.core.errors import SdkitError
from sdkit.families.clip import TextLayout
from sdkit.families.configs import layout_of, unet_layout
from sdkit.families.flux_transformer import FluxLayout
from sdkit.families.parts import Layout
from sdkit.families.reference import published_config
from sdkit.families.rules import Family
from sdkit.families.sd3_transformer import Sd3Layout
from sdkit.families.t5 import T5Layout
from sdkit.families.tokenizers import known_tokenizer, vocabulary_of
from sdkit.families.unet import UNetLayout
from sdkit.families.vae import VaeLayout

Described = dict[str, dict[str, Any]]
_HEAD_WIDTH = 64  # of CLIP's text encoders, and of SD2's and SDXL's attention; SD1's has eight heads of any width
_SD1_HEADS = 8
_TEXT_SIZES = {"hidden_size": "width", "intermediate_size": "inner", "num_hidden_layers": "layers"}
_TEXT_SIZES |= {"vocab_size": "vocabulary", "max_position_embeddings": "positions"}


class UnknownSetting(SdkitError):
    """A setting that neither the header nor the family's published configuration gives."""

    def __init__(self, what: str) -> None:
        super().__init__(what, "sdkit convert FILE --to diffusers --configs FOLDER takes it from a folder that says so")


def published_folder(family: Family, variant: str) -> str:
    """The folder of assets that describes a variant best."""
    return family.configs.get(variant, family.configs[family.usual])


def describe(family: Family, variant: str, layouts: Mapping[str, Layout]) -> tuple[Described, list[str]]:
    """A configuration for each component, and what had to be supposed, a sentence each.

    Raises:
        UnknownSetting: a setting follows from neither shapes nor the family's rules.
    """
    folder = published_folder(family, variant)
    sources = {encoder.component: encoder.published for encoder in family.text_encoders}
    configs: Described = {}
    notes: list[str] = []
    for component, layout in layouts.items():
        published = published_config(folder, sources.get(component, component))
        configs[component] = describe_component(component, layout, published, family, notes)
    return configs, notes


def published_encoders(family: Family) -> dict[str, dict[str, Any]]:
    """The published configuration of each text encoder by its hub name."""
    folder = published_folder(family, family.usual)
    return {encoder.component: published_config(folder, encoder.published) for encoder in family.text_encoders}


def encoder_like(family: Family, layout: Layout) -> str | None:
    """Which of the family's text encoders one of this layout is: that of its width, or the only one of its kind."""
    layouts = {name: layout_of(name, config) for name, config in published_encoders(family).items()}
    kin = {name: other for name, other in layouts.items() if type(other) is type(layout)}
    alike = [name for name, other in kin.items() if getattr(other, "width", 0) == getattr(layout, "width", 0)]
    found = alike or list(kin)
    return found[0] if len(found) == 1 else None


def describe_component(
    component: str, layout: Layout, published: Mapping[str, Any], family: Family, notes: list[str]
) -> dict[str, Any]:
    """`published`, changed to describe `layout`; what had to be supposed goes to `notes`."""
    config = dict(published)
    if layout_of(component, published) == layout:
        return config
    if isinstance(layout, UNetLayout):
        config |= _unet_settings(layout, published, family, notes)
    elif isinstance(layout, VaeLayout):
        config |= _vae_settings(layout, published)
    elif isinstance(layout, TextLayout):
        config |= _text_settings(component, layout, published, notes)
    elif isinstance(layout, FluxLayout):
        config |= _flux_settings(layout, published)
    elif isinstance(layout, Sd3Layout):
        config |= _sd3_settings(layout, published, notes)
    elif isinstance(layout, T5Layout):
        config |= _t5_settings(layout)
    if layout_of(component, config) != layout:
        raise UnknownSetting(f"no configuration of diffusers describes its {component}")
    return config


def _unet_settings(
    layout: UNetLayout, published: Mapping[str, Any], family: Family, notes: list[str]
) -> dict[str, Any]:
    attending = [any(depths) for depths in layout.down]
    settings = {
        "block_out_channels": list(layout.channels),
        "cross_attention_dim": layout.cross_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attending],
        "in_channels": layout.in_channels,
        "layers_per_block": _one_or_all([len(depths) for depths in layout.down]),
        "out_channels": layout.out_channels,
        "transformer_layers_per_block": _one_or_all(_depths(layout)),
        "up_block_types": ["CrossAttnUpBlock2D" if any(depths) else "UpBlock2D" for depths in layout.up],
        "use_linear_projection": layout.linear,
    }
    if not layout.middle:
        settings["mid_block_type"] = "UNetMidBlock2D" if layout.middle_resnets else None
    if unet_layout({**published, **settings}).up != layout.up:
        settings["reverse_transformer_layers_per_block"] = [_one_or_all(list(depths)) or 1 for depths in layout.up]
    if layout.label_dim:
        settings["projection_class_embeddings_input_dim"] = layout.label_dim
    if list(layout.channels) != published["block_out_channels"]:
        settings["attention_head_dim"] = _unet_heads(layout, family, notes)
        _check_groups("unet", layout.channels, published)
    return settings


def _depths(layout: UNetLayout) -> list[Any]:
    """Transformer blocks by level, 1 where there are none; the last level's number is also the middle's."""
    depths = [_one_or_all(list(level)) or 1 for level in layout.down]
    if layout.middle and not any(layout.down[-1]):
        depths[-1] = layout.middle
    return depths


def _unet_heads(layout: UNetLayout, family: Family, notes: list[str]) -> int | list[int]:
    """`attention_head_dim`, which in these configurations says how many heads there are."""
    if family.name == "sd1":
        if any(width % _SD1_HEADS for width in layout.channels):
            raise UnknownSetting(f"how many attention heads a U-Net of widths {list(layout.channels)} has is not known")
        notes.append(
            f"the file does not say how many attention heads its U-Net has: {_SD1_HEADS}, as in {family.title}"
        )
        return _SD1_HEADS
    widths = [width for width, depths in zip(layout.channels, layout.down, strict=True) if any(depths)]
    if any(width % _HEAD_WIDTH for width in widths):
        raise UnknownSetting(f"how many attention heads a U-Net of widths {list(layout.channels)} has is not known")
    notes.append(f"the file does not say how wide its U-Net's attention heads are: {_HEAD_WIDTH}, as in {family.title}")
    return [max(1, width // _HEAD_WIDTH) for width in layout.channels]


def _check_groups(component: str, channels: tuple[int, ...], published: Mapping[str, Any]) -> None:
    groups = published.get("norm_num_groups", 32)
    if any(width % groups for width in channels):
        raise UnknownSetting(
            f"how many normalisation groups the {component} of widths {list(channels)} has is not known"
        )


def _vae_settings(layout: VaeLayout, published: Mapping[str, Any]) -> dict[str, Any]:
    levels = len(layout.channels)
    if layout.latent_channels != published["latent_channels"]:
        raise UnknownSetting(f"how latents of {layout.latent_channels} channels are scaled is not known")
    _check_groups("vae", layout.channels, published)
    settings = {
        "block_out_channels": list(layout.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": layout.in_channels,
        "latent_channels": layout.latent_channels,
        "layers_per_block": _one_or_all(list(layout.layers)),
        "out_channels": layout.out_channels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    if not layout.attention:
        settings["mid_block_add_attention"] = False
    if not layout.quantised:
        settings |= {"use_quant_conv": False, "use_post_quant_conv": False}
    return settings


def _text_settings(
    component: str, layout: TextLayout, published: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    settings: dict[str, Any] = {key: getattr(layout, field) for key, field in _TEXT_SIZES.items()}
    if layout.projection:
        settings["projection_dim"] = layout.projection
    if layout.width != published["hidden_size"]:
        if layout.width % _HEAD_WIDTH:
            raise UnknownSetting(f"how many attention heads a {component} of width {layout.width} has is not known")
        settings["num_attention_heads"] = layout.width // _HEAD_WIDTH
        notes.append(f"the file does not say how wide its {component}'s attention heads are: {_HEAD_WIDTH}, as in CLIP")
    if layout.vocabulary != published["vocab_size"]:
        folder = known_tokenizer(layout.vocabulary)
        if folder is None:
            raise UnknownSetting(f"which tokens begin and end a text of {layout.vocabulary} tokens is not known")
        ids = vocabulary_of(folder)
        settings |= {"bos_token_id": ids["<|startoftext|>"], "eos_token_id": ids["<|endoftext|>"]}
        settings["pad_token_id"] = ids["<|endoftext|>"]
    return settings


def _flux_settings(layout: FluxLayout, published: Mapping[str, Any]) -> dict[str, Any]:
    if layout.head != published["attention_head_dim"]:
        raise UnknownSetting(f"how attention heads {layout.head} wide divide among the axes of a picture is not known")
    settings = {
        "attention_head_dim": layout.head,
        "guidance_embeds": layout.guidance,
        "in_channels": layout.in_channels,
        "joint_attention_dim": layout.text_dim,
        "num_attention_heads": layout.width // layout.head,
        "num_layers": layout.double,
        "num_single_layers": layout.single,
        "pooled_projection_dim": layout.pooled_dim,
    }
    return settings | ({"out_channels": layout.out_channels} if layout.out_channels != layout.in_channels else {})


def _sd3_settings(layout: Sd3Layout, published: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    head = layout.head or published["attention_head_dim"]
    if not layout.head and layout.width != head * published["num_attention_heads"]:
        notes.append(f"the file does not say how wide its transformer's attention heads are: {head}, as published")
    settings = {
        "attention_head_dim": head,
        "caption_projection_dim": layout.width,
        "in_channels": layout.in_channels,
        "joint_attention_dim": layout.text_dim,
        "num_attention_heads": layout.width // head,
        "num_layers": layout.depth,
        "out_channels": layout.out_rows // layout.patch**2,
        "patch_size": layout.patch,
        "pooled_projection_dim": layout.pooled_dim,
        "pos_embed_max_size": math.isqrt(layout.positions),
    }
    if layout.second:
        settings["dual_attention_layers"] = list(range(layout.second))
    return settings | ({"qk_norm": "rms_norm"} if layout.head else {})


def _t5_settings(layout: T5Layout) -> dict[str, Any]:
    return {
        "d_ff": layout.inner,
        "d_kv": layout.attention // layout.heads,
        "d_model": layout.width,
        "num_heads": layout.heads,
        "num_layers": layout.layers,
        "relative_attention_num_buckets": layout.buckets,
        "vocab_size": layout.vocabulary,
    }


def _one_or_all(counts: list[Any]) -> Any:
    """The number where all are alike, else all."""
    return counts[0] if all(count == counts[0] for count in counts) else counts
