"""Downloads that arrive whole: interrupted as often as may be, verified, and under their name only then.

The bytes go to ``.NAME.partial`` beside the target. ``.NAME.partial.json`` says which bytes these are (by the hub's
sha256 and the server's ETag), so that another run goes on where a killed one stopped, and never with other bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sdkit.core.errors import SdkitError
from sdkit.core.hashing import BLOCK_BYTES
from sdkit.core.progress import NoProgress, Progress
from sdkit.hubs.http import Client, TransientError, back_off, shown
from sdkit.hubs.hub import RemoteFile
from sdkit.hubs.names import below
from sdkit.weights.atomic import (
    cannot_write,
    check_space,
    check_target,
    exists_error,
    lock,
    no_space,
    partial_path,
    sync_folder,
)
from sdkit.weights.atomic_folder import check_folder_target

if TYPE_CHECKING:
    from requests import Response

_FRUITLESS = 6  # attempts in a row that bring no byte before it is given up
_PIECE_BYTES = 1 << 20
_TEXTS = frozenset({".json", ".md", ".txt", ".html", ".yaml", ".xml", ".csv"})
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"{")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


def download(
    file: RemoteFile,
    target: Path,
    client: Client,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
) -> str:
    """Download a file; returns its sha256.

    Args:
        file: what; its size and sha256 are checked where they are known.
        target: the final name. What an earlier run has left of it is gone on with.
        client: asks the server.
        progress: told about the bytes.
        overwrite: whether a file already there may be replaced.

    Raises:
        SdkitError: the disk is full, the bytes are others than promised, a page came in place of a file, or the server
            does not answer any more (what has arrived stays for the next time).
    """
    check_target(target, overwrite=overwrite)
    progress = progress or NoProgress()
    with _Partial(target) as partial:
        transfer = _Transfer(file, partial, client, progress)
        sha256 = transfer.run()
        partial.commit(overwrite=overwrite)
    return sha256


def download_all(files: Sequence[RemoteFile], folder: Path, client: Client, progress: Progress | None = None) -> None:
    """Download a folder: it gets its name when all files are there; until then it is ``.NAME.partial``.

    Raises:
        SdkitError: as `download`; or the folder exists.
    """
    check_folder_target(folder, overwrite=False)
    work = partial_path(folder)
    check_space(folder, sum(file.size or 0 for file in files))
    for file in files:
        place = below(work, file.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():  # a file has its name only when it is whole
            download(file, place, client, progress)
    os.replace(work, folder)
    sync_folder(folder.parent)


def size_and_stamp(url: str, client: Client) -> tuple[int | None, str]:
    """The size of a file, None where the server is silent, and what changes when the file does, as far as it tells.

    It is asked for by its first byte, because some servers refuse HEAD.
    """
    with client.open(url, {"Range": "bytes=0-0", "Accept-Encoding": "identity"}) as response:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if response.status_code == 200:
            total = response.headers.get("Content-Length", "")
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        return (int(total) if total.isdecimal() else None), f"{validator} {total}".strip()


@dataclass(frozen=True, slots=True)
class _Which:
    """Which bytes a partial file holds the beginning of.

    Attributes:
        url: without its query, which changes with every signature.
        sha256: as the hub says.
        size: of the whole.
        validator: the server's ETag or Last-Modified, for If-Range.
    """

    url: str
    sha256: str = ""
    size: int | None = None
    validator: str = ""


class _Partial:
    """The unfinished file, this process's own while it is open."""

    def __init__(self, target: Path) -> None:
        self.target, self.path = target, partial_path(target)
        self._about = self.path.with_name(f"{self.path.name}.json")
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        try:
            self._descriptor = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise cannot_write(target, error) from None
        try:
            lock(self._descriptor, self.path, target)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._done = False

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def which(self) -> _Which | None:
        """What lies in it; None where nothing says so."""
        try:
            return _Which(**json.loads(self._about.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def begin(self, which: _Which) -> None:
        """Say what comes now, before the first byte of it does."""
        self.clear()
        self._about.write_text(json.dumps(asdict(which)), encoding="utf-8")

    def clear(self) -> None:
        """Throw away what has arrived."""
        self._about.unlink(missing_ok=True)
        os.ftruncate(self._descriptor, 0)

    def append(self, data: bytes) -> None:
        os.lseek(self._descriptor, 0, os.SEEK_END)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def hash(self) -> Any:
        """A sha256 that has read what is there."""
        digest = hashlib.sha256()
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        while block := os.read(self._descriptor, BLOCK_BYTES):
            digest.update(block)
        return digest

    def commit(self, *, overwrite: bool) -> None:
        """Flush to the disk and give the file its name."""
        os.fsync(self._descriptor)
        check_target(self.target, overwrite=overwrite)
        if os.name == "nt":
            self._close()  # Windows renames no open file
        try:
            (os.replace if overwrite else os.rename)(self.path, self.target)
        except FileExistsError:
            raise exists_error(self.target) from None
        self._about.unlink(missing_ok=True)
        sync_folder(self.target.parent)
        self._done = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.name == "nt":
            self._close()  # Windows removes no open file
        if not self._done and not self._about.exists():  # nothing in it could be used again
            self.path.unlink(missing_ok=True)  # before the lock goes: afterwards it could be another run's
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _BrokenOff(TransientError):
    """The connection, in the middle of a file."""


class _Transfer:
    """Brings the bytes of one file."""

    def __init__(self, file: RemoteFile, partial: _Partial, client: Client, progress: Progress) -> None:
        self._file, self._partial, self._client, self._progress = file, partial, client, progress
        self._which = self._kept()
        self._digest = partial.hash()

    def _kept(self) -> _Which | None:
        """What lies there from another run, if it is the beginning of the same bytes; else it is thrown away."""
        file, which = self._file, self._partial.which()
        same = which is not None and which.sha256 == file.sha256 and which.url == shown(file.url)
        same = same and which is not None and (file.size is None or which.size in (None, file.size))
        if same and which is not None and (which.sha256 or which.validator):
            return which
        self._partial.clear()
        return None

    def run(self) -> str:
        """Go on until the file is whole; returns its sha256."""
        promised, fruitless = self._file.size, 0
        if promised is not None:
            check_space(self._partial.target, max(promised - self._partial.size, 0))
        size = promised if promised and promised == self._partial.size else None
        while size is None:
            before = self._partial.size
            try:
                size = self._receive()
            except _BrokenOff:
                fruitless = 0 if self._partial.size > before else fruitless + 1
                if fruitless >= _FRUITLESS:
                    raise
                self._client.sleep(back_off(fruitless) if fruitless else 0.0)
        return self._verify(size)

    def _receive(self) -> int:
        """Ask for what is missing and take what comes; returns the size of the whole once it is there.

        Raises:
            _BrokenOff: the connection.
        """
        start = self._partial.size
        headers = {"Accept-Encoding": "identity", **self._range(start)}
        with self._client.open(self._file.url, headers) as response:
            if response.status_code == 416:
                return self._past_the_end(response)
            total = self._total(response)
            if not self._continues(response, start):
                self._start_over(response, total)
            self._progress.start(f"downloading {self._partial.target.name}", total)
            self._progress.advance(self._partial.size)
            self._take(response, total)
        return total

    def _range(self, start: int) -> dict[str, str]:
        """The headers that ask for the rest, if it can be told that it is the rest of the same bytes."""
        validator = self._which.validator if self._which else ""
        if not start or not (validator or self._file.sha256):
            return {}
        return {"Range": f"bytes={start}-", **({"If-Range": validator} if validator else {})}

    def _past_the_end(self, response: Response) -> int:
        """The server says that there is nothing more: then this is all, or something else than it has."""
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if total.isdecimal() and int(total) == self._partial.size:
            return int(total)
        self._partial.clear()
        raise _BrokenOff(f"{shown(self._file.url)}: the file has become another meanwhile", "try again")

    def _continues(self, response: Response, start: int) -> bool:
        found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        return start > 0 and response.status_code == 206 and found is not None and int(found[1]) == start

    def _total(self, response: Response) -> int:
        """The size of the whole file as the server says; it must be what the hub has said."""
        url, found = shown(self._file.url), _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise SdkitError(f"{url}: the server sends the file packed, though that was not asked for")
        if response.status_code == 206 and found is not None and found[2] != "*":
            total = int(found[2])
        elif response.status_code == 200 and response.headers.get("Content-Length", "").isdecimal():
            total = int(response.headers["Content-Length"])
        elif self._file.size is not None:
            total = self._file.size
        else:
            raise SdkitError(f"{url}: the server does not say how long the file is", "download it with another program")
        if self._file.size is not None and total != self._file.size:
            raise _other_size(self._file, total)
        return total

    def _start_over(self, response: Response, total: int) -> None:
        etag = response.headers.get("ETag", "")
        # A weak ETag names a page that looks the same, not the same bytes.
        validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
        check_space(self._partial.target, total)
        self._which = _Which(shown(self._file.url), self._file.sha256, total, validator)
        self._partial.begin(self._which)
        self._digest = hashlib.sha256()

    def _take(self, response: Response, total: int) -> None:
        """Write what comes, up to the size of the whole."""
        from urllib3.exceptions import HTTPError

        try:
            while (missing := total - self._partial.size) > 0:
                piece = response.raw.read1(min(_PIECE_BYTES, missing), decode_content=False)
                if not piece:
                    raise ConnectionError
                if not self._partial.size:
                    self._check_beginning(response, piece)
                self._append(piece)
        except (HTTPError, OSError):  # of the connection: those of the disk are explained in _append
            missing = total - self._partial.size
            raise _BrokenOff(
                f"{shown(self._file.url)}: the connection broke off, {missing:,} of {total:,} bytes are missing",
                "run the same command again; it goes on where this stopped",
            ) from None

    def _append(self, piece: bytes) -> None:
        try:
            self._partial.append(piece)
        except OSError as error:
            target = self._partial.target
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            raise (no_space(target, len(piece)) if full else cannot_write(target, error)) from None
        self._digest.update(piece)
        self._progress.advance(len(piece))

    def _check_beginning(self, response: Response, piece: bytes) -> None:
        """Refuse the page of a website in place of a model: a login, an error with the status of a success."""
        if Path(self._file.name).suffix.lower() in _TEXTS:
            return
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "text/html" or _is_page(piece[:64]):
            self._partial.clear()
            raise SdkitError(
                f"{shown(self._file.url)}: the server sent a page ({kind or 'of no type'}) and no model",
                "open the address in a browser: it may want a login, or the file is gone",
            )

    def _verify(self, size: int) -> str:
        if self._partial.size != size:
            found = self._partial.size
            self._partial.clear()
            raise _other_size(replace(self._file, size=size), found)
        sha256 = str(self._digest.hexdigest())
        if self._file.sha256 and sha256 != self._file.sha256:
            self._partial.clear()
            raise SdkitError(
                f"{shown(self._file.url)}: what arrived has the sha256 {sha256}, not {self._file.sha256}",
                "it was damaged on the way or is another file; nothing was kept, try again",
            )
        return sha256


def _is_page(beginning: bytes) -> bool:
    """Whether it is the beginning of a text for browsers or programs.

    The length that a safetensors file begins with may read as " {", but its last bytes are zeros, which no text has.
    """
    return b"\0" not in beginning and beginning.lstrip().lower().startswith(_PAGES)


def _other_size(file: RemoteFile, found: int) -> SdkitError:
    return SdkitError(
        f"{shown(file.url)}: the server sends {found:,} bytes, the hub promises {file.size:,}",
        "the file may just be changing; try again later",
    )
