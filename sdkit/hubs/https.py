"""The address of a file: https://…, best with #sha256=… behind it.

Files go to SDKIT_HOME/models/https/HOST. Plain http is for servers on this machine.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.paths import data_folder
from sdkit.core.progress import Progress
from sdkit.hubs.download import content_length, download
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
    file = RemoteFile(check_file_name(name), url, content_length(url, Client()), sha256)
    note = () if sha256 else ("nothing says which bytes are meant: write #sha256=… behind the address",)
    return Offer("https", url, "", Path(name).stem, (file,), page=url.partition("?")[0], notes=note)


def fetch(offer: Offer, output: Path | None, progress: Progress) -> Path:
    """Download to `output`, or below SDKIT_HOME."""
    file = offer.files[0]
    target = output or _place(file)
    if output is None and target.exists():
        raise SdkitError(f"{target}: is there already, and not what the address has now", "name another with -o")
    target.parent.mkdir(parents=True, exist_ok=True)
    download(file, target, Client(), progress)
    return target


def read_range(file: RemoteFile, start: int, stop: int) -> bytes:
    """Some bytes of the file."""
    return Client().read_range(file.url, start, stop)


def _place(file: RemoteFile) -> Path:
    """Files of one name but other contents lie side by side where their sha256 is known."""
    host = clean_name(urlsplit(file.url).hostname or "")
    return data_folder() / "models" / "https" / host / file.sha256[:10] / file.name
