"""Finding the inputs of a recipe by their content, whatever they are called now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from sdkit.conversion.folder_id import folder_id, is_folder_id
from sdkit.core.errors import SdkitError
from sdkit.core.hashing import Span, digest_spans, quick_id
from sdkit.core.progress import Progress
from sdkit.families.bases import TINY, resolve_base
from sdkit.hubs import is_reference
from sdkit.jobs.converting.recipe import FOLDERS
from sdkit.jobs.pull import local_path
from sdkit.registry.registry import is_on, open_registry
from sdkit.weights import open_weights
from sdkit.weights.metadata import source_files

_SUFFIXES = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}
_FOLDER_MARKS = ("model_index.json", "*.index.json", "adapter_config.json", "config.json")


def wanted_by(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Everything a recipe names that must be here to follow it."""
    lent = [recipe[key] for key in FOLDERS if isinstance(recipe.get(key), Mapping)]
    return [*source_files(recipe), *lent]


def find_inputs(recipe: Mapping[str, Any], folders: Sequence[Path], progress: Progress) -> dict[str, Path]:
    """Where each input of a recipe lies, by its id.

    Args:
        recipe: whose parents are wanted, and the folders that lent it configurations or tokenizers.
        folders: where to look, subfolders included.
        progress: told about the bytes of what a hub has to send again.

    Raises:
        SdkitError: naming every one that is missing, with its hash.
    """
    found: dict[str, Path] = {}
    missing: list[str] = []
    for entry in wanted_by(recipe):
        name, content = str(entry.get("name")), str(entry.get("id"))
        if content in found or any(content in line for line in missing):
            continue
        if is_folder_id(content):
            candidates = _folders(name, folders)
        else:
            candidates = chain(_candidates(name, content, folders), _elsewhere(entry, progress))
        path = next((path for path in candidates if _is_it(path, entry)), None)
        if path is None:
            missing.append(f"{name} ({entry.get('sha256') or content})")
        else:
            found[content] = path
    if missing:
        raise SdkitError(f"missing: {', '.join(missing)}", "name the folders that hold them with --models DIR")
    return found


def _candidates(name: str, content: str, folders: Sequence[Path]) -> Iterator[Path]:
    """What could be the input: first what has its name, then what has its size, then folders of models."""
    size = content.split("-")[1] if content.count("-") == 2 else ""
    for folder in folders:
        if name and (folder / Path(name).name).exists():
            yield folder / Path(name).name
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in _SUFFIXES and path.is_file() and str(path.stat().st_size) == size:
                yield path
    for folder in folders:
        for mark in _FOLDER_MARKS:
            yield from (path.parent for path in sorted(folder.rglob(mark)))


def _elsewhere(entry: Mapping[str, Any], progress: Progress) -> Iterator[Path]:
    """What could be the input but is in none of the folders: registered models, sdkit's own, what a hub has."""
    if is_on():
        with open_registry() as registry:
            artifact = registry.artifact_of("quick", str(entry.get("id")))
            files = registry.model(artifact).files if artifact is not None else ()
        yield from (Path(file.path) for file in files if Path(file.path).exists())
    yield resolve_base(TINY)
    source = entry.get("source")
    if isinstance(source, str) and is_reference(source):
        yield local_path(source, progress)


def _folders(name: str, folders: Sequence[Path]) -> Iterator[Path]:
    """What could be a folder of configurations or tokenizers: first what has its name, then every other one."""
    yield from (folder / Path(name).name for folder in folders if name)
    for folder in folders:
        yield from (folder, *sorted(path for path in folder.rglob("*") if path.is_dir()))
    yield resolve_base(TINY)


def _is_it(path: Path, entry: Mapping[str, Any]) -> bool:
    if is_folder_id(str(entry.get("id"))):
        return path.is_dir() and folder_id(path) == entry["id"]
    try:
        with open_weights(path) as weights:
            files = weights.files
        same = quick_id(*files) == entry.get("id")
    except (SdkitError, OSError):  # something else of the same size, or a broken file
        return False
    sha256 = entry.get("sha256")
    return same and (not sha256 or digest_spans(path, [Span()]).sha256[0] == sha256)
