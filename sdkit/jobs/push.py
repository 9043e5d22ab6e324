"""Publishing a model: its files in the formats asked for, a card made from its metadata and lineage, in one commit."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.hashing import Span, digest_spans
from sdkit.core.human import human_bytes
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.hubs import load_hub
from sdkit.hubs._card import MARK, About, Sample, write_card
from sdkit.hubs.hub import PublishingHub, Upload
from sdkit.hubs.names import below, clean_name
from sdkit.jobs.pull import WEIGHTS, local_path
from sdkit.jobs.push_files import weights_to_publish
from sdkit.registry.facts import Facts, look_at
from sdkit.registry.registry import is_on, open_registry
from sdkit.registry.rows import Model, Publication, Source
from sdkit.registry.sidecars import find_previews
from sdkit.weights import open_weights
from sdkit.weights.atomic_folder import AtomicFolder
from sdkit.weights.metadata import VERSION_KEY, read_recipe

PathLike = str | os.PathLike[str]

_CARD = "README.md"
_REPOSITORY = re.compile(r"hf:([\w.-]+/[\w.-]+)")
_MOST_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class PushedFile:
    """A file as it is published; the sha256 is empty for what holds no weights."""

    name: str
    bytes: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class PushReport(Report):
    """What was published.

    Attributes:
        model: its path here.
        reference: where to.
        page: where a person sees it; empty where it was only planned.
        files: in the repository.
        card: the model card; empty where the repository keeps its own.
        private: whether the repository is made private, if it is made.
        create_pr: whether it is a pull request.
        notes: what a person should know.
        seconds: wall time.
        dry_run: whether nothing was uploaded.
        output: the folder with everything, for a hub that people publish on by hand.
    """

    model: str
    reference: str
    page: str
    files: tuple[PushedFile, ...]
    card: str
    private: bool
    create_pr: bool
    notes: tuple[str, ...]
    seconds: float
    dry_run: bool
    output: str = ""


def push(
    model: PathLike,
    reference: str,
    output: PathLike | None = None,
    *,
    to: Sequence[str] = (),
    licence: str = "",
    base_model: Sequence[str] = (),
    samples: Sequence[PathLike] = (),
    private: bool = False,
    create_pr: bool = False,
    replace_card: bool = False,
    message: str = "",
    dry_run: bool = False,
    progress: Progress | None = None,
) -> PushReport:
    """Publish a model to a hub.

    Args:
        model: a path, the name of a registered model, or a reference.
        reference: where to: ``hf:user/repo``, or ``civitai:``, which lets no program publish.
        output: the folder for what a person publishes by hand; default: NAME-HUB.
        to: formats to convert it to, as `convert` knows them, each proven before anything goes up; default: as it is.
        licence: an identifier such as ``apache-2.0``; default: what the registry knows.
        base_model: repositories it was made for or from; default: those its recipe names.
        samples: pictures to show; default: those beside the model and of its training run.
        private: make the repository private, if there is none yet.
        create_pr: propose the files as a pull request.
        replace_card: also replace a card that somebody has written.
        message: of the commit.
        dry_run: make the plan and the card, and upload nothing.
        progress: told about the bytes.

    Raises:
        CredentialsError: there is no token, or it may not write there.
        SdkitError: the hub cannot be pushed to, or the model cannot be read or converted.
    """
    began, progress = time.perf_counter(), progress or NoProgress()
    hub_name, hub = _publishing(reference)
    path = local_path(model)
    facts, known = look_at(path), _known(path)
    name = known.entry.name if known else path.stem
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory(prefix="sdkit-push-")))
        uploads, notes = weights_to_publish(facts, name, to, work, progress)
        pictures, shown = _samples(path, samples)
        files = tuple(map(_pushed, uploads))
        about = _about(name, reference, facts, known, files, shown)
        told = replace(about, licence=licence or about.licence, base_model=tuple(base_model) or about.base_model)
        page = card = folder = ""
        if hasattr(hub, "bundle"):
            texts, next_step = hub.bundle(told)
            everything, notes = [*uploads, *pictures, *texts], (*notes, next_step)
            folder = str(output or f"{clean_name(name)}-{hub_name}")
            if not dry_run:
                _write(everything, Path(folder))
        else:
            card = _card(hub, reference, told, replace_card)
            everything = [*uploads, *pictures, *_as_file(card)]
            notes += tuple(_doubts(told, card))
            if not dry_run:
                how = {"message": message or f"Add {name}", "private": private, "create_pr": create_pr}
                published = hub.publish(reference, everything, progress=progress, **how)
                page = published.page
                where = Publication(reference, published.revision, page, tuple(one.name for one in uploads))
                notes += tuple(_remember(path, where, uploads, progress, is_source=not create_pr))
        files += tuple(map(_pushed, everything[len(uploads) :]))
    return PushReport(
        model=str(path),
        reference=reference,
        page=page,
        files=files,
        card=card,
        private=private,
        create_pr=create_pr,
        notes=notes,
        seconds=time.perf_counter() - began,
        dry_run=dry_run,
        output=folder,
    )


def _publishing(reference: str) -> tuple[str, Any]:
    """The hub, which is a `PublishingHub` or a `BundlingHub`, and its name."""
    name, hub = load_hub(reference)
    if not hasattr(hub, "publish") and not hasattr(hub, "bundle"):
        raise UsageError(f"{reference}: {name} cannot be pushed to", "write hf:user/repo, or civitai:")
    return name, hub


def _write(uploads: Sequence[Upload], output: Path) -> None:
    """A folder of what would be uploaded."""
    with AtomicFolder(output) as folder:
        for one in uploads:
            place = below(folder.work, one.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(one.content, Path):
                shutil.copyfile(one.content, place)
            else:
                place.write_bytes(one.content)
        folder.commit()


def _known(path: Path) -> Model | None:
    """What the registry knows of it; None where it is not registered."""
    if not is_on():
        return None
    with open_registry() as registry:
        found = registry.named(str(path))
        return registry.model(found[0].id) if found else None


def _about(
    name: str,
    reference: str,
    facts: Facts,
    known: Model | None,
    files: Sequence[PushedFile],
    shown: tuple[Sample, ...],
) -> About:
    """What the card tells, as far as file and registry know it."""
    told = About(
        name=name,
        repo=reference.partition(":")[2],
        kind=facts.kind,
        family=facts.family,
        licence=known.licences[0] if known and known.licences else facts.licence,
        triggers=known.entry.triggers if known else facts.triggers,
        files=tuple((one.name, human_bytes(one.bytes), one.sha256) for one in files),
        samples=shown,
        **_history(facts.path),
    )
    return replace(told, base_model=_bases(told))


def _history(path: Path) -> dict[str, Any]:
    with open_weights(path) as weights:
        return {"recipe": read_recipe(weights.metadata), "version": weights.metadata.get(VERSION_KEY, "")}


def _bases(about: About) -> tuple[str, ...]:
    """The repositories that its parents came from: of an adapter the base alone."""
    parents = [parent for parent in (about.recipe or {}).get("parents") or () if isinstance(parent, Mapping)]
    if about.relation == "adapter":
        parents = [parent for parent in parents if parent.get("role") == "base"]
    places = [place for parent in parents for place in (str(parent.get("source", "")), *_sources(parent))]
    return tuple(dict.fromkeys(found[1] for place in places if (found := _REPOSITORY.match(place))))


def _sources(parent: Mapping[str, Any]) -> list[str]:
    """Where the registry knows a parent to have come from."""
    if not is_on():
        return []
    with open_registry() as registry:
        artifact = registry.artifact_of("quick", str(parent.get("id")))
        return [source.reference for source in registry.model(artifact).sources] if artifact is not None else []


# Files


def _pushed(upload: Upload) -> PushedFile:
    """A file with the sha256 it can be checked by, where it holds weights."""
    content, sha256 = upload.content, ""
    if isinstance(content, Path) and content.suffix.lower() in WEIGHTS:
        sha256 = digest_spans(content, [Span()]).sha256[0]
    return PushedFile(upload.name, _size(upload), sha256)


def _size(upload: Upload) -> int:
    return upload.content.stat().st_size if isinstance(upload.content, Path) else len(upload.content)


def _samples(path: Path, given: Sequence[PathLike]) -> tuple[list[Upload], tuple[Sample, ...]]:
    """Pictures with the prompts they say they were drawn with."""
    from sdkit.generation.parameters import read_settings

    pictures = [Path(one) for one in given] or find_previews(path)
    uploads, shown = [], []
    for number, picture in enumerate(pictures[:_MOST_SAMPLES], 1):
        if not picture.is_file():
            raise UsageError(f"{picture}: there is no such picture", "check the spelling")
        try:
            settings = read_settings(picture)
        except SdkitError:  # it says nothing of itself
            settings = {}
        uploads.append(Upload(f"images/{number}{picture.suffix.lower()}", picture))
        shown.append(Sample(uploads[-1].name, str(settings.get("prompt", "")), str(settings.get("negative", ""))))
    return uploads, tuple(shown)


# The card


def _card(hub: PublishingHub, reference: str, about: About, replace_card: bool) -> str:
    """The card to upload; empty where the repository has one that somebody has written."""
    theirs = hub.read_card(reference)
    return "" if theirs and MARK not in theirs and not replace_card else write_card(about)


def _as_file(card: str) -> list[Upload]:
    return [Upload(_CARD, card.encode())] if card else []


def _doubts(about: About, card: str) -> Iterator[str]:
    if not card:
        yield "the repository has a card of its own, which stays; --replace-card replaces it"
        return
    if not about.licence:
        yield "no licence is known, so nobody may use it: --licence openrail, or another"
    if not about.base_model:
        yield "the card names no base model: --base-model org/repo"


# Afterwards


def _is_of(upload: Upload, path: Path) -> bool:
    """Whether these are the bytes that lie at `path`, which may be a folder."""
    return isinstance(upload.content, Path) and upload.content.is_relative_to(path)


def _remember(
    path: Path, told: Publication, uploads: Sequence[Upload], progress: Progress, *, is_source: bool
) -> Iterator[str]:
    """Register where it was published; a failure there is a note, for the upload is done.

    Args:
        is_source: whether it can be had there from now on (and is not only proposed). Its own bytes can.
    """
    if not is_on():
        return
    from sdkit.jobs.models.verify import hash_registered

    try:
        with open_registry() as registry:
            facts = look_at(path)
            artifact = registry.observe(facts)
            own = next((one for one in uploads if _is_of(one, path)), None)
            if is_source and own is not None:
                artifact, _ = hash_registered(registry, facts, progress)
                place = f"{told.reference}/{own.name}" if own.content == path else told.reference
                registry.add_source(artifact, Source("huggingface", place, told.revision, told.url))
            registry.add_publication(artifact, told, time.time())
    except (SdkitError, OSError) as error:
        yield f"the registry does not know of it: {error}"
