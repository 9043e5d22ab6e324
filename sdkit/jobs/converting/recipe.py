"""What a converted file says of how it was converted, and what `sdkit.convert` was given by what a file says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sdkit.conversion.folder_id import folder_id
from sdkit.jobs.converting.options import AdapterOptions, CheckpointOptions
from sdkit.jobs.pull import source_of
from sdkit.weights import DType

# Options that name files which go in: recipes list them among the parents, in the order in which they are put in.
_PARENTS = frozenset({"base", "parts"})
# Options that name folders of which only configurations and vocabularies are read.
FOLDERS = ("configs", "tokenizer")
_CALLED = {"shard_bytes": "shard_size"}  # what `sdkit.convert` calls an option of another name


def told(options: CheckpointOptions | AdapterOptions) -> dict[str, object]:
    """The options as recipes say them: those that were chosen, and files by their content in place of their paths."""
    values = {name: getattr(options, name) for name in _names(type(options)) - _PARENTS}
    chosen = {name: value for name, value in values.items() if value is not None and value is not False}
    return {_CALLED.get(name, name): _told(name, value) for name, value in chosen.items()}


def _names(options: type[CheckpointOptions | AdapterOptions]) -> set[str]:
    return {field.name for field in fields(options)}


def _told(name: str, value: Any) -> object:
    if name == "bake_vae":
        return True  # it is the first parent behind the source
    if name == "shard_bytes":
        return f"{value}B"  # whoever writes 1GB and whoever writes 1000MB mean the same
    if name in FOLDERS:
        named = source_of(value)
        return {"name": named.get("name", value.absolute().name), "id": folder_id(value)}
    return value.name if isinstance(value, DType) else value


def given(recipe: Mapping[str, Any], found: Mapping[str, Path]) -> dict[str, Any]:
    """What `sdkit.convert` was given, its output and controls aside, by the recipe it wrote.

    Args:
        recipe: of a converted file.
        found: where its parents lie, and the folders of configurations and tokenizers, by their ids.

    Raises:
        LookupError, TypeError, ValueError: the recipe is damaged.
    """
    known = (_names(CheckpointOptions) | _names(AdapterOptions)) - _PARENTS - {"bake_vae"}
    options = {name: recipe[name] for name in sorted(_CALLED.get(name, name) for name in known) if name in recipe}
    options |= {name: found[options[name]["id"]] for name in FOLDERS if name in options}
    source, *others = recipe["parents"]
    bases = [found[entry["id"]] for entry in others if entry["role"] == "base"]
    put_in = [found[entry["id"]] for entry in others if entry["role"] != "base"]
    if recipe.get("bake_vae"):
        options["bake_vae"] = put_in.pop(0)
    options |= {"base": bases[0]} if bases else {}
    options |= {"parts": put_in} if put_in else {}
    return {"source": found[source["id"]], "to": recipe["to"], **options}
