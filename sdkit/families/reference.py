"""The published layout of each family, from the configurations that ship with sdkit: no weights, no file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from sdkit.core.errors import UsageError
from sdkit.families.assemble import block_names, components_of, kohya_modules, module_stacks, native_modules
from sdkit.families.configs import layout_of
from sdkit.families.family import Model, Place
from sdkit.families.identify import FAMILIES
from sdkit.families.parts import Parts
from sdkit.families.rules import Family
from sdkit.families.spell import spelled


@lru_cache(maxsize=32)
def reference(family: str, variant: str = "", naming: str = "diffusers") -> Model:
    """The standard model of a family, as if its published file lay here.

    Args:
        family: ``sd1``, ``sd2``, ``sdxl``, ``sdxl-refiner``, ``sd3``, ``flux``, ``flux2`` or ``z-image``.
        variant: what `Family.variants` of it names; by default the usual one.
        naming: whose keys the places have, ``diffusers`` or ``ldm``.

    Raises:
        UsageError: there is no such family or variant.
    """
    rules = _named(family)
    variant = variant or rules.usual
    parts = _published_parts(rules, variant, naming)
    components = components_of(rules, parts)
    places = {
        f"{component.name}.{row.hub}": Place(component.part.key(row), row.shape, row.rows, row.transposed, row.swapped)
        for component in components
        for row in component.parameters
    }
    return Model(
        family=family,
        variant=variant,
        naming=naming,
        components=tuple(component.name for component in components),
        reasons=(f"the published layout of {rules.title}",),
        places=places,
        block_names=block_names(parts),
        kohya_modules=kohya_modules(rules, components),
        native_modules=native_modules(components),
        stacks=module_stacks(components),
    )


def published(family: str) -> Iterator[Model]:
    """The published models of a family, one for each variant, the usual first; none where the family has no rules."""
    for rules in FAMILIES:
        if rules.name == family:
            yield from (reference(family, variant) for variant in rules.variants)


def published_config(folder: str, component: str) -> dict[str, Any]:
    """A configuration file of a published model (``sdxl/base``, ``unet``)."""
    from importlib import resources  # slow to import, and not needed to look at a file

    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    path = resources.files("sdkit").joinpath("assets", "families", *folder.split("/"), component, name)
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def _named(name: str) -> Family:
    family = next((family for family in FAMILIES if family.name == name), None)
    if family is None:
        known = ", ".join(family.name for family in FAMILIES)
        raise UsageError(f"there is no model family {name!r}", f"the families are {known}")
    return family


def _published_parts(family: Family, variant: str, naming: str) -> Parts:
    if variant not in family.variants:
        known = ", ".join(family.variants)
        raise UsageError(f"{family.title} has no variant {variant!r}", f"its variants are {known}")
    if variant in family.layouts:
        return Parts(None, spelled(family, {"transformer": family.layouts[variant]}, naming)["transformer"], None, ())
    folder = family.configs.get(variant, family.configs[family.usual])
    denoiser = "transformer" if family.flow else "unet"
    layouts = {name: layout_of(name, published_config(folder, name)) for name in (denoiser, "vae")}
    # A variant without a configuration of its own differs from the usual one in few numbers.
    sizes = family.sizes.get(variant, family.variants[variant])
    layouts[denoiser] = replace(layouts[denoiser], **sizes)  # type: ignore[arg-type]
    for encoder in family.text_encoders:
        layouts[encoder.component] = layout_of(encoder.component, published_config(folder, encoder.published))
    parts = spelled(family, layouts, naming)
    texts = tuple(parts[encoder.component] for encoder in family.text_encoders)
    return Parts(parts.get("unet"), parts.get("transformer"), parts["vae"], texts)
