"""Everything known of one model, and its lineage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdkit.core.report import Report
from sdkit.registry.drawing import draw
from sdkit.registry.lineage import Lineage, lineage, tree
from sdkit.registry.registry import open_registry
from sdkit.registry.rows import Model
from sdkit.registry.shelves import loaded_by
from sdkit.registry.sidecars import find_previews
from sdkit.weights.atomic import check_target, write_file


@dataclass(frozen=True, slots=True)
class Shown(Report):
    """Everything known of a model.

    Attributes:
        model: facts, files, words, sources.
        previews: pictures of it.
        loaded_by: the programs that load it.
        tree: its lineage, in lines.
    """

    model: Model
    previews: tuple[str, ...]
    loaded_by: tuple[str, ...]
    tree: tuple[str, ...]


def show_model(name: str) -> Shown:
    """Everything known of a model."""
    with open_registry() as registry:
        model = registry.model(registry.find(name).id)
        files = [file for file in model.files if not file.missing]
        previews = [picture for file in files for picture in find_previews(Path(file.path), file.sha256)]
        is_folder = any(Path(file.path).is_dir() for file in files)
        return Shown(
            model,
            tuple(dict.fromkeys(map(str, previews))),
            tuple(loaded_by(model.entry.kind, model.entry.format, is_folder=is_folder)),
            tuple(tree(lineage(registry, model.entry.id))),
        )


def model_lineage(name: str) -> Lineage:
    """What a model was made from, and what was made from it."""
    with open_registry() as registry:
        return lineage(registry, registry.find(name).id)


def draw_lineage(name: str, output: Path, *, force: bool = False) -> Lineage:
    """The same, drawn as a PNG."""
    check_target(output, overwrite=force)
    found = model_lineage(name)
    write_file(output, draw(found), overwrite=force)
    return found
