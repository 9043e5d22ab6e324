"""Putting a model where another program looks for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.report import Report
from sdkit.jobs.pull import local_path
from sdkit.registry.facts import Facts, look_at
from sdkit.registry.registry import open_registry
from sdkit.registry.shelves import place_for, program_named
from sdkit.weights.atomic import AtomicFile, check_space
from sdkit.weights.atomic_folder import AtomicFolder

PathLike = str | os.PathLike[str]
Link = Literal["auto", "hard", "symbolic", "copy"]


@dataclass(frozen=True, slots=True)
class PlaceReport(Report):
    """Where a model was put.

    Attributes:
        output: the file or folder.
        link: ``hard``, ``symbolic`` or ``copy``; empty where it was there already.
        note: what is left to do.
    """

    output: str
    link: str
    note: str


def place_model(
    name: PathLike, program: str, root: PathLike, *, link: Link = "auto", subfolder: str = "", force: bool = False
) -> PlaceReport:
    """Put a model where a program looks for it, without a second copy where that is possible.

    Args:
        name: of the model, its path, or a reference.
        program: see `sdkit.registry.shelves.PROGRAMS`.
        root: the program's folder.
        link: ``hard`` (one disk), ``symbolic`` or ``copy``; ``auto`` takes the first that works.
        subfolder: of the shelf.
        force: replace what is there.

    Raises:
        SdkitError: the program does not load such a model, or there is another file of that name.
    """
    kind = program_named(program)
    if not Path(root).is_dir():
        raise SdkitError(f"{root}: no such folder", f"name {kind.title}'s folder with --root")
    path = Path(os.path.abspath(local_path(name)))
    facts = look_at(path)
    shelf = place_for(kind, Path(os.path.abspath(root)), facts.kind, facts.family, facts.format)
    target = _within(shelf, subfolder) / _placed_name(path, facts)
    note = "in InvokeAI, scan the folder in the model manager" if kind.name == "invokeai" else ""
    if target.exists() and os.path.samefile(target, path):
        return PlaceReport(str(target), "", note)
    if os.path.lexists(target) and (not force or target.is_dir()):
        raise SdkitError(f"{target}: is another file", "--force replaces a file; --subfolder puts it elsewhere")
    target.parent.mkdir(parents=True, exist_ok=True)
    used = _link(path, target, link, force=force)
    with open_registry() as registry:
        registry.observe(look_at(target))
    return PlaceReport(str(target), used, note)


def _placed_name(path: Path, facts: Facts) -> str:
    """The file's own name; a stored one goes by its model's."""
    with open_registry() as registry:
        entry = registry.model(registry.observe(facts)).entry
        stored = any(file.stored and file.path == str(path) for file in registry.model(entry.id).files)
    return f"{entry.name}{path.suffix}" if stored else path.name


def _within(shelf: Path, subfolder: str) -> Path:
    folder = shelf / subfolder
    if not Path(os.path.abspath(folder)).is_relative_to(shelf):
        raise UsageError(f"{subfolder}: lies outside of {shelf}", "name a folder below it")
    return Path(os.path.abspath(folder))


def _link(path: Path, target: Path, link: Link, *, force: bool) -> str:
    """Give a file a second name in one of the ways; returns the one that worked."""
    ways: dict[str, Callable[[Path, Path], None]] = {"hard": os.link, "symbolic": os.symlink, "copy": _copy}
    if path.is_dir():
        del ways["hard"]
    if link != "auto" and link not in ways:
        raise UsageError(f"{path}: a folder has no {link} links", "--link symbolic, or --link copy")
    chosen = list(ways) if link == "auto" else [link]
    partial = target.with_name(f".{target.name}.partial")
    for way in chosen:
        partial.unlink(missing_ok=True)
        try:
            ways[way](path, partial)
        except (OSError, NotImplementedError) as error:
            if way == chosen[-1]:
                raise SdkitError(f"{target}: cannot be made: {error}", "try --link copy") from error
            continue
        (os.replace if force else os.rename)(partial, target)
        return way
    raise AssertionError("the last way works or raises")


def _copy(path: Path, target: Path) -> None:
    if path.is_dir():
        with AtomicFolder(target) as folder:
            shutil.copytree(path, folder.work, dirs_exist_ok=True)
            folder.commit()
        return
    check_space(target, path.stat().st_size)
    with AtomicFile(target, overwrite=True) as file, open(path, "rb") as source:
        position = 0
        while block := source.read(4 << 20):
            file.write(block, position)
            position += len(block)
        file.commit()
