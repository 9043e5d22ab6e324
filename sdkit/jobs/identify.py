"""Nameless files: what Civitai knows of them by their hashes, put into the registry."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdkit.core.civitai import page, plain_text, terms, trained_words
from sdkit.core.errors import SdkitError
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.hubs import civitai
from sdkit.jobs.models.reading import Whole, read_all
from sdkit.jobs.models.verify import register_whole
from sdkit.jobs.previews import fetch_preview
from sdkit.jobs.pull import local_path
from sdkit.registry.changes import HUB
from sdkit.registry.facts import stamp_of
from sdkit.registry.naming import safe_name
from sdkit.registry.registry import Registry, is_on, open_registry
from sdkit.registry.rows import Source
from sdkit.registry.scan import find_models

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Identified:
    """What is known of one file.

    Attributes:
        path: the file.
        sha256: of the file; empty where it could not be read.
        state: ``known``, ``unknown`` (to Civitai), ``unreadable``.
        name: of the model and its version.
        reference: what `sdkit pull` takes.
        base: what it was made for.
        triggers: words that call it up.
        licence: what its makers allow.
        page: where a person reads about it.
        preview: a picture of it, kept here.
        reason: why it is unreadable, or what could not be learned.
    """

    path: str
    sha256: str
    state: str
    name: str = ""
    reference: str = ""
    base: str = ""
    triggers: tuple[str, ...] = ()
    licence: str = ""
    page: str = ""
    preview: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class IdentifyReport(Report):
    """What was found out.

    Attributes:
        files: one by one.
        dry_run: whether nothing was written down.
    """

    files: tuple[Identified, ...]
    dry_run: bool


def identify(
    paths: Sequence[PathLike],
    *,
    dry_run: bool = False,
    previews: bool = True,
    progress: Progress | None = None,
) -> IdentifyReport:
    """Find out what files are by asking Civitai for their hashes, and put names, trigger words, … into the registry.

    A name or word that a person has given stays.

    Args:
        paths: files, names of models, references, or folders of files.
        dry_run: ask, and write nothing down.
        previews: keep a picture of each as well; only of those that anybody may see.
        progress: told about the bytes read.

    Raises:
        CredentialsError: Civitai wants to know who asks.
        SdkitError: a path does not exist, or Civitai does not answer.
    """
    files = list(dict.fromkeys(file for path in paths for file in _files(path)))
    hashes = _known_hashes(files)
    read = _read([file for file in files if file not in hashes], progress or NoProgress())
    hashes |= {path: whole.content.sha256 or "" for path, whole in read.items() if isinstance(whole, Whole)}
    versions = civitai.find_by_hashes(sorted({digest for digest in hashes.values() if digest}))
    models: dict[object, Mapping[str, Any]] = {}
    found = []
    for file in files:
        whole, version = read.get(file), versions.get(hashes.get(file, ""))
        if whole is not None and not isinstance(whole, Whole):
            found.append(Identified(str(file), "", "unreadable", reason=str(whole)))
        elif version is None:
            found.append(Identified(str(file), hashes[file], "unknown"))
        else:
            number = version.get("modelId")
            models[number] = models.get(number) or civitai.model_of(version)
            found.append(_described(file, hashes[file], version, models[number]))
    if not dry_run and is_on():
        found = [_written_down(one, read.get(Path(one.path)), versions, previews=previews) for one in found]
    return IdentifyReport(tuple(found), dry_run)


def _files(given: PathLike) -> Iterator[Path]:
    path = Path(os.path.abspath(local_path(given)))
    if not path.exists():
        raise SdkitError(f"{given}: there is no such file, folder or model", "sdkit identify FILE")
    is_folder_of_models = path.is_dir() and list(find_models(path)) != [path]
    # A pipeline of several files has no sha256 that a hub could know.
    yield from (file for file in find_models(path) if file.is_file()) if is_folder_of_models else [path]


def _known_hashes(files: Sequence[Path]) -> dict[Path, str]:
    """The sha256 of files that were read before and have not been written since."""
    if not is_on():
        return {}
    with open_registry() as registry:
        known = registry.hashed_files()
    found = {path: known.get(str(path)) for path in files}
    return {path: pair[1] for path, pair in found.items() if pair is not None and pair[0] == stamp_of(path)}


def _read(files: Sequence[Path], progress: Progress) -> dict[Path, Whole | SdkitError | OSError]:
    return dict(zip(files, read_all(files, progress), strict=True)) if files else {}


def _described(file: Path, sha256: str, version: Mapping[str, Any], model: Mapping[str, Any]) -> Identified:
    number, revision = version.get("modelId"), version.get("id")
    title = " ".join(plain_text(part) for part in (model.get("name"), version.get("name")) if part)
    return Identified(
        path=str(file),
        sha256=sha256,
        state="known",
        name=safe_name(" ".join(title.split())),
        reference=civitai.reference_of(version, sha256),
        base=plain_text(version.get("baseModel")),
        triggers=tuple(trained_words(version)),
        licence=terms(model, version.get("model")),
        page=page(number, revision),
    )


# The registry


def _written_down(
    one: Identified, whole: Whole | SdkitError | OSError | None, versions: Mapping[str, Any], *, previews: bool
) -> Identified:
    """The same, once the registry knows of it."""
    with open_registry() as registry:
        if isinstance(whole, Whole):
            register_whole(registry, whole)
        artifact = registry.artifact_of("sha256", one.sha256)
        if one.state != "known" or artifact is None:
            return one
        with registry.writing():
            _write_down(registry, artifact, one, versions[one.sha256])
        return _with_preview(one, versions[one.sha256]) if previews else one


def _write_down(registry: Registry, artifact: int, one: Identified, version: Mapping[str, Any]) -> None:
    if not registry.model(artifact).named:
        registry.rename(artifact, one.name)
    reference, _, revision = one.reference.partition("@")
    registry.add_source(artifact, Source("civitai", reference, revision, one.page), HUB)
    registry.renew_words("triggers", artifact, one.triggers, HUB)
    registry.renew_words("licences", artifact, [one.licence] if one.licence else [], HUB)
    registry.renew_words("tags", artifact, [one.base] if one.base else [], HUB)
    description = plain_text(version.get("description"))
    registry.renew_words("notes", artifact, [description] if description else [], HUB)


def _with_preview(one: Identified, version: Mapping[str, Any]) -> Identified:
    """The same with a picture; that there is none, or none came, is no failure."""
    kept, remark = fetch_preview(civitai, civitai.picture_of(version), one.sha256)
    return replace(one, preview=str(kept or ""), reason=remark)
