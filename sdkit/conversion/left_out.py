"""What a conversion does not write, and why: tensors of all that goes in, and files of folders beside weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sdkit.conversion.checkpoint import Checkpoint
from sdkit.conversion.plan import Plan
from sdkit.conversion.rest import LEFTOVERS, Dropped
from sdkit.weights import Weights
from sdkit.weights.reader import Container

_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".h5")
Entry = tuple[str, str, int]  # why, the name, and its bytes


def left_out(
    whole: Checkpoint, chosen: Checkpoint, plan: Plan, others: Sequence[tuple[Checkpoint, str]]
) -> tuple[Dropped, ...]:
    """Everything that is not written, by reason.

    Args:
        whole: the checkpoint as it was opened.
        chosen: what of it is converted, with the parts of other files in it.
        plan: how it is written.
        others: these files, and which component each was put in as.
    """
    found = {drop.reason: drop for drop in plan.rest.dropped}
    entries = [*_leftovers(whole, plan), *_files(chosen, plan)]
    entries += [entry for other, role in others for entry in _of_part(chosen, other, role)]
    for why, name, size in entries:
        before = found.get(why, Dropped(why, (), 0))
        found[why] = Dropped(why, (*before.names, name), before.bytes + size)
    return tuple(found.values())


def _leftovers(whole: Checkpoint, plan: Plan) -> Iterator[Entry]:
    """Tensors that an earlier conversion laid beside the folder."""
    written = {output.name for output in plan.tensors}
    why = "laid beside the folder for a whole single file, which this is not"
    for name, info in whole.leftovers.tensors.items() if whole.leftovers else ():
        if name not in written:
            yield why, f"{LEFTOVERS}: {name}", info.nbytes


def _files(chosen: Checkpoint, plan: Plan) -> Iterator[Entry]:
    """Files of the folder that is converted."""
    for file, name in _beside(chosen.weights):
        if name != LEFTOVERS and not _is_written(name, chosen, plan):
            yield _why(name, chosen, plan), name, file.stat().st_size


def _is_written(name: str, chosen: Checkpoint, plan: Plan) -> bool:
    """Whether a file is copied, or what it configures is configured anew or in the metadata of a single file."""
    folder, _, inner = name.rpartition("/")
    if name in plan.side_files or (inner == "config.json" and (folder in chosen.parts or not folder)):
        return True
    return not plan.folder and chosen.draws and name in ("model_index.json", "scheduler/scheduler_config.json")


def _why(name: str, chosen: Checkpoint, plan: Plan) -> str:
    folder, slash, _ = name.partition("/")
    if name.endswith(_WEIGHTS) and (not slash or folder in chosen.parts):
        return "other copies of the weights, which were not read"
    if chosen.is_component:
        return "not asked for"
    if plan.folder:
        return "files that belong to no model"
    return f"the {folder}, which a single file has no place for" if slash else "files that are no weights"


def _of_part(chosen: Checkpoint, other: Checkpoint, role: str) -> Iterator[Entry]:
    """Tensors and files beside the component that was put in."""
    weights = other.weights
    why = f"beside the {role} in {weights.path.name}, from which nothing else is taken"
    taken = {where.place.key for where in chosen.located.values() if where.weights is weights}
    for name, info in weights.tensors.items():
        if name not in taken:
            yield why, name, info.nbytes
    (component,) = other.parts if other.is_component else (role,)
    for file, name in _beside(weights):
        if name not in ("config.json", f"{component}/config.json"):
            yield why, name, file.stat().st_size


def _beside(weights: Weights) -> Iterator[tuple[Path, str]]:
    """A folder's files but for the weights that are read and their index, with their names in it.

    Of a folder that is one component, what lies in folders below is somebody else's.
    """
    if weights.container is not Container.FOLDER:
        return
    root = weights.path if weights.path.is_dir() else weights.path.parent
    patterns: Iterable[str] = ("*", "*/*") if (root / "model_index.json").is_file() else ("*",)
    read = set(weights.files)
    for file in sorted(file for pattern in patterns for file in root.glob(pattern)):
        name = file.relative_to(root).as_posix()
        if file.is_file() and file not in read and ".index." not in file.name and not name.startswith("."):
            yield file, name
