"""Another file system, by fsspec: s3://bucket/model.safetensors, sftp://…, file://…; also a folder to push to.

Needs ``pip install 'sdkit-studio[fsspec]'`` and fsspec's own package for the system (s3fs, gcsfs, …), whose settings
and credentials count. Pulled files go to SDKIT_HOME/models/folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdkit.core.errors import CredentialsError, SdkitError, UsageError
from sdkit.core.hashing import BLOCK_BYTES
from sdkit.core.paths import data_folder
from sdkit.core.progress import Progress
from sdkit.hubs._choice import choose
from sdkit.hubs.http import redact
from sdkit.hubs.hub import Offer, Published, RemoteFile, Upload, split_pin
from sdkit.hubs.names import below, check_relative, clean_name
from sdkit.weights.atomic import AtomicFile, check_space
from sdkit.weights.atomic_folder import AtomicFolder

_WHO = "fsspec's package for it finds credentials as its system's own tools do: see its documentation"
# How systems tell that a file has changed, the surest first.
_STAMPS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
_SCHEME = re.compile(r"(?!https?:)[a-z][a-z0-9+]+://.")


def claims(reference: str) -> bool:
    """Whether it begins with a scheme and ``://``, but not http."""
    return _SCHEME.match(reference) is not None


def resolve(reference: str) -> Offer:
    """List what lies there: a file, or a folder of which the model's files are chosen by their names."""
    url, sha256 = split_pin(reference)
    url = url.rstrip("/")
    with _explained(reference):
        system, root = _open(url)
        found = _listed(system, root)
    if not found:
        raise SdkitError(f"{reference}: there is nothing", "check the spelling")
    if list(found) == [""]:
        name = check_relative(url.rpartition("/")[2])
        file = RemoteFile(name, url, int(found[""]["size"]), sha256)
        return Offer("folder", url, "", Path(name).stem, (file,), stamp=_stamp(found.values()))
    choice = choose(found, "", url)
    files = tuple(RemoteFile(check_relative(name), f"{url}/{name}", int(found[name]["size"])) for name in choice.names)
    offer = Offer("folder", url, "", url.rpartition("/")[2], files, choice.is_folder, why=choice.why)
    return replace(
        offer,
        reference=url if choice.is_folder else files[0].url,
        others=tuple(f"{url}/{name}" for name in choice.others),
        stamp=_stamp(found[name] for name in choice.names),
    )


