"""Finding models in folders, and noticing what was moved, edited or deleted. Only headers are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.registry.facts import look_at, stamp_of
from sdkit.registry.looking import look_at_all
from sdkit.registry.registry import Registry
from sdkit.registry.shelves import find_program, shelves
from sdkit.registry.sidecars import take_sidecars

SUFFIXES = frozenset({".safetensors", ".ckpt", ".pt", ".pth", ".bin"})
_FOLDER_SIGNS = ("model_index.json", "adapter_config.json")  # a pipeline of diffusers, an adapter of PEFT
_BATCH = 100
_NOT_MODELS = frozenset({"node_modules", "site-packages", "__pycache__", "venv"})

Watch = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was not registered, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a scan found.

    Attributes:
        folders: that were looked through.
        program: whose shelves they are; empty for other folders.
        models: files and folders of weights that are there.
        new: of those, the ones never seen before.
        changed: known paths that hold something else, or were edited.
        missing: known files that are gone and were found nowhere else.
        skipped: files that look like weights and are none.
    """

    folders: tuple[str, ...]
    program: str
    models: int
    new: tuple[str, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def scan(registry: Registry, root: Path, watch: Watch | None = None) -> Scanned:
    """Register the models below a folder; of a program's root, those on its shelves.

    Args:
        watch: called with the number of files done and of all.

    Raises:
        SdkitError: there is no such folder.
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        raise SdkitError(f"{root}: no such folder", "sdkit models scan DIR")
    program = find_program(root)
    folders = shelves(program, root) if program else [root]
    found = [path for folder in folders for path in find_models(folder)]
    known = registry.stamps()
    skipped: list[Skipped] = []
    new, changed = _observe_all(registry, found, known, skipped, watch or (lambda done, total: None))
    gone = [path for path in known if _is_below(path, folders) and not os.path.exists(path)]
    left = registry.stamps()  # without those that were found elsewhere
    missing = [path for path in gone if path in left]
    registry.mark_missing(missing)
    registry.add_root(root, program.name if program else "")
    return Scanned(
        tuple(map(str, folders)),
        program.name if program else "",
        len(found) - len(skipped),
        tuple(new),
        tuple(changed),
        tuple(missing),
        tuple(skipped),
    )


def add(registry: Registry, path: Path, *, stored: bool = False) -> int:
    """Register one file or folder, with what lies beside it; returns its artifact.

    Raises:
        SdkitError: it is no weight file.
    """
    facts = look_at(path)
    _check_text(facts.path)
    with registry.writing():
        artifact = registry.observe(facts, stored=stored)
        take_sidecars(registry, artifact, facts.path)
    return artifact


def find_models(folder: Path) -> Iterator[Path]:
    """Weight files, pipelines and PEFT adapters below a folder. Links are followed, each folder is entered once."""
    entered: set[tuple[int, int]] = set()
    for place, names, files in os.walk(folder, followlinks=True):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in entered:
            names.clear()
            continue
        entered.add((here.st_dev, here.st_ino))
        if any(sign in files for sign in _FOLDER_SIGNS):
            names.clear()
            yield Path(place)
            continue
        # The states of a training run are no models of their own.
        run = {"state"} if "events.jsonl" in files else set[str]()
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in _NOT_MODELS | run)
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(place, name)


def _observe_all(
    registry: Registry, found: list[Path], known: dict[str, str], skipped: list[Skipped], watch: Watch
) -> tuple[list[str], list[str]]:
    new: list[str] = []
    changed: list[str] = []
    looked = look_at_all(list(_written_since(found, known, skipped)))
    done = 0
    while batch := list(islice(looked, _BATCH)):
        with registry.writing():  # a batch at a time: others may write between them
            for one in batch:
                if one.facts is None:
                    skipped.append(Skipped(str(one.path), one.reason))
                    continue
                (changed if str(one.path) in known else new).append(str(one.path))
                take_sidecars(registry, registry.observe(one.facts), one.path)
        done += len(batch)
        watch(done, len(found))
    return new, changed


def _written_since(paths: Iterable[Path], known: dict[str, str], skipped: list[Skipped]) -> Iterator[Path]:
    """Those that are new, or have been written since they were last looked at."""
    for path in paths:
        try:
            _check_text(path)
            if known.get(str(path)) != stamp_of(path):
                yield path
        except SdkitError as error:
            skipped.append(Skipped(os.fsencode(path).decode(errors="replace"), error.message))
        except OSError as error:
            skipped.append(Skipped(str(path), error.strerror or str(error)))


def _check_text(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise SdkitError("its name is no Unicode text", "rename the file") from None


def _is_below(path: str, folders: Iterable[Path]) -> bool:
    return any(path.startswith(f"{folder}{os.sep}") for folder in folders)
