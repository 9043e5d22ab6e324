"""Rebuilding a file from the recipe it carries, and saying whether the bytes agree."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.core.hashing import Span, digest_spans, quick_id
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.families.bases import TINY, resolve_base
from sdkit.hubs import is_reference
from sdkit.jobs.inputs import Input, Unwritten, open_input
from sdkit.jobs.pull import local_path, remember_source
from sdkit.registry.registry import is_on, open_registry
from sdkit.weights import TensorInfo, Weights, open_weights
from sdkit.weights.atomic import check_target
from sdkit.weights.metadata import VERSION_KEY, read_recipe, source_files

PathLike = str | os.PathLike[str]

ADAPTER_VERBS = frozenset({"combine", "subtract", "scale", "resize"})
_SUFFIXES = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}
_FOLDER_MARKS = ("model_index.json", "*.index.json", "adapter_config.json", "config.json")
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class ReproduceReport(Report):
    """What a rebuilt file is like.

    Attributes:
        model: the file or folder whose recipe was followed.
        output: the rebuilt one; empty where it was only compared.
        inputs: name in the recipe → where it was found.
        identical: whether every byte agrees.
        differing: names of tensors whose bytes, types or shapes differ, or that only one of the two has.
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
        model: a file or folder that `blend`, `merge`, `run` or a calculation with adapters has written.
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
    found = _find_all(source_files(recipe), places, progress or NoProgress())
    if output is not None and not force:
        check_target(Path(output), overwrite=False)
    with ExitStack() as stack:
        target = Path(output) if output is not None else _scratch(stack) / path.name
        controls = {"force": force, "threads": threads, "progress": progress or NoProgress()}
        try:
            _Rebuild(recipe, found, stack, controls).write(target)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SdkitError(f"{path}: its recipe is damaged: {type(error).__name__}: {error}") from None
        differing, identical = _compare(path, target)
    return ReproduceReport(
        model=str(path),
        output=str(output) if output is not None else "",
        inputs={str(entry["name"]): str(found[str(entry["id"])]) for entry in source_files(recipe)},
        identical=identical,
        differing=tuple(differing),
        notes=() if identical else tuple(_explanations(metadata)),
        seconds=time.perf_counter() - began,
    )


def _followable(path: Path, recipe: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if recipe is None:
        raise SdkitError(f"{path}: carries no recipe", "only what sdkit has merged or blended says how it was made")
    verb = recipe.get("verb")
    if verb not in {"blend", "merge", *ADAPTER_VERBS}:
        raise SdkitError(f"{path}: was made by {verb}, which cannot be done again from its metadata alone")
    return recipe


def _scratch(stack: ExitStack) -> Path:
    """A folder in the current one, where there is most likely room for a model; it is removed afterwards."""
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".sdkit-reproduce-", dir=Path.cwd())))


def _explanations(metadata: Mapping[str, str]) -> Iterator[str]:
    made = metadata.get(VERSION_KEY)
    if made != sdkit.__version__:
        yield f"the file was made by sdkit {made}, this is {sdkit.__version__}"


# Finding inputs


def _find_all(wanted: Sequence[Mapping[str, Any]], folders: Sequence[Path], progress: Progress) -> dict[str, Path]:
    """Where each input lies, by its id.

    Raises:
        SdkitError: naming every one that is missing, with its hash.
    """
    found: dict[str, Path] = {}
    missing: list[str] = []
    for entry in wanted:
        name, content = str(entry.get("name")), str(entry.get("id"))
        if content in found or any(content in line for line in missing):
            continue
        candidates = chain(_candidates(name, content, folders), _elsewhere(entry, progress))
        path = next((path for path in candidates if _is_it(path, entry)), None)
        if path is None:
            missing.append(f"{name} ({entry.get('sha256') or content})")
        else:
            found[content] = path
            if "source" in entry:  # the recipe made anew must name it as this one does
                remember_source(path, {key: str(entry[key]) for key in ("source", "sha256") if key in entry})
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


def _is_it(path: Path, entry: Mapping[str, Any]) -> bool:
    try:
        with open_weights(path) as weights:
            files = weights.files
        same = quick_id(*files) == entry.get("id")
    except (SdkitError, OSError):  # something else of the same size, or a broken file
        return False
    sha256 = entry.get("sha256")
    return same and (not sha256 or digest_spans(path, [Span()]).sha256[0] == sha256)


# Rebuilding


