"""Configurations as diffusers and transformers publish them beside their weights, and the layouts they describe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sdkit.families.clip import TextLayout
from sdkit.families.flux_transformer import FluxLayout
from sdkit.families.parts import Layout, TransformerLayout
from sdkit.families.sd3_transformer import Sd3Layout
from sdkit.families.t5 import T5Layout
from sdkit.families.unet import UNetLayout
from sdkit.families.vae import VaeLayout
from sdkit.weights import Weights
from sdkit.weights.header import DamagedFileError

Config = Mapping[str, Any]
_TIME_DIM = 256  # of the timestep's sinusoids; diffusers has it in no configuration
CONFIG_KEY = "sdkit.config"  # metadata of a single file: {component: configuration}, as a folder would hold them


def stated_configs(weights: Weights) -> dict[str, dict[str, Any]]:
    """The configurations beside the weights: a folder's own, or those in a single file's metadata; else none.

    Raises:
        DamagedFileError: the metadata hold something else in their place.
    """
    if weights.configs or CONFIG_KEY not in weights.metadata:
        return weights.configs
    try:
        configs = json.loads(weights.metadata[CONFIG_KEY])
    except (ValueError, RecursionError):
        configs = None
    if not isinstance(configs, dict) or not all(isinstance(config, dict) for config in configs.values()):
        raise DamagedFileError(weights.path, f"the metadata {CONFIG_KEY} is no table of configurations")
    return configs


def layout_of(component: str, config: Config) -> Layout:
    """The layout that a component's configuration describes.

    Raises:
        KeyError, TypeError, ValueError: it lacks what decides the layout.
    """
    if component.startswith("text_encoder"):
        return t5_layout(config) if config.get("model_type") == "t5" else text_layout(config)
    if component == "transformer":
        return transformer_layout(config)
    return unet_layout(config) if component == "unet" else vae_layout(config)


def unet_layout(config: Config) -> UNetLayout:
    """The layout of a ``UNet2DConditionModel`` with this configuration."""
    channels = tuple(config["block_out_channels"])
    layers = _per_level(config["layers_per_block"], len(channels))
    depths = _per_level(config.get("transformer_layers_per_block", 1), len(channels))
    down_types, up_types = config["down_block_types"], config["up_block_types"]
    backwards = config.get("reverse_transformer_layers_per_block") or depths[::-1]
    middle = depths[-1] if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn" else 0
    return UNetLayout(
        channels=channels,
        down=tuple(_depths(*level) for level in zip(down_types, layers, depths, strict=True)),
        middle=_last(middle),
        middle_resnets=2 if middle else 0,
        up=tuple(
            _depths(kind, count + 1, depth)
            for kind, count, depth in zip(up_types, layers[::-1], backwards, strict=True)
        ),
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        time_dim=4 * channels[0],
        cross_dim=config["cross_attention_dim"],
        linear=bool(config.get("use_linear_projection", False)),
        label_dim=config.get("projection_class_embeddings_input_dim") or 0,
    )


def _per_level(value: Any, levels: int) -> list[Any]:
    return [value] * levels if isinstance(value, int) else list(value)


def _depths(kind: str, layers: int, depth: int | Sequence[int]) -> tuple[int, ...]:
    if not kind.startswith("CrossAttn"):
        return (0,) * layers
    return (depth,) * layers if isinstance(depth, int) else tuple(depth)


def _last(depth: int | Sequence[int]) -> int:
    return depth if isinstance(depth, int) else depth[-1]


def vae_layout(config: Config) -> VaeLayout:
    """The layout of an ``AutoencoderKL`` with this configuration."""
    channels = tuple(config["block_out_channels"])
    return VaeLayout(
        channels=channels,
        layers=(config["layers_per_block"],) * len(channels),
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        latent_channels=config["latent_channels"],
        attention=config.get("mid_block_add_attention", True),
        quantised=config.get("use_quant_conv", True),
    )


def transformer_layout(config: Config) -> TransformerLayout:
    """The layout of a ``FluxTransformer2DModel`` or ``SD3Transformer2DModel`` with this configuration."""
    head = config["attention_head_dim"]
    width = config["num_attention_heads"] * head
    if config["_class_name"] == "FluxTransformer2DModel":
        return FluxLayout(
            width=width,
            head=head,
            inner=4 * width,
            double=config["num_layers"],
            single=config["num_single_layers"],
            in_channels=config["in_channels"],
            out_channels=config.get("out_channels") or config["in_channels"],
            text_dim=config["joint_attention_dim"],
            pooled_dim=config["pooled_projection_dim"],
            time_dim=_TIME_DIM,
            guidance=config["guidance_embeds"],
        )
    return Sd3Layout(
        width=width,
        depth=config["num_layers"],
        second=len(config.get("dual_attention_layers", ())),
        head=head if config.get("qk_norm") else 0,
        inner=4 * width,
        patch=config["patch_size"],
        in_channels=config["in_channels"],
        out_rows=config["patch_size"] ** 2 * config["out_channels"],
        positions=config["pos_embed_max_size"] ** 2,
        text_dim=config["joint_attention_dim"],
        pooled_dim=config["pooled_projection_dim"],
        time_dim=_TIME_DIM,
    )


def t5_layout(config: Config) -> T5Layout:
    """The layout of a ``T5EncoderModel`` with this configuration."""
    return T5Layout(
        width=config["d_model"],
        attention=config["num_heads"] * config["d_kv"],
        heads=config["num_heads"],
        inner=config["d_ff"],
        layers=config["num_layers"],
        vocabulary=config["vocab_size"],
        buckets=config["relative_attention_num_buckets"],
    )


def text_layout(config: Config) -> TextLayout:
    """The layout of a ``CLIPTextModel`` (or ``…WithProjection``) with this configuration."""
    projects = "CLIPTextModelWithProjection" in config.get("architectures", ())
    return TextLayout(
        width=config["hidden_size"],
        inner=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        projection=config["projection_dim"] if projects else 0,
    )
