"""The verbs of the registry: what `sdkit models` does, as functions."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.registry.exchange import exported, import_json
from sdkit.registry.facts import Facts, look_at, stamp_of
from sdkit.registry.lineage import Lineage, lineage, tree
from sdkit.registry.names import resolve
from sdkit.registry.registry import Entry, File, Model, Registry, open_registry
from sdkit.registry.scan import Scanned, Watch, scan
from sdkit.registry.scan import add as add_file
from sdkit.registry.shelves import loaded_by, place_for, program_named
from sdkit.registry.sidecars import PREVIEW, beside, find_previews, sidecar_texts, take_sidecars
from sdkit.registry.store import keep
from sdkit.weights.atomic import AtomicFile, check_space, write_file
from sdkit.weights.atomic_folder import AtomicFolder
from sdkit.weights.content import hash_content

PathLike = str | os.PathLike[str]
Link = Literal["auto", "hard", "symbolic", "copy"]
LINKS: tuple[Link, ...] = ("auto", "hard", "symbolic", "copy")


@dataclass(frozen=True, slots=True)
class ModelList(Report):
    """The models that were asked for, the newest first."""

    models: tuple[Entry, ...]


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


@dataclass(frozen=True, slots=True)
class ScanReport(Report):
    """What scans found, a folder at a time."""

    scans: tuple[Scanned, ...]
    hashed: int


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of one file.

    Attributes:
        path: the file.
        name: of its model.
        state: ``verified``, ``united`` (its tensors are those of a model that is known already), ``edited`` (it was
            written since it was registered), ``missing`` or ``damaged``.
        sha256: of the file.
        reason: why it is damaged.
    """

    path: str
    name: str
    state: str
    sha256: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class VerifyReport(Report):
    """What verifying found.

    Attributes:
        files: one by one.
        unchanged: files whose hashes are known and that nobody has written since.
    """

    files: tuple[Verified, ...]
    unchanged: int


@dataclass(frozen=True, slots=True)
class RemoveReport(Report):
    """What was forgotten, and which files were deleted."""

    names: tuple[str, ...]
    deleted: tuple[str, ...]


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


def list_models(
    words: Sequence[str] = (), *, kind: str = "", family: str = "", tag: str = "", everything: bool = False
) -> ModelList:
    """The registered models that match, see `Registry.entries`."""
    with open_registry() as registry:
        return ModelList(tuple(registry.entries(words, kind=kind, family=family, tag=tag, everything=everything)))


def show_model(name: str) -> Shown:
    """Everything known of a model."""
    with open_registry() as registry:
        model = registry.model(registry.find(name).id)
        files = [Path(file.path) for file in model.files if not file.missing]
        is_folder = any(file.is_dir() for file in files)
        return Shown(
            model,
            tuple(dict.fromkeys(str(picture) for file in files for picture in find_previews(file))),
            tuple(loaded_by(model.entry.kind, model.entry.format, is_folder=is_folder)),
            tuple(tree(lineage(registry, model.entry.id))),
        )


def add_models(
    paths: Iterable[PathLike], *, store: bool = False, hash: bool = False, progress: Progress | None = None
) -> ModelList:
    """Register files and folders of weights.

    Args:
        store: keep a copy of each in sdkit's own store, under its content's name.
        hash: read them whole at once, and not only when they are verified.
        progress: told about the bytes read.

    Raises:
        SdkitError: one of them is no weight file.
    """
    progress = progress or NoProgress()
    found = []
    with open_registry() as registry:
        for given in paths:
            path = Path(os.path.abspath(given))
            artifact = add_file(registry, path)
            if store:
                name = registry.model(artifact).entry.name
                artifact = add_file(registry, kept := keep(path, progress), stored=True)
                registry.rename(artifact, name)
                path = kept
            if hash:
                artifact = _hash(registry, look_at(path), progress)
            found.append(registry.model(artifact).entry)
    return ModelList(tuple(found))


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
            report = _verify(registry, None, progress or NoProgress())
            hashed = sum(file.state in ("verified", "united") for file in report.files)
        return ScanReport(scans, hashed)


def rename_model(name: str, new: str) -> Entry:
    """Give a model another name; its files keep theirs."""
    with open_registry() as registry:
        entry = registry.find(name)
        registry.rename(entry.id, new)
        return registry.model(entry.id).entry


def change_words(
    table: Literal["tags", "triggers", "notes", "licences"], name: str, words: Sequence[str], *, remove: bool = False
) -> Model:
    """Give a model tags, trigger words, notes or a licence, or take them away."""
    kept = [word.strip() for word in words if word.strip()]
    with open_registry() as registry:
        entry = registry.find(name)
        (registry.remove_words if remove else registry.add_words)(table, entry.id, kept)
        return registry.model(entry.id)


