"""Saying what a checkpoint is, from names, shapes and metadata alone, and keeping the reasons."""

from __future__ import annotations

from sdkit.core.human import plural
from sdkit.families import flux, flux2, sd1, sd2, sd3, sdxl, z_image
from sdkit.families.assemble import (
    BUFFER_SUFFIX,
    EMA_PREFIX,
    MARKERS,
    Claims,
    Component,
    anonymous_components,
    block_names,
    claim,
    components_of,
    kohya_modules,
    module_stacks,
    native_modules,
)
from sdkit.families.family import Model
from sdkit.families.others import KOLORS_LAYER, look_alike
from sdkit.families.parts import Parts, find_parts
from sdkit.families.prediction import find_prediction
from sdkit.families.rules import Family
from sdkit.weights import Weights

_FLOW = "it predicts a flow, straight from the noise to the picture, as all models of this family"
FAMILIES: tuple[Family, ...] = (
    sd1.FAMILY,
    sd2.FAMILY,
    sdxl.BASE,
    sdxl.REFINER,
    sd3.FAMILY,
    flux.FAMILY,
    flux2.FAMILY,
    z_image.FAMILY,
)


def identify(weights: Weights) -> Model:
    """Explain a checkpoint by its header.

    Never raises on a strange file: what no rule explains is of family ``unknown``, and `Model.reasons` says why.
    A single component that several families share (an autoencoder, a text encoder) is ``unknown`` too, but has its
    places. Buffers (``position_ids``) are in none of the model's lists.
    """
    shapes = {name: info.shape for name, info in weights.tensors.items()}
    parts = find_parts(shapes)
    objections = {family.name: family.objection(parts) for family in FAMILIES}
    family = next((family for family in FAMILIES if not objections[family.name]), None)
    # Kolors has SDXL's U-Net and one layer more, which adapts another text encoder to it; the first names of FLUX.1
    # and SD3 are those of newer families too.
    alien = look_alike(shapes) if parts.unet is None or f"{parts.unet.prefix}{KOLORS_LAYER}" in shapes else None
    if alien is not None and alien.family in objections:
        if parts.transformer is None:
            return _unread(weights, alien.family, [parts.broken or f"looks like {alien.title}, but not whole"])
        alien = None
    if alien is not None:
        reason = f"looks like {alien.title}, which this version does not read yet"
        return _unread(weights, alien.family or "unknown", [reason, *_denials(objections)])
    if family is not None:
        return _recognised(weights, family, parts, objections)
    if parts.broken:
        return _unread(weights, "unknown", [parts.broken])
    if parts.unet is not None:
        return _unread(weights, "unknown", _denials(objections))
    return _fragment(weights, parts)


def _recognised(weights: Weights, family: Family, parts: Parts, objections: dict[str, str]) -> Model:
    components = components_of(family, parts)
    claims = claim(weights.tensors, components)
    prediction, prediction_reason = (None, _FLOW) if family.flow else find_prediction(weights)
    faults = (*_faults(claims), *parts.oddities)
    reasons = (_description(family, parts), prediction_reason, *_denials(objections), *faults)
    return Model(
        family=family.name,
        variant=family.variant(parts),
        naming=parts.denoiser.naming if parts.denoiser else "",
        prediction=prediction,
        components=_component_names(components, weights),
        reasons=tuple(reason for reason in reasons if reason),
        places=claims.places,
        block_names=block_names(parts),
        kohya_modules=kohya_modules(family, components),
        native_modules=native_modules(components),
        stacks=module_stacks(components),
        markers=_markers(weights),
        ema=_ema(weights),
        unclaimed=_unclaimed(weights, claims),
        faults=faults,
    )


def _fragment(weights: Weights, parts: Parts) -> Model:
    """A file with neither U-Net nor transformer: perhaps a component on its own."""
    components = anonymous_components(parts)
    claims = claim(weights.tensors, components)
    names = _component_names(components, weights)
    if components:
        held = " and ".join(component.name for component in components)
        reasons = [f"it holds only {held}, which several families share, so it cannot say which"]
    else:
        reasons = [
            "it has neither a U-Net, nor a transformer, nor an autoencoder, nor a text encoder that this version knows"
        ]
    faults = (*_faults(claims), *parts.oddities)
    namings = {"ldm" if component.part.naming in ("ldm", "openclip") else "diffusers" for component in components}
    return Model(
        family="unknown",
        naming=namings.pop() if len(namings) == 1 else "",
        components=names,
        reasons=(*reasons, *faults),
        places=claims.places,
        markers=_markers(weights),
        ema=_ema(weights),
        unclaimed=_unclaimed(weights, claims),
        faults=faults,
    )


def _unread(weights: Weights, family: str, reasons: list[str]) -> Model:
    return Model(
        family=family,
        reasons=tuple(reasons),
        markers=_markers(weights),
        ema=_ema(weights),
        unclaimed=_unclaimed(weights, Claims()),
    )


def _description(family: Family, parts: Parts) -> str:
    layout, part = parts.unet_layout or parts.transformer_layout, parts.denoiser
    if layout is None or part is None:
        return family.title
    what, own = ("a U-Net", "LDM") if part is parts.unet else ("a transformer", "its makers'")
    names = own if part.naming == "ldm" else "diffusers"
    where = f"under {part.prefix.rstrip('./')}" if part.prefix else "without a prefix"
    return f"{family.title}: {what} with {names} names {where}, {layout.describe()}"


def _denials(objections: dict[str, str]) -> list[str]:
    return [f"not {name}: {objection}" for name, objection in objections.items() if objection]


def _faults(claims: Claims) -> list[str]:
    faults = []
    if claims.missing:
        faults.append(
            f"missing of this layout: {plural(len(claims.missing), 'tensor')}, the first is {claims.missing[0]}"
        )
    if claims.strange:
        faults.append(
            f"{len(claims.strange)} tensors have a shape, type or scale this layout does not have, "
            f"the first is {claims.strange[0]}"
        )
    return faults


def _component_names(components: list[Component], weights: Weights) -> tuple[str, ...]:
    """The components in the rules' names, and the folders the rules do not know (a safety checker)."""
    explained = {component.part.prefix.rstrip("/") for component in components}
    folders = {name.partition("/")[0] for name in weights.tensors if "/" in name}
    folders -= {folder for folder in folders if f"{folder}/adapter_config" in weights.configs}  # PEFT's, of adapters
    return tuple(sorted({component.name for component in components} | (folders - explained)))


def _markers(weights: Weights) -> tuple[str, ...]:
    return tuple(name for name in MARKERS if name in weights.tensors)


def _ema(weights: Weights) -> tuple[str, ...]:
    return tuple(name for name in weights.tensors if name.startswith(EMA_PREFIX))


def _unclaimed(weights: Weights, claims: Claims) -> tuple[str, ...]:
    known = {*(place.key for place in claims.places.values()), *MARKERS}
    return tuple(
        name
        for name in weights.tensors
        if name not in known and not name.startswith(EMA_PREFIX) and not name.endswith(BUFFER_SUFFIX)
    )
