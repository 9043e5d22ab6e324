"""What the registry says of models, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the list of models.

    Attributes:
        id: ``@ID`` names it as well as its name does.
        name: what people call it.
        kind: ``checkpoint``, ``lora``, …; empty when it is only known as a parent.
        family: ``sd1``, …
        format: its codec or naming.
        size: bytes.
        added: seconds since 1970.
        path: its first file that is there, else its first; empty when it has none.
        missing: whether none of its files is there.
        triggers: words that call it up.
        tags: a person's own words.
    """

    id: int
    name: str
    kind: str
    family: str
    format: str
    size: int
    added: float
    path: str
    missing: bool
    triggers: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class File:
    """A file, or a folder of files, that holds an artifact.

    Attributes:
        path: where it lies.
        size: bytes.
        stamp: see `sdkit.registry.facts.stamp_of`.
        quick_id: names its content.
        sha256: of the file; None until it is verified, and for folders.
        stored: whether it lies in sdkit's own store.
        missing: whether it was gone when last looked for.
    """

    path: str
    size: int
    stamp: str
    quick_id: str
    sha256: str | None
    stored: bool
    missing: bool


@dataclass(frozen=True, slots=True)
class Source:
    """Where an artifact comes from.

    Attributes:
        hub: name of the hub's module.
        reference: what it was pulled by, without a revision. What a person wrote is there too, if it is shorter.
        revision: what pins it.
        url: a page to read about it; empty for what only a person wrote, and where the hub has none.
    """

    hub: str
    reference: str
    revision: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Publication:
    """Where an artifact was published.

    Attributes:
        reference: the repository, such as ``hf:user/repo``.
        revision: the commit, or of a pull request its number.
        url: the page of it.
        files: the names of the weights there.
    """

    reference: str
    revision: str = ""
    url: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """Everything known of one artifact, without its lineage.

    Attributes:
        entry: as in the list.
        details: facts from its header.
        identities: pairs of scheme and value.
        files: where it lies.
        sources: where it comes from.
        licences: as the file, a sidecar or a person states them.
        notes: texts.
        published: where it was published, the first time first.
        named: whether a person gave it its name.
    """

    entry: Entry
    details: Mapping[str, Any]
    identities: tuple[tuple[str, str], ...]
    files: tuple[File, ...]
    sources: tuple[Source, ...]
    licences: tuple[str, ...]
    notes: tuple[str, ...]
    published: tuple[Publication, ...]
    named: bool

    @property
    def origins(self) -> tuple[str, ...]:
        """Where a person reads of each place it comes from; its reference where there is no page."""
        told = {(source.hub, source.revision) for source in self.sources if source.url}
        kept = [one for one in self.sources if one.url or (one.hub, one.revision) not in told]
        return tuple(dict.fromkeys(source.url or source.reference for source in kept))

    @property
    def content_id(self) -> str | None:
        """Names its tensors; None until a file of it is verified."""
        return next((value for scheme, value in self.identities if scheme == "content"), None)


@dataclass(frozen=True, slots=True)
class Activity:
    """Something that was done: artifact ids with role and strength, in order; the last is the result."""

    id: int
    verb: str
    recipe: Mapping[str, Any]
    inputs: tuple[tuple[int, str, float | None], ...]
    output: int