def remove_models(names: Sequence[str], *, delete: bool = False) -> RemoveReport:
    """Forget models. Their files stay, unless `delete` says otherwise.

    Raises:
        SdkitError: a name is unknown or names several, or a file may not be deleted; nothing is forgotten then.
    """
    with open_registry() as registry:
        models = [registry.model(registry.find(name).id) for name in names]
        files = [file for model in models for file in model.files if delete and os.path.lexists(file.path)]
        for file in files:
            _check_deletable(file)
        for file in files:
            Path(file.path).unlink()
        for model in models:
            registry.remove(model.entry.id)
    return RemoveReport(tuple(model.entry.name for model in models), tuple(file.path for file in files))


def verify_models(names: Sequence[str] = (), *, again: bool = False, progress: Progress | None = None) -> VerifyReport:
    """Read files whole: their hashes become known, equal models become one, damage and loss come out.

    Args:
        names: of models; without any, all.
        again: also files that were verified before and have not been written since.
        progress: told about the bytes read.
    """
    with open_registry() as registry:
        wanted = {registry.find(name).id for name in names} if names else None
        return _verify(registry, wanted, progress or NoProgress(), again=again)


def _verify(registry: Registry, wanted: set[int] | None, progress: Progress, *, again: bool = False) -> VerifyReport:
    found, unchanged = [], 0
    models = [registry.model(entry.id) for entry in registry.entries() if wanted is None or entry.id in wanted]
    for model in models:
        for file in model.files:
            one = _verify_file(registry, model, file, progress, again=again)
            unchanged += one is None
            found += [one] if one is not None else []
    return VerifyReport(tuple(found), unchanged)


def _verify_file(registry: Registry, model: Model, file: File, progress: Progress, *, again: bool) -> Verified | None:
    """What became of a file; None where it is known already."""
    path = Path(file.path)
    if not path.exists():
        registry.mark_missing([file.path])
        return Verified(file.path, model.entry.name, "missing")
    known = file.sha256 is not None or (path.is_dir() and model.content_id is not None)
    edited = stamp_of(path) != file.stamp
    if known and not edited and not again:
        return None
    try:
        facts = look_at(path)
        before = registry.observe(facts)
        artifact = _hash(registry, facts, progress)
    except (SdkitError, OSError) as error:
        return Verified(file.path, model.entry.name, "damaged", reason=str(error))
    after = registry.model(artifact)
    state = "edited" if edited else "united" if artifact != before else "verified"
    if known and not edited and (digest := _digest(after, file.path)) != file.sha256:
        reason = f"its sha256 was {file.sha256} and is {digest}, but nobody seems to have written it: check the disk"
        return Verified(file.path, after.entry.name, "damaged", digest, reason)
    return Verified(file.path, after.entry.name, state, _digest(after, file.path))


def _digest(model: Model, path: str) -> str | None:
    return next((file.sha256 for file in model.files if file.path == path), None)


def _hash(registry: Registry, facts: Facts, progress: Progress) -> int:
    """Read a registered file whole.

    Raises:
        SdkitError: it was written meanwhile.
    """
    content = hash_content(facts.path, progress)
    if stamp_of(facts.path) != facts.stamp:
        raise SdkitError(f"{facts.path}: was written while it was read", "verify it again when it is finished")
    return registry.set_content(facts, content)


def model_lineage(name: str) -> Lineage:
    """What a model was made from, and what was made from it."""
    with open_registry() as registry:
        return lineage(registry, registry.find(name).id)


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
    import json

    write_file(Path(output), (json.dumps(table, indent=2) + "\n").encode(), overwrite=force)
    return ExportReport((str(output),), ())


def _write_sidecars(models: Sequence[Model], *, force: bool) -> ExportReport:
    written, kept = [], []
    for model in models:
        for path in [Path(file.path) for file in model.files if not file.missing and not file.stored]:
            for target, text in sidecar_texts(model, path).items():
                if target.exists() and not force:
                    kept.append(str(target))
                    continue
                write_file(target, text.encode(), overwrite=force)
                written.append(str(target))
            pictures = find_previews(path)
            if pictures and pictures[0].parent != path.parent:
                write_file(beside(path, PREVIEW), pictures[0].read_bytes(), overwrite=force)
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


def place_model(
    name: str, program: str, root: PathLike, *, link: Link = "auto", subfolder: str = "", force: bool = False
) -> PlaceReport:
    """Put a model where a program looks for it, without a second copy where that is possible.

    Args:
        name: of the model, or its path.
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
    path = Path(os.path.abspath(resolve(name)))
    facts = look_at(path)
    shelf = place_for(kind, Path(os.path.abspath(root)), facts.kind, facts.family, facts.format)
    target = _within(shelf, subfolder) / _placed_name(path, facts, name)
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


def _placed_name(path: Path, facts: Facts, name: str) -> str:
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


def _check_deletable(file: File) -> None:
    """Refuse to delete what may be more, or something else, than the model that was registered."""
    path = Path(file.path)
    if path.is_dir():
        raise SdkitError(f"{path}: is a folder, which sdkit does not delete", "delete it yourself")
    if path.exists() and stamp_of(path) != file.stamp:
        raise SdkitError(f"{path}: was written since it was registered", "look at it, and `sdkit models add` it again")
