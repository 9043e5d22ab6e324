"""Checkpoints without weights: headers of real models, and headers made from a table of shapes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from header_files import HEADERS, real_header, weights_of

from sdkit.families import Model
from sdkit.weights import Weights


def stored_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The tensors a checkpoint with these places has: several parameters in one where they share it, and so on."""
    heights: dict[str, int] = {}
    for place in model.places.values():
        heights[place.key] = max(heights.get(place.key, 0), place.rows[1] if place.rows else 0)
    shapes: dict[str, tuple[int, ...]] = {}
    for place in model.places.values():
        shape = (heights[place.key], *place.shape[1:]) if place.rows else place.shape
        shapes[place.key] = shape[::-1] if place.transposed else shape
    return shapes


@pytest.fixture(scope="session")
def make_weights() -> Callable[..., Weights]:
    """Make a header: `make_weights({name: shape}, dtypes=…, metadata=…, configs=…)`."""
    return weights_of


@pytest.fixture(scope="session")
def tensors_of() -> Callable[[Model], dict[str, tuple[int, ...]]]:
    """The names and stored shapes a model's places call for."""
    return stored_shapes


@pytest.fixture(scope="session")
def header() -> Callable[[str], Weights]:
    """The header of a real model in ``tests/headers``."""
    return real_header


@pytest.fixture(scope="session")
def kohya_list() -> Callable[[str], dict[str, tuple[int, ...]]]:
    """The modules kohya trains in a family, with the shapes of their weights."""

    def read(family: str) -> dict[str, tuple[int, ...]]:
        table = json.loads((HEADERS / f"{family}-kohya-lora-modules.json").read_text())
        return {name: tuple(shape) for name, shape in table.items()}

    return read
