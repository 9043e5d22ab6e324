"""Civitai: civitai:MODEL[/FILE][@VERSION], an address of its pages, an AIR, or civitai:hash:HEX.

A token (CIVITAI_TOKEN, or the file ``civitai-token`` in SDKIT_HOME) is shown to Civitai's own hosts alone: its
downloads are redirected to storage that refuses a request with one. Without an output a model goes to
``SDKIT_HOME/models/civitai/MODEL@VERSION/``. Source: https://developer.civitai.com, seen 2025.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from sdkit.core.civitai import BASE_MODELS, TYPES, kind_of, page, plain_text, terms, trained_words
from sdkit.core.errors import CredentialsError, SdkitError, UsageError
from sdkit.core.hashing import Span, digest_spans
from sdkit.core.human import human_bytes
from sdkit.core.paths import data_folder
from sdkit.core.progress import Progress
from sdkit.hubs._civitai_bundle import bundle
from sdkit.hubs.download import download
from sdkit.hubs.http import Client, is_private
from sdkit.hubs.hub import Offer, RemoteFile, split_pin
from sdkit.hubs.names import clean_name
from sdkit.hubs.searching import Found

if TYPE_CHECKING:
    from requests import Response

__all__ = [
    "bundle",
    "claims",
    "fetch",
    "find_by_hashes",
    "model_of",
    "picture_of",
    "read_range",
    "reference_of",
    "resolve",
    "search",
    "spelled",
]

_PREFIX = "civitai:"
_HOSTS = ("civitai.com", "www.civitai.com", "civitai.red", "www.civitai.red")
_TOKENS = "https://civitai.com/user/account"
_LOGIN = f"make an API key at {_TOKENS} and set CIVITAI_TOKEN to it"
_SHORT = re.compile(
    r"(?P<model>\d+)(/(?P<file>[^@]+))?(@(?P<version>\d+))?|@(?P<only>\d+)|hash:(?P<hash>[0-9A-Fa-f]{8,64})"
)
_AIR = re.compile(r"urn:air:[\w.-]+:[\w.-]+:civitai:(?P<model>\d+)(@(?P<version>\d+))?(:[\w.-]+)?", re.IGNORECASE)
_MODEL_PAGE = re.compile(r"/(api/v1/)?models/(?P<model>\d+)(/[^/]*)?/?")
_VERSION_PAGE = re.compile(r"/(api/download/models|api/v1/model-versions|model-versions)/(?P<version>\d+)/?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HASHES_AT_ONCE = 100
_PAGE_SIZE = 100  # the most its API gives at once
_SAFE_LEVEL = 1  # pictures anybody may see
_UNKNOWN_LEVEL = 32  # above all of Civitai's
_LONGEST = 200  # characters of a name


@dataclass(frozen=True, slots=True)
class _Place:
    """What a reference names: a model, perhaps one version of it and one of its files; or whatever has a hash."""

    model: str = ""
    version: str = ""
    file: str = ""
    hash: str = ""


def claims(reference: str) -> bool:
    """Whether it begins with ``civitai:``, is an AIR of Civitai's, or an address of its pages."""
    if reference.startswith(_PREFIX) or _AIR.match(reference):
        return True
    parts = urlsplit(reference)
    return parts.scheme == "https" and (parts.hostname in _HOSTS or f"https://{parts.netloc}" == _endpoint())


def resolve(reference: str) -> Offer:
    """Ask Civitai for a version and its model; of several files the one its makers marked is taken."""
    place = _parse(split_pin(reference)[0])
    version = _version(place, reference)
    model = _model(version)
    _check_downloadable(version, model)
    chosen, why, others = _choose(version, place, reference)
    number, revision = str(version.get("modelId") or place.model), str(version["id"])
    file = _file(chosen)
    name = " ".join(part for part in (_text(model.get("name")) or number, _text(version.get("name"))) if part)
    return Offer(
        hub="civitai",
        reference=_reference(number, version, chosen),
        revision=revision,
        name=clean_name(name)[:80],
        files=(file,),
        page=page(number, revision),
        why=why,
        others=tuple(f"{_PREFIX}{number}/{quote(_name(other))}@{revision}" for other in others),
        licence=terms(model, version.get("model")),
        base_model=tuple(text for text in (_text(version.get("baseModel")),) if text),
        triggers=tuple(trained_words(version)),
        tags=tuple(_text(tag) for tag in _list(model, "tags")),
        picture=picture_of(version),
        notes=tuple(_notes(version, model, file)),
    )


