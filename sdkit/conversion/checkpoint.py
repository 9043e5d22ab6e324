"""A checkpoint opened for conversion: where each parameter lies, in which file, and what must be said beside it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.families import identify
from sdkit.families.assemble import EMA_PREFIX, anonymous_components
from sdkit.families.clip import TextLayout
from sdkit.families.configs import layout_of, stated_configs
from sdkit.families.family import Model, Place
from sdkit.families.identify import FAMILIES
from sdkit.families.parts import Layout, Part, find_parts
from sdkit.families.rules import Family
from sdkit.families.spell import parts_in
from sdkit.families.vae import VaeLayout
from sdkit.weights import DTYPES, Weights
from sdkit.weights.memory import MemoryWeights
from sdkit.weights.reader import Container

Configs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Located:
    """A parameter where it lies."""

    weights: Weights
    place: Place


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is converted.

    Attributes:
        weights: the opened file or folder.
        model: what it was recognised as.
        family: its rules; None for an autoencoder or a text encoder on its own, which several families share.
        parts: the components to convert, as they are named in it.
        located: every parameter of them by its hub name.
        configs: the configurations stated beside the weights, by component; some or all may be missing.
        leftovers: what an earlier conversion laid beside a folder, for the way back.
    """

    weights: Weights
    model: Model
    family: Family | None
    parts: Mapping[str, Part]
    located: Mapping[str, Located]
    configs: Configs = field(default_factory=dict)
    leftovers: Weights | None = None

    @property
    def layouts(self) -> dict[str, Layout]:
        """The layout of each component."""
        return {name: part.layout for name, part in self.parts.items()}

    @property
    def is_single(self) -> bool:
        """Whether it is one file that names its tensors as LDM does."""
        return self.weights.container is not Container.FOLDER and self.model.naming == "ldm"

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of components."""
        return self.weights.container is Container.FOLDER

    @property
    def is_component(self) -> bool:
        """Whether it is one component, which a file or folder of its own holds."""
        return len(self.parts) == 1

    @property
    def draws(self) -> bool:
        """Whether it holds what predicts pictures: a U-Net, or a transformer in its place."""
        return "unet" in self.parts or "transformer" in self.parts

    @property
    def used(self) -> set[str]:
        """The names of its own tensors that hold the located parameters."""
        return {where.place.key for where in self.located.values() if where.weights is self.weights}

    def title(self) -> str:
        """What people call its kind."""
        if self.family is not None:
            return f"{self.family.title} {self.model.variant}"
        return "an autoencoder" if "vae" in self.parts else "a text encoder"


def read_checkpoint(
    weights: Weights, *, family: str | None = None, configs: Configs | None = None, leftovers: Weights | None = None
) -> Checkpoint:
    """Recognise opened weights as a checkpoint whose every parameter is there.

    Args:
        family: whose autoencoder or text encoder this is, where the file holds nothing else.
        configs: configurations that count instead of those beside the weights.

    Raises:
        SdkitError: it is no such checkpoint, it is damaged or quantised, or its configurations contradict its tensors.
    """
    model = identify(weights)
    rules = _family(model, family)
    parts = parts_in(weights, rules) if rules and model.family != "unknown" else _alone(weights, model)
    if not parts:
        raise SdkitError(f"{weights.path}: no checkpoint sdkit can convert: {_reasons(model)}", _inspect(weights))
    if model.faults:
        raise SdkitError(f"{weights.path}: cannot be converted: {model.faults[0]}", _inspect(weights))
    located = {hub: Located(weights, place) for hub, place in model.places.items() if hub.partition(".")[0] in parts}
    stated = {**_stated(weights, parts), **(configs or {})}
    checkpoint = Checkpoint(weights, model, rules, parts, located, stated, leftovers)
    _check_configs(checkpoint)
    return checkpoint


def _family(model: Model, name: str | None) -> Family | None:
    known = {family.name: family for family in FAMILIES}
    if name is not None and name not in known:
        raise UsageError(f"there is no model family {name!r}", nearest_hint(name, known))
    if name is not None and model.family not in ("unknown", name):
        raise SdkitError(f"it is a model of the family {model.family}, not {name}", "leave out --family")
    return known.get(name or model.family)


def _alone(weights: Weights, model: Model) -> dict[str, Part]:
    """The one component of a file or folder of its own."""
    found = find_parts({name: info.shape for name, info in weights.tensors.items()})
    parts = {component.name: component.part for component in anonymous_components(found)}
    return parts if len(parts) == 1 and set(model.components) == set(parts) else {}


def _reasons(model: Model) -> str:
    return "; ".join(model.reasons) or "no rule matches its keys"


def _inspect(weights: Weights) -> str:
    return f"`sdkit inspect {weights.path}` shows what it is"


def _stated(weights: Weights, parts: Mapping[str, Part]) -> Configs:
    """The configurations beside the weights; a component's own folder has only its own."""
    stated = stated_configs(weights)
    if "config" in stated and len(parts) == 1:
        return {next(iter(parts)): stated["config"]}
    return stated


