"""Pulling models from hubs: found, looked at, downloaded, verified and registered; what is here already stays."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.progress import NoProgress, Progress
from sdkit.core.report import Report
from sdkit.families.bases import TINY
from sdkit.hubs import is_reference, load_hub
from sdkit.hubs.http import TransientError
from sdkit.hubs.hub import Hub, Offer, PinningHub, split_pin
from sdkit.jobs.inspect import inspect_offer
from sdkit.jobs.previews import fetch_preview
from sdkit.registry.changes import HUB
from sdkit.registry.facts import look_at, stamp_of
from sdkit.registry.names import resolve
from sdkit.registry.naming import check_name, safe_name
from sdkit.registry.previews import kept_previews
from sdkit.registry.registry import is_on, open_registry
from sdkit.registry.rows import Model, Source
from sdkit.weights.atomic import check_target
from sdkit.weights.atomic_folder import check_folder_target

PathLike = str | os.PathLike[str]

WEIGHTS = frozenset({".safetensors", ".ckpt", ".pt", ".pth", ".bin"})


@dataclass(frozen=True, slots=True)
class PullReport(Report):
    """What was pulled.

    Attributes:
        reference: as it was asked for.
        pinned: the reference that names these bytes for good.
        hub: the hub's name.
        name: in the registry.
        output: where the model lies; empty where it was only planned.
        state: ``pulled``, ``here`` (it was already) or ``planned``.
        kind: what it is, as `sdkit inspect` says; empty where only pulling tells.
        family: of which family.
        files: what it consists of.
        bytes: their size; None where the hub does not say.
        why: why these files of all there are.
        others: what could be named instead.
        sha256: of a single file.
        licence: as the hub words it.
        base_model: what it was made for or from.
        triggers: words that call it up.
        page: where a person reads about it.
        preview: a picture of it, kept here.
        notes: what a person should know.
        seconds: wall time.
        dry_run: whether nothing was downloaded.
    """

    reference: str
    pinned: str
    hub: str
    name: str
    output: str
    state: str
    kind: str
    family: str
    files: tuple[str, ...]
    bytes: int | None
    why: str
    others: tuple[str, ...]
    sha256: str
    licence: str
    base_model: tuple[str, ...]
    triggers: tuple[str, ...]
    page: str
    preview: str
    notes: tuple[str, ...]
    seconds: float
    dry_run: bool = False


def pull(
    reference: str,
    output: PathLike | None = None,
    *,
    name: str = "",
    dry_run: bool = False,
    progress: Progress | None = None,
) -> PullReport:
    """Bring a model from a hub here, verified, and register it. For a pinned one that is here, no hub is asked.

    Args:
        reference: ``hf:org/repo[/file][@revision]``, ``https://…#sha256=…``, ….
        output: the file to write, or a folder to put it in; default: the hub's own place, where other programs that
            know the hub find it too.
        name: what to call it in the registry.
        dry_run: say what would come, from its header, and download nothing.
        progress: told about the bytes.

    Raises:
        CredentialsError: the hub wants to know who asks.
        SdkitError: there is no such thing, it is no model, or it is not what the hub or the reference promises.
    """
    began, progress = time.perf_counter(), progress or NoProgress()
    if name:
        check_name(name)
    known = None if output is not None or dry_run else _recalled(reference)
    if known is not None:
        return _report_of_known(reference, known, name, began)
    offer, hub = _offer(reference)
    target = _target(offer, output)
    report = partial(_report, reference, offer, began=began)
    path, state = None if target else _here(offer), "here"
    if path is None or dry_run:
        seen = _look_from_afar(offer, hub)
        if dry_run:
            return report(name=name or offer.name, output=target, state="planned", seen=seen)
        path, state = hub.fetch(offer, target, progress), "pulled"
    registered, shown = _register(reference, offer, hub, path, name, progress)
    return report(name=registered, output=path, state=state, seen=_seen(path), shown=shown)


def local_path(given: PathLike, progress: Progress | None = None, tell: Callable[[str], None] | None = None) -> Path:
    """The path a person means: one that exists, the file of a model of that name, or what a reference pulls.

    A pulled file is remembered, so that the recipes of what is made from it say where it came from (`source_of`).

    Args:
        given: a path, name or reference.
        progress: told about the bytes of a download.
        tell: told in a line what was pulled.

    Raises:
        SdkitError: whatever keeps a reference from being pulled, or a name from meaning one file.
    """
    text = os.fspath(given)
    if os.path.lexists(text) or not is_reference(text):
        return resolve(given)
    known = _recalled(text)
    path, pinned, sha256 = known.pulled if known else _pulled(text, progress, tell)
    remember_source(path, {"source": pinned, **({"sha256": sha256} if sha256 else {})})
    return path


def optional_path(given: PathLike | None, progress: Progress | None = None) -> Path | None:
    """The same for what may be left out."""
    return None if given is None else local_path(given, progress)


def local_paths(listed: str) -> str:
    """The same for an option that may name several with commas between; a path that exists, and ``tiny``, stay."""
    if not listed or os.path.lexists(listed):
        return listed
    words = [word.strip() for word in listed.split(",")]
    return ",".join(word if word == TINY or os.path.lexists(word) else str(local_path(word)) for word in words)


# What this process was given as references: path → what recipes say of it. A file given by its path is named by its
# content alone, so the same command makes the same bytes whatever was pulled before.
_SOURCES: dict[str, dict[str, str]] = {}


def remember_source(path: Path, facts: dict[str, str]) -> None:
    """Let recipes made from here on name a file so."""
    _SOURCES[os.path.abspath(path)] = facts


@contextmanager
def known_as(facts: Mapping[Path, Mapping[str, str]]) -> Iterator[None]:
    """Let recipes made in this context name files so: what `source_of` says of them, and a ``name``."""
    before = dict(_SOURCES)
    _SOURCES.update({os.path.abspath(path): dict(told) for path, told in facts.items()})
    try:
        yield
    finally:
        _SOURCES.clear()
        _SOURCES.update(before)


def source_of(path: Path) -> dict[str, str]:
    """The reference and sha256 of a file that was given as a reference, or what `known_as` says; nothing for others."""
    return _SOURCES.get(os.path.abspath(path), {})


def _pulled(reference: str, progress: Progress | None, tell: Callable[[str], None] | None) -> tuple[Path, str, str]:
    try:
        report = pull(reference, progress=progress)
    except TransientError as error:
        known = _recalled(reference, unpinned=True)
        if known is None:
            raise
        if tell is not None:
            tell(f"note: {error.message}; using what was pulled before, {known.pinned}")
        return known.pulled
    if tell is not None:
        tell("; ".join(part for part in (f"{report.state}: {report.pinned}", report.why, *report.notes) if part))
    return Path(report.output), report.pinned, report.sha256


# Asking


def _offer(reference: str) -> tuple[Offer, Hub]:
    """What the hub has, checked against the pin of the reference."""
    text, pin = split_pin(reference)
    _, hub = load_hub(text)
    offer = hub.resolve(reference)
    if pin and offer.is_folder:
        raise UsageError(f"{reference}: only single files have a sha256", "name one file, or leave the pin out")
    if pin and offer.sha256 not in ("", pin):
        raise SdkitError(
            f"{text}: the hub has a file with the sha256 {offer.sha256}, not {pin}",
            "it is another file than the one that was meant; ask who gave you the reference",
        )
    if not offer.is_folder and Path(offer.files[0].name).suffix.lower() not in WEIGHTS:
        raise UsageError(f"{reference}: {offer.files[0].name} is no weight file", "name a file of weights")
    return (replace(offer, files=(replace(offer.files[0], sha256=pin),)), hub) if pin else (offer, hub)


def _target(offer: Offer, output: PathLike | None) -> Path | None:
    """Where to write, checked before anything comes; None for the hub's own place."""
    if output is None:
        return None
    path = Path(output)
    if path.is_dir() and not offer.is_folder:
        path /= f"{offer.name}{Path(offer.files[0].name).suffix.lower()}"
    elif path.is_dir() and any(path.iterdir()):
        path /= offer.name
    (check_folder_target if offer.is_folder else check_target)(path, overwrite=False)
    return path


