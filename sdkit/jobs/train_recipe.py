"""A training run as a YAML file: the method, base, data and keys, one per line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdkit.core.errors import UsageError
from sdkit.families.bases import TINY
from sdkit.jobs.recipe.document import read_document
from sdkit.training.method import load_method
from sdkit.training.options import may_be_adapter


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
    files = [word for word, value in fields.items() if _is_path(word, value)]
    known = load_method(str(fields["method"]))[1].keys
    files += [
        word
        for word, value in fields.items()
        if word in known and known[word].names_file(value, lambda text: may_be_adapter(path.parent / text))
    ]
    for word in files:
        fields[word] = path.parent / str(fields[word])
    if "output" in fields:
        fields["target"] = fields.pop("output")
    return fields


def _is_path(word: str, value: Any) -> bool:
    """Whether a key of every recipe names a file; the base may be the embedded one."""
    return word in ("base", "data", "output") and bool(value) and (word, value) != ("base", TINY)