def _check_configs(checkpoint: Checkpoint) -> None:
    """Refuse configurations of another model: whoever runs the result would believe them."""
    for name, part in checkpoint.parts.items():
        config = checkpoint.configs.get(name)
        if config is None:
            continue
        try:
            layout: Layout | None = layout_of(name, config)
        except (KeyError, TypeError, ValueError, IndexError):
            layout = None
        if layout is None or _comparable(layout) != _comparable(part.layout):
            raise SdkitError(
                f"{checkpoint.weights.path}: the configuration of its {name} describes other tensors than it holds",
                "name a folder with the right configurations: --configs FOLDER",
            )


def _comparable(layout: Layout) -> Layout:
    """What a configuration reliably says: not whether a text encoder projects, which lies in its class."""
    return replace(layout, projection=0) if isinstance(layout, TextLayout) else layout


def one_component(checkpoint: Checkpoint, component: str) -> Checkpoint:
    """One component of it.

    Raises:
        UsageError: it has no such component.
    """
    if component not in checkpoint.parts:
        raise UsageError(
            f"{checkpoint.weights.path}: has no component {component!r}", f"it has {', '.join(checkpoint.parts)}"
        )
    located = {hub: where for hub, where in checkpoint.located.items() if hub.startswith(f"{component}.")}
    return replace(checkpoint, parts={component: checkpoint.parts[component]}, located=located, leftovers=None)


def with_projections(checkpoint: Checkpoint, notes: list[str]) -> Checkpoint:
    """The identity in place of a projection of the pooled text that a file of SD3 leaves out, as readers take it.

    A folder has to spell it out: what is not there, transformers fills with random numbers.
    """
    parts, located = dict(checkpoint.parts), dict(checkpoint.located)
    for encoder in checkpoint.family.text_encoders if checkpoint.family else ():
        part = parts.get(encoder.component)
        if part is None or not isinstance(part.layout, TextLayout) or part.layout.projection:
            continue
        if encoder.projects and part.naming == "hf":
            width, hub = part.layout.width, f"{encoder.component}.text_projection.weight"
            parts[encoder.component] = replace(part, layout=replace(part.layout, projection=width))
            located[hub] = Located(_identity(width), Place("identity", (width, width)))
            notes.append(f"its {encoder.component} has no projection: the identity is written, as programs take it")
    return replace(checkpoint, parts=parts, located=located)


def _identity(size: int) -> MemoryWeights:
    row = struct.pack("<f", 1.0) + b"\0" * 4 * size
    return MemoryWeights("identity", {"identity": (DTYPES["F32"], (size, size), (row * size)[: 4 * size * size])}, {})


def with_ema(checkpoint: Checkpoint) -> Checkpoint:
    """The averaged copy of the U-Net's weights in place of the last ones.

    Raises:
        SdkitError: there is no complete copy.
    """
    tensors, located = checkpoint.weights.tensors, dict(checkpoint.located)
    if not checkpoint.model.ema:
        raise SdkitError(f"{checkpoint.weights.path}: holds no EMA copy", "leave out --ema")
    for hub, where in checkpoint.located.items():
        if not hub.startswith("unet."):
            continue
        # LitEma registers its buffers under the parameter's name without dots, and without the outermost module.
        key = EMA_PREFIX + "".join(where.place.key.split(".")[1:])
        if key not in tensors or tensors[key].shape != tensors[where.place.key].shape:
            raise SdkitError(f"{checkpoint.weights.path}: its EMA copy lacks {where.place.key}", "leave out --ema")
        located[hub] = replace(where, place=replace(where.place, key=key))
    return replace(checkpoint, located=located)


def with_vae(checkpoint: Checkpoint, vae: Checkpoint) -> Checkpoint:
    """Another model's autoencoder in place of its own.

    Raises:
        SdkitError: it has none, or one for latents of other channels.
    """
    part = vae.parts.get("vae")
    if part is None or not isinstance(part.layout, VaeLayout):
        raise SdkitError(f"{vae.weights.path}: holds no autoencoder", "--bake-vae takes a file or folder with one")
    own = checkpoint.parts.get("vae")
    latents = own.layout.latent_channels if own and isinstance(own.layout, VaeLayout) else 4
    if part.layout.latent_channels != latents:
        raise SdkitError(f"{vae.weights.path}: its latents have {part.layout.latent_channels} channels, not {latents}")
    located = {hub: where for hub, where in checkpoint.located.items() if not hub.startswith("vae.")}
    located |= {hub: where for hub, where in vae.located.items() if hub.startswith("vae.")}
    configs = dict(checkpoint.configs)
    if "vae" in vae.configs:
        configs["vae"] = vae.configs["vae"]
    elif own is None or own.layout != part.layout:
        configs.pop("vae", None)
    here = replace(own, layout=part.layout) if own else part
    return replace(checkpoint, parts={**checkpoint.parts, "vae": here}, located=located, configs=configs)
