"""From components and a family to a `Model`: which parameter lies where, and which keys nothing explains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from sdkit.families.clip import TextLayout
from sdkit.families.family import Place, Stack
from sdkit.families.kohya import flat_modules
from sdkit.families.parameter import Parameter, Shape, is_module_weight, module_of
from sdkit.families.parts import Part, Parts
from sdkit.families.rules import Family, TextEncoder
from sdkit.families.stacks import single_file_modules, stacks
from sdkit.families.unet import unet_blocks
from sdkit.weights import TensorInfo

MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
EMA_PREFIX = "model_ema."
BUFFER_SUFFIX = "embeddings.position_ids"  # 0, 1, 2, …: some files hold it, as integers; it is nothing to merge
# Beside weights quantised in ways nothing here can compute with; unless they are fp8 times one number.
_SCALE_SUFFIXES = (".weight_scale", ".comfy_quant", ".absmax")


@dataclass(frozen=True, slots=True)
class Component:
    """A found component and the name it has in its family."""

    name: str
    part: Part
    parameters: list[Parameter]

    @property
    def native(self) -> list[Parameter]:
        """Its parameters as a single file has them, whatever this checkpoint's naming."""
        return replace(self.part, naming="ldm").parameters()


@dataclass(slots=True)
class Claims:
    """What the rules explain of a checkpoint, and what they miss in it.

    Attributes:
        places: hub parameter → where it lies.
        missing: keys the layout calls for that the checkpoint lacks.
        strange: keys with a shape or type the layout cannot have.
    """

    places: dict[str, Place] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)


def components_of(family: Family, parts: Parts) -> list[Component]:
    """The components the family has a name for, in diffusers' order."""
    found: list[Component] = []
    for encoder in family.text_encoders:
        for part in parts.texts:
            if part.prefix in encoder.prefixes() and all(component.name != encoder.component for component in found):
                used = _used(part, encoder)
                found.append(Component(encoder.component, used, used.parameters()))
    found += [Component(name, part, part.parameters()) for name, part in _image_parts(parts)]
    return sorted(found, key=lambda component: component.name)


def _used(part: Part, encoder: TextEncoder) -> Part:
    """The part of a text encoder that the family's pipeline runs."""
    layout = part.layout
    if not isinstance(layout, TextLayout):
        return part
    layers = min(layout.layers, encoder.max_layers or layout.layers)
    return replace(part, layout=replace(layout, layers=layers, projection=layout.projection if encoder.projects else 0))


def anonymous_components(parts: Parts) -> list[Component]:
    """Components of a file with neither U-Net nor transformer, which several families share."""
    texts = [part for part in parts.texts if part.prefix in ("", "text_encoder/", "text_encoder_2/")]
    found = [Component(part.prefix[:-1] or "text_encoder", part, part.parameters()) for part in texts]
    return found + [Component(name, part, part.parameters()) for name, part in _image_parts(parts) if name == "vae"]


def _image_parts(parts: Parts) -> Iterable[tuple[str, Part]]:
    found = (("unet", parts.unet), ("transformer", parts.transformer), ("vae", parts.vae))
    return [(name, part) for name, part in found if part is not None]


def claim(tensors: Mapping[str, TensorInfo], components: Iterable[Component]) -> Claims:
    """Match the components' parameters with the tensors of a checkpoint."""
    claims = Claims()
    scaled = {key.rpartition(".")[0] for key in tensors if key.endswith(_SCALE_SUFFIXES)}
    scaled = {layer for layer in scaled if not _is_scaled_fp8(tensors, layer)}
    for component in components:
        for parameter in component.parameters:
            key = component.part.key(parameter)
            info = tensors.get(key)
            if info is None:
                claims.missing.append(key)
                continue
            place = _place(key, info, parameter)
            if place is None or key.removesuffix(".weight") in scaled or key in scaled:
                claims.strange.append(key)
            else:
                claims.places[f"{component.name}.{parameter.hub}"] = place
    return claims


def _is_scaled_fp8(tensors: Mapping[str, TensorInfo], layer: str) -> bool:
    weight, scale = tensors.get(f"{layer}.weight"), tensors.get(f"{layer}.weight_scale")
    return bool(weight and scale and weight.dtype.name.startswith("F8_E") and scale.numel == 1)


def _place(key: str, info: TensorInfo, parameter: Parameter) -> Place | None:
    """The place, unless the tensor is of another shape (but for trailing ones) or holds no numbers to compute with."""
    stored = parameter.shape
    if parameter.rows:
        stored = (parameter.height, *stored[1:])
    if parameter.transposed:
        stored = stored[::-1]
    if info.shape != stored and not _same_but_ones(info.shape, stored) or not info.dtype.is_float:
        return None
    return Place(key, parameter.shape, parameter.rows, parameter.transposed, parameter.swapped)


def _same_but_ones(one: Shape, other: Shape) -> bool:
    short, long = sorted((one, other), key=len)
    return long[: len(short)] == short and all(size == 1 for size in long[len(short) :])


def kohya_modules(family: Family, components: Iterable[Component]) -> dict[str, str]:
    """The flattened names of the modules of all components adapters change."""
    prefixes = {encoder.component: encoder.kohya for encoder in family.text_encoders}
    modules: dict[str, str] = {}
    for component in components:
        if component.name == "unet":
            modules |= flat_modules("unet", "lora_unet", component.parameters, ldm=True)
        elif component.name == "transformer":  # sd-scripts has the single file's names, OneTrainer diffusers'
            single = single_file_modules("transformer", component.native)
            modules |= {f"lora_unet_{name.replace('.', '_')}": module for name, module in single.items()}
            modules |= flat_modules("transformer", "lora_transformer", component.parameters)
        elif component.name in prefixes:
            modules |= flat_modules(component.name, prefixes[component.name], component.parameters)
    return modules


def native_modules(components: Iterable[Component]) -> dict[str, str]:
    """Hub module, or stack, → its dotted name in the single file, for every layer and normalisation."""
    names: dict[str, str] = {}
    for component in components:
        if component.name == "transformer":
            single = single_file_modules("transformer", component.native)
            names |= {module: name for name, module in single.items()}
        else:
            rows = filter(is_module_weight, component.parameters)
            names |= {f"{component.name}.{module_of(row.hub)}": module_of(row.ldm) for row in rows}
    return names


def module_stacks(components: Iterable[Component]) -> dict[str, Stack]:
    """The modules of a transformer's single file that are no module of diffusers'."""
    found = (stacks("transformer", component.native) for component in components if component.name == "transformer")
    return next(found, {})


def block_names(parts: Parts) -> dict[str, str]:
    """The web UIs' block names by hub module."""
    if parts.transformer_layout is not None:
        return {f"transformer.{module}": block for module, block in parts.transformer_layout.blocks().items()}
    layout = parts.unet_layout
    return {f"unet.{module}": block for module, block in unet_blocks(layout).items()} if layout else {}
