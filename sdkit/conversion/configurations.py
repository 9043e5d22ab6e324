"""The configuration each component of a folder gets: its own, else the family's published one fitted to its header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from sdkit.conversion.checkpoint import Checkpoint
from sdkit.core.errors import SdkitError
from sdkit.families.configs import layout_of
from sdkit.families.describe import describe_component, encoder_like, published_encoders, published_folder
from sdkit.families.identify import FAMILIES
from sdkit.families.parts import Layout
from sdkit.families.reference import published_config
from sdkit.families.rules import Family
from sdkit.families.vae import VaeLayout

Config = Mapping[str, Any]


def configurations(chosen: Checkpoint, warnings: list[str]) -> dict[str, Config]:
    """A configuration for each component; what had to be supposed goes to `warnings`.

    Raises:
        SdkitError: a setting follows from nothing.
    """
    return {name: chosen.configs.get(name) or _fitted(chosen, name, warnings) for name in chosen.parts}


def _fitted(chosen: Checkpoint, name: str, warnings: list[str]) -> Config:
    layout, family = chosen.layouts[name], chosen.family
    if family is None:
        return _anybodys(chosen, layout)
    if chosen.model.family == "unknown" and not isinstance(layout, VaeLayout):
        name = encoder_like(family, layout) or _strange(chosen, family)
    folder = published_folder(family, chosen.model.variant)
    sources = {encoder.component: encoder.published for encoder in family.text_encoders}
    return describe_component(name, layout, published_config(folder, sources.get(name, name)), family, warnings)


def _strange(chosen: Checkpoint, family: Family) -> NoReturn:
    raise SdkitError(
        f"{chosen.weights.path}: it cannot be told which text encoder of {family.title} it is",
        "name a folder with its configuration: --configs FOLDER",
    )


def _anybodys(chosen: Checkpoint, layout: Layout) -> Config:
    """The configuration of a text encoder alone: those of one size are configured alike in all families."""
    if not isinstance(layout, VaeLayout):
        for family in filter(_is_configured, FAMILIES):
            for config in published_encoders(family).values():
                if layout_of("text_encoder", config) == layout:
                    return config
        raise SdkitError(
            f"{chosen.weights.path}: is a text encoder of nobody's published sizes",
            "say whose it is: --family NAME, or name a folder with its configuration: --configs FOLDER",
        )
    channels = layout.latent_channels
    fitting = [family.name for family in filter(_is_configured, FAMILIES) if _vae_channels(family) == channels]
    raise SdkitError(
        f"{chosen.weights.path}: which family's autoencoder it is, and with that how its latents are scaled, "
        "does not follow from its tensors",
        f"say it: --family {' or '.join(fitting)}" if fitting else "name a folder that says it: --configs FOLDER",
    )


def _is_configured(family: Family) -> bool:
    return bool(family.configs)


def _vae_channels(family: Family) -> int:
    channels: int = published_config(published_folder(family, family.usual), "vae")["latent_channels"]
    return channels
