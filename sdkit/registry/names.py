"""Names in place of paths: everywhere a command takes a path, it takes the name of a registered model."""

from __future__ import annotations

import os
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.families.bases import TINY, resolve_base
from sdkit.registry.registry import is_on, open_registry, registry_exists


def resolve(text: str | os.PathLike[str]) -> Path:
    """The path a person means: one that exists, else the file of the model of that name, else the text as it is.

    ``tiny`` is always the base that comes with sdkit, whatever else is called so.

    Raises:
        SdkitError: several models have that name, or the file of the one that has it is gone.
    """
    path = Path(text)
    if text == TINY and not os.path.lexists(text):
        return resolve_base(text)
    if not isinstance(text, str) or os.path.lexists(text) or not _may_be_name(text):
        return path
    with open_registry() as registry:
        if not registry.named(text):
            return path
        entry = registry.find(text)
        files = [Path(file.path) for file in registry.model(entry.id).files]
    there = next((file for file in files if file.exists()), None)
    if there is None:
        where = f"it was {files[0]}" if files else "it is only known as a parent of others"
        raise SdkitError(f"{entry.name}: no file of it is there; {where}", "`sdkit models scan DIR` finds it again")
    return there


def known_names(beginning: str) -> list[str]:
    """The names that begin so, for a shell to offer; none where there is no registry, or it cannot be read."""
    if not is_on() or not registry_exists():
        return []
    try:
        with open_registry() as registry:
            return registry.names(beginning)
    except SdkitError:
        return []


def _may_be_name(text: str) -> bool:
    return bool(text) and not any(sign in text for sign in "/\\\0") and is_on() and registry_exists()
