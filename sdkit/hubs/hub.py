"""What a hub provides: a place that models are pulled from, and perhaps published to.

A hub is a module of this package; its file name is the hub's name, the first line of its docstring what a person reads
about it. It defines the functions of `Hub`; one that defines `publish` as well can be pushed to.

A reference is what a person writes in place of a path: ``hf:org/repo/file@revision``, ``https://…``. Behind any of them
may stand ``#sha256=…``, which the file must then have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sdkit.core.errors import UsageError
from sdkit.core.progress import Progress

if TYPE_CHECKING:
    from sdkit.hubs._card import About

_PIN = re.compile(r"#sha256=([0-9A-Za-z]*)$")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that lies on a hub.

    Attributes:
        name: its path on the hub, with ``/``; checked by `sdkit.hubs.names`, so it leads nowhere else.
        url: where its bytes are asked for.
        size: in bytes; None where the hub does not say.
        sha256: of its bytes, in small letters; empty where the hub does not say.
    """

    name: str
    url: str
    size: int | None = None
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a hub has under a reference: which files, and what it says of them. All texts are hostile.

    Attributes:
        hub: name of the hub's module.
        reference: the reference written out, without a revision: ``hf:org/repo/file``.
        revision: what pins it: a commit, a version's number; empty where the hub has none.
        name: what people would call the model.
        files: one file, or those of a folder.
        is_folder: whether the result is a folder.
        page: where a person reads about it.
        why: why these files of all there are; empty where there was no choice.
        others: files that could be named instead.
        licence: as the hub words it.
        base_model: what it was made for or from, as the hub names it.
        triggers: words that call it up.
        tags: the hub's.
        papers: the model's card and licence, to be kept with it.
        picture: one that anybody may see.
        notes: what a person should know.
        stamp: changes when the bytes do, as far as a hub without revisions tells.
    """

    hub: str
    reference: str
    revision: str
    name: str
    files: tuple[RemoteFile, ...]
    is_folder: bool = False
    page: str = ""
    why: str = ""
    others: tuple[str, ...] = ()
    licence: str = ""
    base_model: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    papers: tuple[RemoteFile, ...] = ()
    picture: RemoteFile | None = None
    notes: tuple[str, ...] = ()
    stamp: str = ""

    @property
    def pinned(self) -> str:
        """The reference that names these bytes for good: with the revision, or else with the sha256."""
        if self.revision:
            return f"{self.reference}@{self.revision}"
        return f"{self.reference}#sha256={self.sha256}" if self.sha256 else self.reference

    @property
    def sha256(self) -> str:
        """Of the only file; empty for folders and where the hub does not say."""
        return "" if self.is_folder else self.files[0].sha256

    @property
    def size(self) -> int | None:
        """Bytes of all files; None where one is not known."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


class Hub(Protocol):
    """The functions a hub's module defines."""

    def claims(self, reference: str) -> bool:
        """Whether the reference is one of this hub's, judging by how it is written. Imports and asks nothing."""
        ...

    def resolve(self, reference: str) -> Offer:
        """Ask the hub what lies there. Nothing is downloaded but what describes it.

        Raises:
            UsageError: the reference is badly written.
            CredentialsError: a token is missing, wrong, or may not read this.
            SdkitError: there is no such thing, several could be meant, or the hub does not answer.
        """
        ...

    def fetch(self, offer: Offer, output: Path | None, progress: Progress) -> Path:
        """Download the files, whole and verified, and return where the file or folder lies.

        Args:
            offer: what `resolve` returned.
            output: the file or folder to write, which must not exist; None for the hub's own place.
            progress: told about the bytes.
        """
        ...

    def read_range(self, file: RemoteFile, start: int, stop: int) -> bytes:
        """Some bytes of a file, `start` up to `stop`, to look at its header from afar."""
        ...


class PinningHub(Hub, Protocol):
    """A hub whose references may name certain bytes for good, so that it need not be asked for what is here."""

    def spelled(self, reference: str) -> tuple[str, str] | None:
        """The reference without its revision, and the revision that pins it, empty where none does. Asks nothing.

        Returns:
            None for references by which nothing is found again, such as one to a branch.
        """
        ...


@dataclass(frozen=True, slots=True)
class Upload:
    """A file to publish.

    Attributes:
        name: its place in the repository, with ``/``.
        content: where it lies, or the bytes themselves.
    """

    name: str
    content: Path | bytes


@dataclass(frozen=True, slots=True)
class Published:
    """What became of an upload.

    Attributes:
        page: where a person sees it.
        revision: what pins it.
    """

    page: str
    revision: str = ""


class PublishingHub(Hub, Protocol):
    """A hub that can be pushed to."""

    def read_card(self, reference: str) -> str:
        """The card that lies there already; empty where there is none, or no repository yet."""
        ...

    def publish(
        self,
        reference: str,
        uploads: Sequence[Upload],
        *,
        message: str,
        private: bool,
        create_pr: bool,
        progress: Progress,
    ) -> Published:
        """Publish files together or not at all."""
        ...


class BundlingHub(Hub, Protocol):
    """A hub that lets no program publish: what a person needs to do it is prepared in a folder."""

    def bundle(self, about: About) -> tuple[list[Upload], str]:
        """The texts that belong beside weights and pictures, and what the person does next."""
        ...


def split_pin(reference: str) -> tuple[str, str]:
    """The reference without its ``#sha256=…``, and the sha256 in small letters, empty where there is none.

    Raises:
        UsageError: what stands there is no sha256.
    """
    found = _PIN.search(reference)
    if found is None:
        return reference, ""
    sha256 = found[1].lower()
    if not _SHA256.fullmatch(sha256):
        raise UsageError(f"{reference}: {found[1]!r} is no sha256", "it has 64 hexadecimal digits")
    return reference[: found.start()], sha256
