"""Checkpoints without weights: headers of real models, and headers made from a table of shapes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sdkit.families import reference
from sdkit.weights import DTYPES, TensorInfo, Weights
from sdkit.weights.reader import Container

HEADERS = Path(__file__).parent / "headers"
Shapes = Mapping[str, tuple[int, ...]]


def weights_of(
    shapes: Shapes,
    dtypes: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    configs: Mapping[str, dict[str, Any]] | None = None,
) -> Weights:
    """A header with these tensors and nothing behind it."""
    types = dtypes or {}
    tensors = {name: TensorInfo(name, DTYPES[types.get(name, "F16")], shape, 0) for name, shape in shapes.items()}
    return Weights(Path("model.safetensors"), Container.SAFETENSORS, [], tensors, metadata or {}, configs=configs)


def single_file_shapes(
    family: str, variant: str = "", components: Collection[str] = (), *, bare: bool = False
) -> dict[str, tuple[int, ...]]:
    """The tensors of a published model's single file: of all components or some, with its prefix or without."""
    shapes: dict[str, tuple[int, ...]] = {}
    for hub, place in reference(family, variant, naming="ldm").places.items():
        if components and hub.partition(".")[0] not in components:
            continue
        key = place.key.removeprefix("model.diffusion_model.") if bare else place.key
        height = max(place.rows[1], shapes.get(key, (0,))[0]) if place.rows else place.shape[0]
        shape = (height, *place.shape[1:])
        shapes[key] = shape[::-1] if place.transposed else shape
    return shapes


def real_header(name: str) -> Weights:
    """The header of a real model in ``tests/headers``."""
    table = json.loads((HEADERS / f"{name}.json").read_text())
    shapes = {key: tuple(shape) for key, (_, shape) in table.items()}
    return weights_of(shapes, {key: dtype for key, (dtype, _) in table.items()})
