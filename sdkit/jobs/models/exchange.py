"""The registry in and out: as JSON, and as the sidecars of other programs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdkit.core.report import Report
from sdkit.registry.exchange import exported, import_json
from sdkit.registry.previews import preview_png
from sdkit.registry.registry import open_registry
from sdkit.registry.rows import Model
from sdkit.registry.sidecars import PREVIEW, beside, find_previews, sidecar_texts, take_sidecars
from sdkit.weights.atomic import write_file

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ExportReport(Report):
    """What was written, and which sidecars were there already and stayed."""

    written: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImportReport(Report):
    """How many models are registered here, and how many only known of for the time being."""

    here: int
    elsewhere: int


def export_models(
    names: Sequence[str] = (), output: PathLike | None = None, *, sidecars: bool = False, force: bool = False
) -> ExportReport | dict[str, Any]:
    """Write what is known of models: as JSON, or as sidecars beside their files for other programs.

    Args:
        names: of models; without any, all.
        output: the JSON file; without one the table is returned.
        sidecars: write ``.civitai.info``, ``.json`` and a preview beside each file instead.
        force: replace what is there.
    """
    with open_registry() as registry:
        wanted = [registry.find(name).id for name in names] or [entry.id for entry in registry.entries()]
        if sidecars:
            return _write_sidecars([registry.model(one) for one in wanted], force=force)
        table = exported(registry, wanted)
    if output is None:
        return table
    write_file(Path(output), (json.dumps(table, indent=2) + "\n").encode(), overwrite=force)
    return ExportReport((str(output),), ())


def _write_sidecars(models: Sequence[Model], *, force: bool) -> ExportReport:
    written, kept = [], []
    for model in models:
        for file in [file for file in model.files if not file.missing and not file.stored]:
            path = Path(file.path)
            for target, text in sidecar_texts(model, path).items():
                if target.exists() and not force:
                    kept.append(str(target))
                    continue
                write_file(target, text.encode(), overwrite=force)
                written.append(str(target))
            pictures = find_previews(path, file.sha256)
            if pictures and pictures[0].parent != path.parent:
                write_file(beside(path, PREVIEW), preview_png(pictures[0]), overwrite=force)
                written.append(str(beside(path, PREVIEW)))
    return ExportReport(tuple(written), tuple(kept))


def import_models(path: PathLike) -> ImportReport:
    """Take over a JSON export, or the sidecars beside the registered files of a folder.

    Raises:
        SdkitError: it is neither.
    """
    path = Path(path)
    with open_registry() as registry:
        if not path.is_dir():
            return ImportReport(*import_json(registry, path))
        here = 0
        for entry in registry.entries():
            for file in registry.model(entry.id).files:
                if not file.missing and Path(file.path).is_relative_to(path.absolute()):
                    here += take_sidecars(registry, entry.id, Path(file.path))
        return ImportReport(here, 0)
