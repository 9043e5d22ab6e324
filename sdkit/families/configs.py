"""Configurations as diffusers and transformers publish them beside their weights, and the layouts they describe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sdkit.families.clip import TextLayout
from sdkit.families.unet import UNetLayout
from sdkit.families.vae import VaeLayout
from sdkit.weights import Weights
from sdkit.weights.header import DamagedFileError

Config = Mapping[str, Any]
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


def layout_of(component: str, config: Config) -> UNetLayout | VaeLayout | TextLayout:
    """The layout that a component's configuration describes.

    Raises:
        KeyError, TypeError, ValueError: it lacks what decides the layout.
    """
    if component.startswith("text_encoder"):
        return text_layout(config)
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
