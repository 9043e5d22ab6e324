"""The address of a file: https://…, best with #sha256=… behind it.

Files go to SDKIT_HOME/models/https/HOST. Plain http is for servers on this machine.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.paths import data_folder
from sdkit.core.progress import Progress
from sdkit.hubs.download import download, size_and_stamp
from sdkit.hubs.http import Client, is_private
from sdkit.hubs.hub import Offer, RemoteFile, split_pin
from sdkit.hubs.names import check_file_name, clean_name


def claims(reference: str) -> bool:
    """Whether it is an address that begins with ``https://`` (or ``http://``, on this machine)."""
    parts = urlsplit(reference)
    return parts.scheme == "https" or (parts.scheme == "http" and is_private(parts.hostname))


def resolve(reference: str) -> Offer:
    """Ask for the file's size; its name is the last part of the address."""
    url, sha256 = split_pin(reference)
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    if not name:
        raise UsageError(f"{reference}: names no file", "write the address of the file itself")
    size, stamp = size_and_stamp(url, Client())
    file = RemoteFile(check_file_name(name), url, size, sha256)
    note = () if sha256 else ("nothing says which bytes are meant: write #sha256=… behind the address",)
    return Offer("https", url, "", Path(name).stem, (file,), page=url.partition("?")[0], notes=note, stamp=stamp)


def fetch(offer: Offer, output: Path | None, progress: Progress) -> Path:
    """Download to `output`, or below SDKIT_HOME."""
    file = offer.files[0]
    target = output or _place(file, offer.stamp)
    if output is None and target.exists():
        raise SdkitError(f"{target}: is there already, and not what the address has now", "name another with -o")
    target.parent.mkdir(parents=True, exist_ok=True)
    download(file, target, Client(), progress)
    return target


def read_range(file: RemoteFile, start: int, stop: int) -> bytes:
    """Some bytes of the file."""
    return Client().read_range(file.url, start, stop)


def _place(file: RemoteFile, stamp: str) -> Path:
    """Files of one name but other addresses or contents lie side by side."""
    host = clean_name(urlsplit(file.url).hostname or "")
    which = file.sha256 or hashlib.sha256(f"{file.url} {stamp}".encode()).hexdigest()
    return data_folder() / "models" / "https" / host / which[:10] / file.name
