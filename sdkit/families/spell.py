"""The same components under other names: how a model's parameters are called, and lie, in each naming."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdkit.families.assemble import components_of
from sdkit.families.clip import TextLayout
from sdkit.families.parameter import Parameter, Shape
from sdkit.families.parts import Layout, Part, find_parts
from sdkit.families.rules import Family
from sdkit.families.vae import is_attention_projection
from sdkit.weights import Weights

_PREFIXES = {
    "ldm": {
        "unet": "model.diffusion_model.",
        "transformer": "model.diffusion_model.",
    },
    "diffusers": {"unet": "unet/", "transformer": "transformer/", "vae": "vae/"},
}


@dataclass(frozen=True, slots=True)
class Spelling:
    """One parameter as a file of some naming holds it.

    Attributes:
        hub: the parameter, with its component in front.
        key: the tensor that holds it.
        shape: the tensor's shape; that of the parameter's own rows, where several share the tensor.
        rows: first and last row in a shared tensor.
        transposed: the tensor is the parameter's transpose.
        swapped: the tensor has the second half of the parameter's rows first.
    """

    hub: str
    key: str
    shape: Shape
    rows: tuple[int, int] | None = None
    transposed: bool = False
    swapped: bool = False


def parts_in(weights: Weights, family: Family) -> dict[str, Part]:
    """The components of `family` that a checkpoint holds."""
    parts = find_parts({name: info.shape for name, info in weights.tensors.items()})
    return {component.name: component.part for component in components_of(family, parts)}


def layouts_in(weights: Weights, family: Family) -> dict[str, Layout]:
    """Their layouts."""
    return {name: part.layout for name, part in parts_in(weights, family).items()}


def spelled(family: Family, layouts: Mapping[str, Layout], naming: str) -> dict[str, Part]:
    """Components of these layouts as a whole model of `family` names them.

    Args:
        naming: ``diffusers`` for a folder, ``ldm`` for a single file.
    """
    prefixes = {"vae": family.vae_prefix, **_PREFIXES[naming]}.items()
    parts = {name: Part(naming, prefix, layouts[name]) for name, prefix in prefixes if name in layouts}
    for encoder in family.text_encoders:
        if encoder.component in layouts:
            single = naming == "ldm"
            style = "hf" if encoder.style == "openclip" and not single else encoder.style
            prefix = encoder.prefix if single else f"{encoder.component}/"
            parts[encoder.component] = Part(style, prefix, layouts[encoder.component])
    return parts


def spelled_alone(component: str, layout: Layout, naming: str) -> Part:
    """A component in a file of its own: bare, except that a U-Net in LDM's names is known by its prefix.

    Programs that load text encoders from files of their own want transformers' names.
    """
    if component.startswith("text_encoder"):
        return Part("hf" if isinstance(layout, TextLayout) else "t5", "", layout)
    return Part(naming, _PREFIXES["ldm"]["unet"] if (component, naming) == ("unet", "ldm") else "", layout)


def spellings(parts: Mapping[str, Part]) -> list[Spelling]:
    """Every parameter of the components, in the order of their rules."""
    return [
        Spelling(f"{name}.{row.hub}", part.key(row), _stored(name, part, row), row.rows, row.transposed, row.swapped)
        for name, part in parts.items()
        for row in part.parameters()
    ]


def _stored(component: str, part: Part, row: Parameter) -> Shape:
    if row.transposed:
        return row.shape[::-1]
    if component == "vae" and part.naming == "ldm" and is_attention_projection(row.hub):
        return (*row.shape, 1, 1)  # LDM projects with 1×1 convolutions
    return row.shape
