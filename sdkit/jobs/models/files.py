"""Registering models: single ones, and those of whole folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdkit.core.errors import UsageError
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.jobs.models.listing import ModelList
from sdkit.jobs.models.verify import hash_registered, verify
from sdkit.jobs.pull import local_path
from sdkit.registry.facts import look_at
from sdkit.registry.registry import open_registry
from sdkit.registry.scan import Scanned, Watch, scan
from sdkit.registry.scan import add as add_file
from sdkit.registry.store import keep

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ScanReport(Report):
    """What scans found, a folder at a time."""

    scans: tuple[Scanned, ...]
    hashed: int


def add_models(
    paths: Iterable[PathLike], *, store: bool = False, hash: bool = False, progress: Progress | None = None
) -> ModelList:
    """Register files and folders of weights.

    Args:
        paths: of them; names and references will do.
        store: keep a copy of each in sdkit's own store, under its content's name.
        hash: read them whole at once, and not only when they are verified.
        progress: told about the bytes read.

    Raises:
        SdkitError: one of them is no weight file.
    """
    progress = progress or NoProgress()
    named = [Path(os.path.abspath(local_path(path, progress))) for path in paths]
    found = []
    with open_registry() as registry:
        for given in named:
            artifact, path = add_file(registry, given), given
            if store:
                name = registry.model(artifact).entry.name
                artifact = add_file(registry, kept := keep(path, progress), stored=True)
                registry.rename(artifact, name)
                path = kept
            if hash:
                artifact, _ = hash_registered(registry, look_at(path), progress)
            found.append(registry.model(artifact).entry)
    return ModelList(tuple(found), len(found))


def scan_models(
    folders: Sequence[PathLike] = (),
    *,
    hash: bool = False,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> ScanReport:
    """Register the models below folders; without any, below all that were scanned before.

    Raises:
        SdkitError: one of the folders is not there, or none was ever scanned.
    """
    with open_registry() as registry:
        roots = [Path(folder) for folder in folders] or [Path(root) for root in registry.roots() if Path(root).is_dir()]
        if not roots:
            raise UsageError("no folder was scanned yet", "sdkit models scan DIR")
        scans = tuple(scan(registry, root, watch) for root in roots)
        hashed = 0
        if hash:
            report = verify(registry, None, progress or NoProgress())
            hashed = sum(file.state not in ("missing", "damaged") for file in report.files)
        return ScanReport(scans, hashed)
