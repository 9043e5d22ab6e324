"""Taking adapters out of a merged checkpoint again: exactly with an undo file, else by subtraction."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdkit.adapters.deltas.delta import is_relative
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.hashing import quick_id
from sdkit.core.memory import peak_memory_mib
from sdkit.core.progress import LabelledProgress, NoProgress, Progress
from sdkit.core.report import Report
from sdkit.formats import read_adapter
from sdkit.jobs.merge import merge
from sdkit.jobs.merge_checks import check_is_not_input
from sdkit.jobs.merge_report import MergeReport
from sdkit.jobs.pull import local_path
from sdkit.jobs.record import recorded
from sdkit.merging.undo import restored_outputs
from sdkit.streaming import OutputFile, Stream
from sdkit.weights import open_weights
from sdkit.weights.atomic import check_target
from sdkit.weights.metadata import read_recipe

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class UnmergeReport(Report):
    """What an unmerge did.

    Attributes:
        output: the file or folder written.
        exact: whether every byte of the base was restored.
        exactness: the same in a sentence.
        changed: tensors that differ from the merged file.
        seconds: wall time.
        peak_memory_mib: largest resident memory of the process so far.
        subtraction: the report of the subtraction, when there was no undo file.
    """

    output: str
    exact: bool
    exactness: str
    changed: int
    seconds: float
    peak_memory_mib: float | None
    subtraction: MergeReport | None = None


def unmerge(
    merged: PathLike,
    adapters: Sequence[PathLike | tuple[PathLike, float | None]] = (),
    output: PathLike | None = None,
    *,
    undo: PathLike | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> UnmergeReport:
    """Restore the base of a merge.

    Args:
        merged: what `merge` wrote.
        adapters: without `undo`, the adapters that were merged. Their strengths, and the factors of blocks and
            components, are read from the merged file's metadata, unless given as ``(path, strength)``.
        output: the file to write; default ``MERGED-unmerged.safetensors`` in the current directory.
        undo: the file that ``merge(…, undo=…)`` wrote: the base is restored bit for bit, header included.
        force: replace an existing output.
        threads: workers; never changes the result.
        progress: told about the bytes written.

    Raises:
        SdkitError: the undo file does not fit, or an adapter is not one of those in the metadata.
    """
    merged = local_path(merged)
    target = Path(output) if output is not None else _default_output(merged)
    progress = progress or NoProgress()
    if undo is not None:
        if adapters:
            raise UsageError("an undo file needs no adapters", "give either --undo or the adapters")
        restored = _restore(merged, local_path(undo), target, force=force, threads=threads, progress=progress)
        return recorded(restored, [merged])
    return _subtract(merged, adapters, target, force=force, threads=threads, progress=progress)


def _default_output(merged: Path) -> Path:
    return Path(f"{merged.name}-unmerged" if merged.is_dir() else f"{merged.stem}-unmerged.safetensors")


def _restore(
    merged: Path, undo: Path, output: Path, *, force: bool, threads: int | None, progress: Progress
) -> UnmergeReport:
    began = time.perf_counter()
    check_is_not_input(output, [merged, undo])
    check_target(output, overwrite=force)
    with open_weights(merged) as weights, open_weights(undo) as correction:
        outputs, header = restored_outputs(weights, correction)
        progress.start("restoring", sum(entry.nbytes for entry in outputs))
        file = OutputFile(output, tuple(outputs), {}, header)
        with Stream([file], overwrite=force, threads=threads, advance=progress.advance) as stream:
            stream.run()
            stream.commit()
    return UnmergeReport(
        output=str(output),
        exact=True,
        exactness="the base is restored bit for bit (every checksum agrees)",
        changed=sum(entry.copied is None for entry in outputs),
        seconds=time.perf_counter() - began,
        peak_memory_mib=peak_memory_mib(),
    )


def _subtract(
    merged: Path,
    adapters: Sequence[PathLike | tuple[PathLike, float | None]],
    output: Path,
    *,
    force: bool,
    threads: int | None,
    progress: Progress,
) -> UnmergeReport:
    recipe = _recipe(merged)
    if not adapters:
        names = ", ".join(str(entry.get("name")) for entry in _merged_adapters(recipe)) or "its adapters"
        raise UsageError(
            f"{merged}: without an undo file, unmerging needs the adapters ({names})",
            f"sdkit unmerge {merged} ADAPTER, or --undo FILE",
        )
    pairs = [_with_strength(entry, recipe) for entry in adapters]
    for path, _ in pairs:
        _check_subtractable(path)
    report = merge(
        merged,
        [(path, -strength) for path, strength in pairs],
        output,
        unet_alpha=_factor(recipe, "unet_alpha"),
        te_alpha=_factor(recipe, "te_alpha"),
        blocks=_blocks(recipe),
        allow_unmatched=bool(recipe.get("allow_unmatched", False)),
        tokens=False,
        force=force,
        threads=threads,
        progress=LabelledProgress(progress, "unmerging"),
    )
    return UnmergeReport(
        output=report.output,
        exact=False,
        exactness="subtracted: each changed weight may differ from the base's by one unit in the last place of what "
        "is stored, because the merge rounded (only --undo is exact)",
        changed=report.changed,
        seconds=report.seconds,
        peak_memory_mib=report.peak_memory_mib,
        subtraction=report,
    )


def _recipe(merged: Path) -> Mapping[str, Any]:
    """The merge that made the file; empty when it says nothing."""
    with open_weights(merged) as weights:
        recipe = read_recipe(weights.metadata) or {}
    return recipe if recipe.get("verb") == "merge" else {}


def _merged_adapters(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    parents = recipe.get("parents", [])
    return [entry for entry in parents if isinstance(entry, Mapping) and entry.get("role") == "adapter"]


def _with_strength(entry: PathLike | tuple[PathLike, float | None], recipe: Mapping[str, Any]) -> tuple[Path, float]:
    """An adapter and the strength it was merged with, as given or as the metadata say."""
    given, strength = entry if isinstance(entry, tuple) else (entry, None)
    path = local_path(given)
    if strength is not None:
        return path, strength
    with open_weights(path) as weights:
        name = quick_id(*weights.files)
    found = [parent.get("strength") for parent in _merged_adapters(recipe) if parent.get("id") == name]
    if len(found) == 1 and isinstance(found[0], (int, float)):
        return path, float(found[0])
    raise SdkitError(
        f"{path}: the merged file does not say with which strength this adapter went in",
        f"give it: {path.name}=0.8",
    )


def _check_subtractable(path: Path) -> None:
    """Refuse DoRA and its like, whose change of the merged weights is not the one it made of the base."""
    with open_weights(path) as weights:
        kind = next((delta.kind for delta in read_adapter(weights).deltas.values() if is_relative(delta)), None)
        if kind is not None:
            raise SdkitError(f"{path}: holds {kind}, which cannot be subtracted", "only --undo restores the base")


def _factor(recipe: Mapping[str, Any], name: str) -> float:
    value = recipe.get(name, 1.0)
    return float(value) if isinstance(value, (int, float)) else 1.0


def _blocks(recipe: Mapping[str, Any]) -> dict[str, float] | None:
    blocks = recipe.get("blocks")
    return {str(name): float(value) for name, value in blocks.items()} if isinstance(blocks, Mapping) else None
