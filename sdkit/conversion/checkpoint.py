"""A checkpoint opened for conversion: where each parameter lies, in which file, and what must be said beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.families import identify
from sdkit.families.assemble import anonymous_components
from sdkit.families.clip import TextLayout
from sdkit.families.configs import layout_of, stated_configs
from sdkit.families.family import Model, Place
from sdkit.families.identify import FAMILIES
from sdkit.families.parts import Layout, Part, find_parts
from sdkit.families.rules import Family
from sdkit.families.spell import parts_in
from sdkit.weights import Weights
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
    if rules is not None and not rules.configs:
        raise SdkitError(
            f"{weights.path}: checkpoints of {rules.title} are not converted yet; adapters are, and merged into it",
            _inspect(weights),
        )
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
        if not describes(name, config, part.layout):
            raise SdkitError(
                f"{checkpoint.weights.path}: the configuration of its {name} describes other tensors than it holds",
                "name a folder with the right configurations: --configs FOLDER",
            )


def describes(component: str, config: Mapping[str, Any], layout: Layout) -> bool:
    """Whether a configuration is one of such a component."""
    try:
        return _comparable(layout_of(component, config)) == _comparable(layout)
    except (KeyError, TypeError, ValueError, IndexError):
        return False


def _comparable(layout: Layout) -> Layout:
    """What a configuration reliably says: not whether a text encoder projects, which lies in its class."""
    return replace(layout, projection=0) if isinstance(layout, TextLayout) else layout