def _look_from_afar(offer: Offer, hub: Hub) -> tuple[str, str]:
    """Kind and family from the header, which costs little and saves downloading what is no model."""
    file = offer.files[0]
    if offer.is_folder or file.size is None or not file.name.endswith(".safetensors"):
        return "", ""
    found = inspect_offer(offer, hub)
    return found.kind, found.family


def _seen(path: Path) -> tuple[str, str]:
    facts = look_at(path)
    return facts.kind, facts.family


# The registry


def _here(offer: Offer) -> Path | None:
    """Where these bytes lie already, verified and not written since; None where they do not."""
    if not is_on():
        return None
    with open_registry() as registry:
        if offer.sha256:
            artifact = registry.artifact_of("sha256", offer.sha256)
            models = [registry.model(artifact)] if artifact is not None else []
        else:
            models = registry.pulled(offer.reference, offer.revision or offer.stamp)
        return next((path for model in models for path in _unchanged(model, offer.sha256)), None)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a reference has pulled before: the file, which nobody has written since, and where it came from.

    Attributes:
        pinned: the reference that names these bytes for good.
    """

    path: Path
    model: Model
    source: Source
    pinned: str

    @property
    def sha256(self) -> str:
        """Of the file; empty for a folder."""
        return next((file.sha256 for file in self.model.files if file.path == str(self.path)), None) or ""

    @property
    def pulled(self) -> tuple[Path, str, str]:
        """The file, its pinned reference and its sha256."""
        return self.path, self.pinned, self.sha256


def _recalled(reference: str, *, unpinned: bool = False) -> _Known | None:
    """What a reference has pulled before, without asking any hub.

    A reference that is not pinned may mean something else today, so it counts only where `unpinned`.
    """
    text, pin = split_pin(reference)
    spelled = _spelled(text)
    bare, revision = spelled or (text, "")
    if not is_on() or not (pin or revision or unpinned):
        return None
    with open_registry() as registry:
        for model in registry.pulled(bare, revision):
            asked = next(one for one in model.sources if one.reference == bare)
            alike = [one for one in model.sources if (one.hub, one.revision) == (asked.hub, asked.revision)]
            source = next((one for one in alike if one.url), asked)  # as the hub calls it, not as a person wrote it
            revised = f"{source.reference}@{source.revision}" if spelled and source.revision else ""
            for path in _unchanged(model, pin):
                return _Known(path, model, source, revised or (f"{text}#sha256={pin}" if pin else text))
    return None


def _spelled(text: str) -> tuple[str, str] | None:
    """A reference without its revision, and the revision; None where its hub finds nothing again by it."""
    _, hub = load_hub(text)
    return cast(PinningHub, hub).spelled(text) if hasattr(hub, "spelled") else None


def _unchanged(model: Model, sha256: str) -> Iterator[Path]:
    """Its files that nobody has written since they were registered, and that have this sha256 where one is given."""
    for file in model.files:
        path = Path(file.path)
        if path.exists() and stamp_of(path) == file.stamp and sha256 in ("", file.sha256):
            yield path


def _register(
    reference: str, offer: Offer, hub: Hub, path: Path, name: str, progress: Progress
) -> tuple[str, tuple[Path | None, str]]:
    """Register what was pulled, with what the hub says and shows of it; returns its name, and see `fetch_preview`."""
    if not is_on():
        return name or offer.name, (None, "")
    from sdkit.jobs.models.verify import hash_registered

    with open_registry() as registry:
        facts = look_at(path)
        known = registry.artifact_of("quick", facts.quick_id) is not None
        artifact = registry.observe(facts)
        if path.is_file() and not list(_unchanged(registry.model(artifact), offer.sha256 or "?")):
            artifact, _ = hash_registered(registry, facts, progress)
        if name or not known:
            registry.rename(artifact, name or safe_name(offer.name))
        asked = _spelled(split_pin(reference)[0])
        if asked is not None:
            registry.add_source(artifact, Source(offer.hub, asked[0], offer.revision), HUB)
        came = Source(offer.hub, offer.reference, offer.revision or offer.stamp, offer.page)
        registry.add_source(artifact, came, HUB)
        registry.renew_words("triggers", artifact, offer.triggers, HUB)
        registry.renew_words("licences", artifact, [offer.licence] if offer.licence else [], HUB)
        model = registry.model(artifact)
    sha256 = next((file.sha256 for file in model.files if file.path == str(facts.path)), None)
    return model.entry.name, fetch_preview(hub, offer.picture, sha256 or "")


def _report_of_known(reference: str, known: _Known, name: str, began: float) -> PullReport:
    """What the registry says of a model that no hub needed to be asked for."""
    model = known.model
    with open_registry() as registry:
        if name:
            registry.rename(model.entry.id, name)
    return PullReport(
        reference=reference,
        pinned=known.pinned,
        hub=known.source.hub,
        name=name or model.entry.name,
        output=str(known.path),
        state="here",
        kind=model.entry.kind,
        family=model.entry.family,
        files=(known.path.name,),
        bytes=model.entry.size,
        why="",
        others=(),
        sha256=known.sha256,
        licence=next(iter(model.licences), ""),
        base_model=(),
        triggers=model.entry.triggers,
        page=known.source.url,
        preview=next((str(picture) for picture in kept_previews(known.sha256)), ""),
        notes=(),
        seconds=time.perf_counter() - began,
    )


def _report(
    reference: str,
    offer: Offer,
    *,
    began: float,
    name: str,
    output: Path | None,
    state: str,
    seen: tuple[str, str],
    shown: tuple[Path | None, str] = (None, ""),
) -> PullReport:
    return PullReport(
        reference=reference,
        pinned=offer.pinned,
        hub=offer.hub,
        name=name,
        output=str(output) if output is not None else "",
        state=state,
        kind=seen[0],
        family=seen[1],
        files=tuple(file.name for file in offer.files),
        bytes=offer.size,
        why=offer.why,
        others=offer.others,
        sha256=offer.sha256,
        licence=offer.licence,
        base_model=offer.base_model,
        triggers=offer.triggers,
        page=offer.page,
        preview=str(shown[0] or ""),
        notes=(*offer.notes, *([shown[1]] if shown[1] else [])),
        seconds=time.perf_counter() - began,
        dry_run=state == "planned",
    )
