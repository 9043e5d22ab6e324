"""A training run as a YAML file: the method, base, data and keys, one per line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdkit.core.errors import UsageError
from sdkit.families.bases import TINY
from sdkit.jobs.recipe.document import read_document
from sdkit.training.options import init_file, may_be_adapter

PATHS = ("base", "data", "output", "validation", "init", "class_data")


def read_recipe(path: Path) -> dict[str, Any]:
    """What a recipe says: ``method``, ``base``, ``data``, ``target``, and keys of the method.

    Paths in it are relative to the recipe's own folder.

    Raises:
        SdkitError: there is no such file.
        UsageError: it is no table of plain values, or names no method.
    """
    fields = read_document(path).value
    nested = next((key for key, value in fields.items() if isinstance(value, (dict, list))), None)
    if nested is not None:
        raise UsageError(f"{path}: {nested} should be one value")
    if "method" not in fields:
        raise UsageError(f"{path}: names no method", "begin it with `method: lora`")
    for key in PATHS:
        if fields.get(key) and not _is_no_path(key, fields[key], path.parent):
            fields[key] = path.parent / str(fields[key])
    if str(fields.get("sample", "")).endswith(".txt"):
        fields["sample"] = path.parent / fields["sample"]
    if "output" in fields:
        fields["target"] = fields.pop("output")
    return fields


def _is_no_path(key: str, value: Any, folder: Path) -> bool:
    """A base may be the embedded one, validation a share, and an embedding may begin as a word."""
    is_word = key == "init" and init_file(str(value)) is None and not may_be_adapter(folder / str(value))
    return is_word or isinstance(value, float) or (key, value) == ("base", TINY)