def spelled(reference: str) -> tuple[str, str] | None:
    """The reference and its version, as `Offer` has them; None where a hash is asked for."""
    place = _parse(split_pin(reference)[0])
    if place.hash:
        return None
    return f"{_PREFIX}{place.model}" + (f"/{quote(unquote(place.file))}" if place.file else ""), place.version


def fetch(offer: Offer, output: Path | None, progress: Progress) -> Path:
    """Download to `output`, or below SDKIT_HOME, where what is there already and whole stays."""
    (file,) = offer.files
    target = output or _own_place(offer) / file.name
    if output is None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and file.sha256 and digest_spans(target, [Span()], progress).sha256[0] == file.sha256:
            return target
    download(file, target, _client(), progress, overwrite=output is None)
    return target


def read_range(file: RemoteFile, start: int, stop: int) -> bytes:
    """Some bytes of a file."""
    return _client().read_range(file.url, start, stop)


def find_by_hashes(hashes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The versions that files belong to: sha256 → what Civitai says; those it does not know are left out."""
    client, found = _client(), dict[str, dict[str, Any]]()
    for start in range(0, len(hashes), _HASHES_AT_ONCE):
        wanted = {digest.lower() for digest in hashes[start : start + _HASHES_AT_ONCE]}
        url = f"{_endpoint()}/api/v1/model-versions/by-hash"
        answer = client.json(url, method="POST", json=sorted(digest.upper() for digest in wanted))
        for version in answer if isinstance(answer, list) else []:
            if isinstance(version, dict):
                found |= {digest: version for digest in _digests(version) if digest in wanted}
    return found


def reference_of(version: Mapping[str, Any], sha256: str) -> str:
    """The pinned reference of the file of a version that has this sha256."""
    file, _, _ = _choose(version, _Place(hash=sha256), sha256)
    return f"{_reference(str(version.get('modelId')), version, file)}@{version.get('id')}"


def model_of(version: Mapping[str, Any]) -> dict[str, Any]:
    """What Civitai says of the model a version belongs to; nothing where it was removed."""
    return _model(version)


def picture_of(version: Mapping[str, Any]) -> RemoteFile | None:
    """The first picture of a version that anybody may see; None where there is none."""
    url = next((str(image.get("url") or "") for image in _images(version) if _level(image) == _SAFE_LEVEL), "")
    host = urlsplit(url).hostname
    if not host or (is_private(host) and not is_private(urlsplit(_endpoint()).hostname)):
        return None  # nobody out there names addresses of this network with good reason
    return RemoteFile("preview", url)


def search(query: str, *, kind: str = "", family: str = "", limit: int = 20) -> list[Found]:
    """The models that match, the most downloaded first."""
    parameters = [("limit", min(limit, _PAGE_SIZE)), ("sort", "Most Downloaded"), ("nsfw", "false")]
    parameters += [("query", query)] if query else []
    parameters += [("types", type) for type in TYPES.get(kind, ())]
    parameters += [("baseModels", name) for name in BASE_MODELS.get(family, ())]
    client, found = _client(), list[Found]()
    url = f"{_endpoint()}/api/v1/models?{urlencode(parameters)}"
    while url and len(found) < limit:
        answer = client.json(url, attempts=2)  # somebody waits, and searches again
        items = _list(answer, "items") if isinstance(answer, dict) else []
        found += [_found(item) for item in items if isinstance(item, dict)]
        after = answer.get("metadata") if items else None
        cursor = after.get("nextCursor") if isinstance(after, dict) else None
        url = f"{_endpoint()}/api/v1/models?{urlencode([*parameters, ('cursor', cursor)])}" if cursor else ""
    return found[:limit]


# References


def _parse(reference: str) -> _Place:
    """What a reference names.

    Raises:
        UsageError: nothing that Civitai has.
    """
    short = _SHORT.fullmatch(reference.removeprefix(_PREFIX)) if reference.startswith(_PREFIX) else None
    match = short or _AIR.fullmatch(reference)
    place = _named(match.groupdict(default="")) if match else _address(reference)
    if place is None:
        raise UsageError(
            f"{reference}: is no reference to Civitai",
            "write civitai:MODEL, civitai:MODEL@VERSION, civitai:hash:SHA256, or the address of its page",
        )
    return place


def _named(found: Mapping[str, str]) -> _Place:
    version = found.get("version") or found.get("only", "")
    return _Place(found.get("model", ""), version, found.get("file", ""), found.get("hash", ""))


def _address(reference: str) -> _Place | None:
    parts = urlsplit(reference)
    if match := _VERSION_PAGE.fullmatch(parts.path):
        return _Place(version=match["version"])
    if match := _MODEL_PAGE.fullmatch(parts.path):
        versions = parse_qs(parts.query).get("modelVersionId", [""])
        return _Place(match["model"], versions[0] if versions[0].isdecimal() else "")
    return None


def _version(place: _Place, reference: str) -> dict[str, Any]:
    """What Civitai says of the version, the newest where none is named."""
    api = f"{_endpoint()}/api/v1"
    if place.version:
        version = _client().json(f"{api}/model-versions/{place.version}")
    elif place.hash:
        version = _client().json(f"{api}/model-versions/by-hash/{place.hash}")
    else:
        model = _client().json(f"{api}/models/{place.model}")
        versions = [one for one in _list(model, "modelVersions") if isinstance(one, dict)]
        version = {"modelId": model.get("id"), "model": model, **versions[0]} if versions else None
    if not isinstance(version, dict) or type(version.get("id")) is not int:
        raise SdkitError(f"{reference}: Civitai has no version of it to download", _REMOVED)
    if place.model and str(version.get("modelId", place.model)) != place.model:
        raise UsageError(
            f"{reference}: version {place.version} is one of model {version.get('modelId')}", "leave the model out"
        )
    return version


def _model(version: Mapping[str, Any]) -> dict[str, Any]:
    """The model of a version: its name, terms and tags. A version outlives a model that was taken down."""
    known = version.get("model")
    if isinstance(known, dict) and "allowDerivatives" in known:
        return known
    try:
        model = _client().json(f"{_endpoint()}/api/v1/models/{version.get('modelId')}")
    except CredentialsError:
        raise
    except SdkitError:
        model = None
    return model if isinstance(model, dict) else known if isinstance(known, dict) else {}


# Files


def _check_downloadable(version: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    name = _text(model.get("name")) or str(version.get("modelId"))
    usage = version.get("usageControl", "Download")
    if usage != "Download":
        raise SdkitError(f"{name}: its makers let it be used on Civitai's site alone ({_text(usage)})")
    if model.get("mode") in ("Archived", "TakenDown"):
        state = "put away by its makers" if model["mode"] == "Archived" else "taken down"
        raise SdkitError(f"{name}: was {state}, so its files are gone", _REMOVED)


def _choose(
    version: Mapping[str, Any], place: _Place, reference: str
) -> tuple[dict[str, Any], str, list[dict[str, Any]]]:
    """The file to download, why, and the others.

    Raises:
        SdkitError: there are none, or none of that name.
    """
    every = [file for file in _list(version, "files") if isinstance(file, dict)]
    models = [file for file in every if file.get("type") in ("Model", "Pruned Model", "VAE", "Negative")] or every
    if place.hash:
        same = [file for file in every if place.hash.upper() in map(str.upper, _hashes(file).values())]
        models = same or models
    if place.file:
        named = [file for file in every if place.file in (_name(file), quote(_name(file)))]
        if not named:
            names = ", ".join(map(_name, every)) or "no files"
            raise UsageError(f"{reference}: there is no file {place.file!r}", f"there are: {names}")
        return named[0], "", [file for file in every if file is not named[0]]
    if not models:
        raise SdkitError(f"{reference}: the version has no files", _REMOVED)
    best = min(models, key=_rank)
    if len(models) == 1:
        return best, "", []
    told = [word for word in ("the one its makers marked" if best.get("primary") else "", _format(best)) if word]
    size = _size(best)
    why = f"{' and '.join(told) or 'the first'} of {len(models)} files{f' ({human_bytes(size)})' if size else ''}"
    return best, why, [file for file in models if file is not best]


def _reference(model: str, version: Mapping[str, Any], file: Mapping[str, Any]) -> str:
    """A model's reference; with the file's name where it is not the one its makers marked."""
    alone = file.get("primary") or len(_list(version, "files")) == 1
    return f"{_PREFIX}{model}" + ("" if alone else f"/{quote(_name(file))}")


def _rank(file: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    """Smaller is better: no archive, no pickle, marked by the makers."""
    return _name(file).endswith(".zip"), _format(file) != "SafeTensor", not file.get("primary")


def _file(file: Mapping[str, Any]) -> RemoteFile:
    url = str(file.get("downloadUrl") or "")
    parts = urlsplit(url)
    if parts.hostname not in _HOSTS and f"{parts.scheme}://{parts.netloc}" != _endpoint():
        raise SdkitError("Civitai names no address of its own for the file", _REMOVED)
    digest = _hashes(file).get("SHA256", "").lower()
    # Of an archive its own hash is given by some answers, and that of the model inside by others.
    known = digest if _SHA256.fullmatch(digest) and not _name(file).endswith(".zip") else ""
    return RemoteFile(_name(file), url, _size(file), known)


def _name(file: Mapping[str, Any]) -> str:
    return clean_name(_text(file.get("name")) or "model.safetensors")


def _size(file: Mapping[str, Any]) -> int | None:
    """In bytes; None where the number of kilobytes was rounded, or is none."""
    size = file.get("sizeKB")
    count = size * 1024 if isinstance(size, (int, float)) and 0 < size < 2**40 else 0.5
    return int(count) if count == int(count) else None


def _format(file: Mapping[str, Any]) -> str:
    facts = file.get("metadata")
    return _text(facts.get("format")) if isinstance(facts, dict) else ""


def _hashes(file: Mapping[str, Any]) -> dict[str, str]:
    given = file.get("hashes")
    return {key: value for key, value in given.items() if isinstance(value, str)} if isinstance(given, dict) else {}


def _digests(version: Mapping[str, Any]) -> Iterator[str]:
    for file in _list(version, "files"):
        if isinstance(file, dict) and (digest := _hashes(file).get("SHA256")):
            yield digest.lower()


def _notes(version: Mapping[str, Any], model: Mapping[str, Any], file: RemoteFile) -> Iterator[str]:
    if until := _early_access(version):
        yield f"in early access until {until:%Y-%m-%d}: only who bought it can download it"
    if not file.sha256:
        yield "Civitai gives no sha256 of this file, so only its size is checked"
    if file.name.endswith(".zip"):
        yield "it is an archive; unpack it and register what is in it"
    if model.get("nsfw") is True:
        yield "its makers mark it as not safe for work"
    levels = [_level(image) for image in _images(version)]
    if levels and min(levels) > _SAFE_LEVEL:
        yield f"none of its pictures is for everybody (Civitai's nsfwLevel {min(levels)} and up), so none is kept"


def _early_access(version: Mapping[str, Any]) -> datetime | None:
    """When a version's early access ends; None where it is over or there is none."""
    text = version.get("earlyAccessEndsAt")
    try:
        ends = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    if ends is None:
        return None
    ends = ends if ends.tzinfo else ends.replace(tzinfo=UTC)
    return ends if ends > datetime.now(UTC) else None


def _own_place(offer: Offer) -> Path:
    model = offer.reference.removeprefix(_PREFIX).partition("/")[0]
    return data_folder() / "models" / "civitai" / clean_name(f"{model}@{offer.revision}")


def _images(version: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Its pictures, without films."""
    given = [image for image in _list(version, "images") if isinstance(image, dict)]
    return [image for image in given if image.get("type", "image") == "image"]


def _level(image: Mapping[str, Any]) -> int:
    """Who may see it: 1 is anybody; a picture that does not say is for nobody."""
    level = image.get("nsfwLevel")
    return level if type(level) is int and level > 0 else _UNKNOWN_LEVEL


def _found(item: Mapping[str, Any]) -> Found:
    versions = [one for one in _list(item, "modelVersions") if isinstance(one, dict)]
    newest = versions[0] if versions else {}
    stats = item.get("stats")
    counts = stats if isinstance(stats, dict) else {}
    creator = item.get("creator")
    return Found(
        hub="civitai",
        reference=f"{_PREFIX}{item.get('id')}" + (f"@{newest['id']}" if "id" in newest else ""),
        name=_text(item.get("name")),
        kind=kind_of(item.get("type")),
        base=_text(newest.get("baseModel")),
        author=_text(creator.get("username")) if isinstance(creator, dict) else "",
        downloads=_count(counts.get("downloadCount")),
        likes=_count(counts.get("thumbsUpCount")),
        dislikes=_count(counts.get("thumbsDownCount")),
        licence=terms(item),
        triggers=tuple(trained_words(newest)),
        page=page(item.get("id"), newest.get("id")),
    )


# Asking

_REMOVED = "it may have been removed; https://civarchive.com remembers some models by the sha256 of their files"


def _endpoint() -> str:
    """Where its API is. (CIVITAI_ENDPOINT names a mirror.)"""
    return os.environ.get("CIVITAI_ENDPOINT", "https://civitai.com").rstrip("/")


def _token() -> str:
    """The person's API key; empty where there is none."""
    if token := os.environ.get("CIVITAI_TOKEN", "").strip():
        return token
    try:
        return (data_folder() / "civitai-token").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _client() -> Client:
    token = _token()
    shown_to = {*(f"https://{host}" for host in _HOSTS), _endpoint()}
    return Client({host: token for host in shown_to} if token else {}, _explain)


def _explain(response: Response) -> SdkitError | None:
    found = _VERSION_PAGE.fullmatch(urlsplit(response.url).path)
    what = f"{_PREFIX}@{found['version']}" if found else "Civitai"
    where = f"{_endpoint()}/model-versions/{found['version']}" if found else _endpoint()
    if response.status_code in (404, 410):
        return SdkitError(f"{what}: Civitai does not have it (any more)", _REMOVED)
    if response.status_code not in (401, 403):
        return None
    until = _early_access(_described(found["version"])) if found else None
    if until is not None:
        told = f"{what}: is in early access until {until:%Y-%m-%d}, for who bought it"
        return CredentialsError(told, f"wait, or buy it at {where} and {_LOGIN}")
    if response.status_code == 403:
        return CredentialsError(f"{what}: your account may not have it", f"{where} says why")
    reason = "does not accept your key" if _token() else "wants to know who asks"
    return CredentialsError(f"{what}: Civitai {reason}", _LOGIN)


def _described(version: str) -> dict[str, Any]:
    """What anybody is told of a version; nothing where that fails."""
    try:
        answer = Client().json(f"{_endpoint()}/api/v1/model-versions/{version}")
    except SdkitError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _list(table: object, key: str) -> list[Any]:
    value = table.get(key) if isinstance(table, dict) else None
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    """One line of text."""
    return " ".join(plain_text(value).split())[:_LONGEST]


def _count(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0