class _Rebuild:
    """Follows a recipe whose inputs are known."""

    def __init__(
        self, recipe: Mapping[str, Any], found: Mapping[str, Path], stack: ExitStack, controls: Mapping[str, Any]
    ) -> None:
        self._recipe, self._found, self._stack, self._controls = recipe, found, stack, controls
        self._steps: Mapping[str, Any] = recipe.get("steps", {})
        self._models: dict[str, Weights | None] = {}

    def write(self, target: Path) -> None:
        """Rebuild the last step into a file or folder."""
        if self._recipe["verb"] in ADAPTER_VERBS:
            self._adapters(target)
        else:
            self._do(self._recipe, target, **self._controls)

    def _do(self, recipe: Mapping[str, Any], target: Path | Unwritten, **controls: Any) -> None:
        if recipe["verb"] == "blend":
            self._blend(recipe, target, **controls)
        else:
            self._merge(recipe, target, **controls)

    def _input(self, entry: Mapping[str, Any]) -> Input:
        """A parent: a file under the name the recipe knows it by, or the result of an earlier step."""
        if "step" not in entry:
            weights = open_input(self._stack, self._found[entry["id"]])
            weights.known.update({key: entry[key] for key in ("name", "sha256", "source") if key in entry})
            return weights
        name = entry["step"]
        if name not in self._models:
            self._models[name] = None
            step = Unwritten(name, self._stack)
            self._do(self._steps[name], step)
            self._models[name] = step.model
        model = self._models[name]
        if model is None:
            raise ValueError(f"the step {name} needs itself")
        return model

    def _blend(self, recipe: Mapping[str, Any], target: Path | Unwritten, **controls: Any) -> None:
        from sdkit.jobs.blend import blend

        parents = recipe["parents"]
        named = {entry["role"]: self._input(entry) for entry in parents if entry["role"] in ("base", "VAE")}
        factors = recipe.get("factors", {})
        plain = ("blocks", "rules", "blend_vae", "missing", "ema", "allow_prediction_mix", "dtype", "seed")
        blend(
            [self._input(entry) for entry in parents if entry["role"] not in ("base", "VAE")],
            target,
            method=recipe["method"],
            parameters={key: tuple(v) if isinstance(v, list) else v for key, v in recipe["parameters"].items()},
            base=named.get("base"),
            vae=named.get("VAE"),
            unet_alpha=factors.get("unet", 1.0),
            te_alpha=factors.get("te", 1.0),
            stochastic=recipe.get("stochastic"),
            **{key: recipe[key] for key in plain if key in recipe},
            **controls,
        )

    def _merge(self, recipe: Mapping[str, Any], target: Path | Unwritten, **controls: Any) -> None:
        from sdkit.jobs.merge import merge

        base, *adapters = recipe["parents"]
        options = ("unet_alpha", "te_alpha", "blocks", "dtype", "stochastic", "allow_unmatched")
        merge(
            self._input(base),
            [(self._input(entry), entry["strength"]) for entry in adapters],
            target,
            tokens=False,
            **{key: recipe[key] for key in options if key in recipe},
            **controls,
        )

    def _adapters(self, target: Path) -> None:
        from sdkit.adapters.ranks import RankRule
        from sdkit.jobs.combine import weighted_sum

        recipe = self._recipe
        rules = ("rank", "sv_ratio", "sv_fro", "sv_cumulative", "error")
        rule = {key: recipe[key] for key in rules if key in recipe}
        options = {key: recipe[key] for key in ("dtype", "format", "allow_unmatched") if key in recipe}
        adapters = [entry for entry in recipe["parents"] if entry.get("role") == "adapter"]
        base = next((self._found[entry["id"]] for entry in recipe["parents"] if entry.get("role") == "base"), None)
        weighted_sum(
            recipe["verb"],
            [(self._found[entry["id"]], float(entry["strength"])) for entry in adapters],
            target,
            rank=RankRule(**rule) if rule else None,
            base=base,
            **options,
            **self._controls,
        )


# Comparing


def _compare(one: Path, other: Path) -> tuple[list[str], bool]:
    """The tensors that differ, and whether all bytes of all weight files agree."""
    with open_weights(one) as first, open_weights(other) as second:
        identical = len(first.files) == len(second.files) and all(
            _same_bytes(*pair) for pair in zip(first.files, second.files, strict=True)
        )
        if identical:
            return [], True
        names = list(dict.fromkeys([*first.tensors, *second.tensors]))
        return [name for name in names if not _same_tensor(name, first, second)], False


def _same_bytes(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with open(one, "rb") as first, open(other, "rb") as second:
        while piece := first.read(_PIECE_BYTES):
            if piece != second.read(_PIECE_BYTES):
                return False
    return True


def _same_tensor(name: str, first: Weights, second: Weights) -> bool:
    one, other = first.tensors.get(name), second.tensors.get(name)
    if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(a == b for a, b in zip(_pieces(first, one), _pieces(second, other), strict=True))


def _pieces(weights: Weights, info: TensorInfo) -> Iterator[bytes]:
    for start in range(0, info.nbytes, _PIECE_BYTES):
        piece = bytearray(min(_PIECE_BYTES, info.nbytes - start))
        weights.read_into(info, memoryview(piece), start)
        yield bytes(piece)
