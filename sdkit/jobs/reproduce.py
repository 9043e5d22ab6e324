"""Rebuilding a file from the recipe it carries, and saying whether the bytes agree."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.jobs.pull import known_as, local_path
from sdkit.jobs.record import unrecorded
from sdkit.jobs.reproducing.comparing import compare
from sdkit.jobs.reproducing.finding import find_inputs, wanted_by
from sdkit.jobs.reproducing.rebuilding import VERBS, Rebuild
from sdkit.weights import open_weights
from sdkit.weights.atomic import check_target
from sdkit.weights.metadata import VERSION_KEY, read_recipe

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ReproduceReport(Report):
    """What a rebuilt file is like.

    Attributes:
        model: the file or folder whose recipe was followed.
        output: the rebuilt one; empty where it was only compared.
        inputs: name in the recipe → where it was found.
        identical: whether every byte agrees.
        differing: names of tensors whose bytes, types or shapes differ, or that only one of the two has; where all
            weights agree, of the files of a folder that differ.
        notes: facts that explain a difference.
        seconds: wall time.
    """

    model: str
    output: str
    inputs: dict[str, str]
    identical: bool
    differing: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float


def reproduce(
    model: PathLike,
    folders: Sequence[PathLike] = (),
    output: PathLike | None = None,
    *,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ReproduceReport:
    """Rebuild a model from the recipe in its metadata, and compare.

    Inputs are found by content, whatever they are called now: in the folders, in the registry, and on the hub that the
    recipe names.

    Args:
        model: a file or folder that `blend`, `merge`, `convert`, `run` or a calculation with adapters has written.
        folders: where to look for inputs, subfolders included; the model's own folder is searched as well.
        output: keep the rebuilt file here; default: it is removed after the comparison.
        force: replace an existing output.
        threads: workers.
        progress: told about the bytes written.

    Raises:
        SdkitError: the file has no recipe sdkit can follow, or an input is missing; it is named with its hash.
    """
    began, path = time.perf_counter(), local_path(model)
    with open_weights(path) as weights:
        metadata = dict(weights.metadata)
    recipe = _followable(path, read_recipe(metadata))
    places = [*map(Path, folders), path.absolute().parent]
    found = find_inputs(recipe, places, progress or NoProgress())
    if output is not None and not force:
        check_target(Path(output), overwrite=False)
    with ExitStack() as stack:
        target = Path(output) if output is not None else _scratch(stack) / path.absolute().name
        controls = {"force": force, "threads": threads, "progress": progress or NoProgress()}
        stack.enter_context(known_as(_facts(recipe, found)))
        try:
            Rebuild(recipe, found, stack, controls).write(target)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise SdkitError(f"{path}: its recipe is damaged: {type(error).__name__}: {error}") from None
        differing, identical = compare(path, target)
    return ReproduceReport(
        model=str(path),
        output=str(output) if output is not None else "",
        inputs={str(entry["name"]): str(found[str(entry["id"])]) for entry in wanted_by(recipe)},
        identical=identical,
        differing=tuple(differing),
        notes=() if identical else tuple(_explanations(metadata)),
        seconds=time.perf_counter() - began,
    )


def _followable(path: Path, recipe: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if recipe is None:
        raise SdkitError(f"{path}: carries no recipe", "only what sdkit has made of other files says how")
    verb = recipe.get("verb")
    if verb not in VERBS:
        raise SdkitError(f"{path}: was made by {verb}, which cannot be done again from its metadata alone", _how(verb))
    return recipe


def _how(verb: object) -> str:
    """What to do instead."""
    if verb == "train":
        return "train it again with the same pictures and keys: `sdkit inspect --json` shows the keys under `metadata`"
    return "`sdkit inspect --json` shows what it says of how it was made, under `metadata`"


def _facts(recipe: Mapping[str, Any], found: Mapping[str, Path]) -> dict[Path, dict[str, str]]:
    """What the recipe calls its inputs, so that the one made anew calls them so."""
    told = ("name", "source", "sha256")
    return {found[entry["id"]]: {key: str(entry[key]) for key in told if key in entry} for entry in wanted_by(recipe)}


def _scratch(stack: ExitStack) -> Path:
    """A folder in the current one, where there is most likely room for a model; it is removed afterwards."""
    stack.enter_context(unrecorded())
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".sdkit-reproduce-", dir=Path.cwd())))


def _explanations(metadata: Mapping[str, str]) -> Iterator[str]:
    made = metadata.get(VERSION_KEY)
    if made != sdkit.__version__:
        yield f"the file was made by sdkit {made}, this is {sdkit.__version__}"
