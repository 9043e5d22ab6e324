"""Reading, from the metadata of a file, what it was made from: sdkit's own recipes, and what kohya's scripts write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from sdkit.weights.metadata import VERSION_KEY, read_recipe, source_files

_DEEPEST = 20
_LONGEST_NAME = 200
_SHA256_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Input:
    """Something that went into a file.

    Attributes:
        scheme: what `value` is: ``quick`` or ``sha256``.
        value: names its content.
        name: what it was called; hostile text.
        role: ``base``, ``adapter``, ``a``, …
        strength: of an adapter; None where there is none.
    """

    scheme: str
    value: str
    name: str
    role: str
    strength: float | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """How a file was made.

    Attributes:
        verb: ``merge``, ``train``, …
        recipe: as JSON.
        inputs: what went in.
        version: of sdkit; empty for other programs.
        before: how the first of its inputs was made, where the recipe tells.
    """

    verb: str
    recipe: str
    inputs: tuple[Input, ...]
    version: str = ""
    before: Made | None = None

    @property
    def hash(self) -> str:
        """Names the recipe."""
        return hashlib.sha256(self.recipe.encode()).hexdigest()


def made_by(metadata: Mapping[str, str]) -> Made | None:
    """How a file was made, as its metadata tell; None where they do not."""
    recipe = read_recipe(metadata)
    if recipe is not None:
        return _made(recipe, metadata.get(VERSION_KEY, ""), 0)
    return _made_by_kohya(metadata)


def _made(recipe: Mapping[str, object], version: str, depth: int) -> Made | None:
    verb = recipe.get("verb")
    if not isinstance(verb, str) or depth > _DEEPEST:
        return None
    before = recipe.get("base_recipe")
    return Made(
        verb,
        json.dumps({key: value for key, value in recipe.items() if key != "base_recipe"}, sort_keys=True),
        tuple(entry for given in source_files(recipe) if (entry := _input(given)) is not None),
        version,
        _made(before, "", depth + 1) if isinstance(before, Mapping) else None,
    )


def _input(entry: Mapping[str, object]) -> Input | None:
    value, name, strength = entry.get("id"), entry.get("name"), entry.get("strength")
    if not isinstance(value, str) or not value:
        return None
    number = float(strength) if isinstance(strength, (int, float)) else None
    return Input("quick", value, str(name)[:_LONGEST_NAME], str(entry.get("role", "input")), number)


def _made_by_kohya(metadata: Mapping[str, str]) -> Made | None:
    """kohya's scripts name the base by its sha256, unless they were told not to."""
    value = metadata.get("ss_new_sd_model_hash", "").lower()
    if len(value) != _SHA256_DIGITS or not all(digit in "0123456789abcdef" for digit in value):
        return None
    name = metadata.get("ss_sd_model_name", "")[:_LONGEST_NAME] or value[:10]
    recipe = {"verb": "train", "method": metadata.get("ss_network_module", ""), "program": "kohya"}
    return Made("train", json.dumps(recipe, sort_keys=True), (Input("sha256", value, name, "base"),))
