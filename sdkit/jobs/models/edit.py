"""What a person says of models, and forgetting them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdkit.core.errors import SdkitError
from sdkit.core.report import Report
from sdkit.registry.facts import stamp_of
from sdkit.registry.registry import open_registry
from sdkit.registry.rows import Entry, File, Model


@dataclass(frozen=True, slots=True)
class RemoveReport(Report):
    """What was forgotten, and which files were deleted."""

    names: tuple[str, ...]
    deleted: tuple[str, ...]


def rename_model(name: str, new: str) -> Entry:
    """Give a model another name; its files keep theirs."""
    with open_registry() as registry:
        entry = registry.find(name)
        registry.rename(entry.id, new)
        return registry.model(entry.id).entry


def change_words(
    table: Literal["tags", "triggers", "notes", "licences"], name: str, words: Sequence[str], *, remove: bool = False
) -> Model:
    """Give a model tags, trigger words, notes or a licence, or take them away."""
    kept = [word.strip() for word in words if word.strip()]
    with open_registry() as registry:
        entry = registry.find(name)
        (registry.remove_words if remove else registry.add_words)(table, entry.id, kept)
        return registry.model(entry.id)


def remove_models(names: Sequence[str], *, delete: bool = False) -> RemoveReport:
    """Forget models. Their files stay, unless `delete` says otherwise.

    Raises:
        SdkitError: a name is unknown or names several, or a file may not be deleted; nothing is forgotten then.
    """
    with open_registry() as registry:
        models = [registry.model(registry.find(name).id) for name in names]
        files = [file for model in models for file in model.files if delete and os.path.lexists(file.path)]
        for file in files:
            _check_deletable(file)
        for file in files:
            Path(file.path).unlink()
        for model in models:
            registry.remove(model.entry.id)
    return RemoveReport(tuple(model.entry.name for model in models), tuple(file.path for file in files))


def _check_deletable(file: File) -> None:
    """Refuse to delete what may be more, or something else, than the model that was registered."""
    path = Path(file.path)
    if path.is_dir():
        raise SdkitError(f"{path}: is a folder, which sdkit does not delete", "delete it yourself")
    if path.exists() and stamp_of(path) != file.stamp:
        raise SdkitError(f"{path}: was written since it was registered", "look at it, and `sdkit models add` it again")