def fetch(offer: Offer, output: Path | None, progress: Progress) -> Path:
    """Copy to `output`, or below SDKIT_HOME."""
    target = output or _place(offer)
    target.parent.mkdir(parents=True, exist_ok=True)
    check_space(target, offer.size or 0)
    progress.start(f"copying {offer.name}", offer.size or 0)
    if not offer.is_folder:
        _copy(offer.files[0], target, progress)
        return target
    with AtomicFolder(target) as folder:
        for file in offer.files:
            place = below(folder.work, file.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            _copy(file, place, progress)
        folder.commit()
    return target


def read_range(file: RemoteFile, start: int, stop: int) -> bytes:
    """Some bytes of a file."""
    with _explained(file.url):
        system, path = _open(file.url)
        return bytes(system.cat_file(path, start=start, end=stop))


def read_card(reference: str) -> str:
    """The README.md that lies there; empty where there is none."""
    with _explained(reference):
        system, root = _open(reference.rstrip("/"))
        path = f"{root}/README.md"
        return str(system.cat_file(path).decode(errors="replace")) if system.exists(path) else ""


def publish(
    reference: str,
    uploads: Sequence[Upload],
    *,
    message: str,
    private: bool,
    create_pr: bool,
    progress: Progress,
) -> Published:
    """Copy the files there, the card last. (Such systems know no commits: a broken copy leaves some of them.)"""
    if private or create_pr:
        raise UsageError(f"{reference}: knows neither private repositories nor pull requests", "leave the option out")
    url = reference.rstrip("/")
    sizes = [one.content.stat().st_size if isinstance(one.content, Path) else len(one.content) for one in uploads]
    progress.start(f"copying to {redact(url)}", sum(sizes))
    with _explained(reference):
        system, root = _open(url)
        _check_bucket(system, root, reference)
        for one, size in zip(uploads, sizes, strict=True):
            place = f"{root}/{check_relative(one.name)}"
            system.makedirs(place.rpartition("/")[0], exist_ok=True)
            if isinstance(one.content, Path):
                system.put_file(str(one.content), place)
            else:
                system.pipe_file(place, one.content)
            progress.advance(size)
    return Published(url)


def _check_bucket(system: Any, root: str, reference: str) -> None:
    """Refuse a bucket that is not there: making folders would make it, under a name that was perhaps misspelled."""
    bucket = root.partition("/")[0]  # empty where paths begin with a slash
    if bucket and not system.exists(bucket):
        raise SdkitError(f"{reference}: there is no bucket {bucket}", "make it first, or check the spelling")


def _listed(system: Any, root: str) -> dict[str, Mapping[str, Any]]:
    """Path below the root → what the system says of it; the root itself as an empty path where it is a file."""
    base = root.rstrip("/")
    return {str(path)[len(base) :].lstrip("/"): facts for path, facts in system.find(root, detail=True).items()}


def _stamp(files: Iterable[Mapping[str, Any]]) -> str:
    """What changes when one of the files does: systems have entity tags, or times."""
    told = [[str(facts.get("size")), *(str(facts[key]) for key in _STAMPS if facts.get(key))][:2] for facts in files]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _copy(file: RemoteFile, target: Path, progress: Progress) -> None:
    digest, position = hashlib.sha256(), 0
    with AtomicFile(target) as written:
        with _explained(file.url):
            system, path = _open(file.url)
            with system.open(path, "rb") as source:
                while block := source.read(BLOCK_BYTES):
                    digest.update(block)
                    written.write(block, position)
                    position += len(block)
                    progress.advance(len(block))
        if file.size is not None and position != file.size:
            raise SdkitError(f"{file.url}: {position:,} bytes came, {file.size:,} were promised", "try again")
        if file.sha256 and digest.hexdigest() != file.sha256:
            raise SdkitError(
                f"{file.url}: what arrived has the sha256 {digest.hexdigest()}, not {file.sha256}",
                "it was damaged on the way or is another file; nothing was kept",
            )
        written.commit()


def _open(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise SdkitError(f"{url}: needs the package fsspec", "pip install 'sdkit-studio[fsspec]'") from None
    system, path = url_to_fs(url)
    return system, str(path)


def _place(offer: Offer) -> Path:
    name = offer.name if offer.is_folder else offer.files[0].name.rpartition("/")[2]
    # Addresses may end in the same name, and lead to other bytes one day.
    digest = hashlib.sha256(offer.reference.encode()).hexdigest()[:10]
    return data_folder() / "models" / "folder" / f"{digest}-{offer.stamp}" / clean_name(name)


@contextmanager
def _explained(reference: str) -> Iterator[None]:
    """Tell what a file system raises, which is of a hundred kinds, in a person's words."""
    try:
        yield
    except SdkitError:
        raise
    except FileNotFoundError:
        raise SdkitError(f"{reference}: there is nothing", "check the spelling") from None
    except PermissionError as error:
        raise CredentialsError(f"{reference}: {redact(str(error))}", _WHO) from None
    except (ImportError, ValueError) as error:  # a package for this system is missing, or there is no such system
        raise UsageError(f"{reference}: {redact(str(error))}", "install fsspec's package for it") from None
    except Exception as error:
        if "Credential" in type(error).__name__:  # s3fs, gcsfs and others have errors of their own for it
            raise CredentialsError(f"{reference}: {redact(str(error))}", _WHO) from None
        raise SdkitError(f"{reference}: {type(error).__name__}: {redact(str(error))}", "try again") from None
