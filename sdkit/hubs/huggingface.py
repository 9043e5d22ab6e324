"""Hugging Face: hf:org/repo[/file][@revision], or the address of such a page.

Through huggingface_hub, so HF_TOKEN, HF_ENDPOINT, HF_HOME and offline mode count as they do there. Large files come by
sdkit's own download, which goes on where it was interrupted and verifies the sha256; without an output they go into
the cache of huggingface_hub, where diffusers finds them too.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from sdkit.core.errors import CredentialsError, SdkitError, UsageError
from sdkit.core.hashing import Span, digest_spans
from sdkit.core.human import human_bytes
from sdkit.core.progress import Progress
from sdkit.hubs._choice import choose
from sdkit.hubs.download import download, download_all
from sdkit.hubs.http import Client, TransientError, hide_queries_in_logs, innermost_reason, redact
from sdkit.hubs.hub import Offer, Published, RemoteFile, Upload, split_pin
from sdkit.hubs.names import below, check_relative
from sdkit.hubs.searching import Found

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from requests import Response

_PREFIX = "hf:"
_OFFICIAL = "https://huggingface.co"
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_NAME = r"[\w.-]+"
_REFERENCE = re.compile(rf"(?P<repo>{_NAME}/{_NAME}|{_NAME})(/(?P<path>[^@]+?))?/?(@(?P<revision>\S+))?")
_PAGE = re.compile(rf"/(?P<repo>{_NAME}/{_NAME})(/(blob|resolve|tree)/(?P<revision>[^/]+)(/(?P<path>.+?))?)?/?")
_PLAIN_NAMES = frozenset(
    "model pytorch_model pytorch_lora_weights learned_embeds adapter_model diffusion_pytorch_model".split()
)
# What belongs to a model beside its weights, and is kept with them.
_PAPERS = re.compile(r"(README\.md|LICEN[CS]E(\.\w+)?|token_identifier\.txt)", re.IGNORECASE)
_ADULT = "not-for-all-audiences"  # the Hub's tag
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATIENCE = 20.0  # seconds for a first answer
_TOKENS = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True, slots=True)
class _Place:
    """What a reference names: a repository, perhaps a file or folder in it, perhaps at a revision."""

    repo: str
    path: str = ""
    revision: str = ""


def claims(reference: str) -> bool:
    """Whether it begins with ``hf:``, or is an address of the Hub's."""
    if reference.startswith(_PREFIX):
        return True
    parts = urlsplit(reference)
    return parts.scheme == "https" and (parts.hostname in _HOSTS or f"https://{parts.netloc}" == _endpoint())


def resolve(reference: str) -> Offer:
    """Ask the Hub for the repository's files and card; which of the files is meant is chosen by their names."""
    place = _parse(reference)
    if _is_offline():
        return _offline(place)
    with _explained(place):
        info = _api().model_info(place.repo, revision=place.revision or None, files_metadata=True)
    listed = {entry.rfilename: entry for entry in info.siblings or ()}
    choice = choose(listed, place.path, f"{_PREFIX}{place.repo}")
    commit = str(info.sha)
    files = tuple(_file(place.repo, listed[name], commit) for name in choice.names)
    card = dict(vars(info.card_data)) if info.card_data else {}
    return replace(
        _offer(place, commit, files, choice.is_folder, choice.names),
        why=_why(choice.why, files),
        others=tuple(f"{_PREFIX}{place.repo}/{name}" for name in choice.others),
        papers=tuple(_file(place.repo, entry, commit) for name, entry in listed.items() if _PAPERS.fullmatch(name)),
        tags=tuple(info.tags or ()),
        picture=_picture(place.repo, card, listed, commit) if _ADULT not in (info.tags or ()) else None,
        **_card_facts(card, info.tags or ()),
    )


def spelled(reference: str) -> tuple[str, str] | None:
    """The reference and its commit, as `Offer` has them; None where it is at a branch or a tag."""
    place = _parse(reference)
    if place.revision and not _COMMIT.fullmatch(place.revision):
        return None
    return f"{_PREFIX}{place.repo}" + (f"/{place.path}" if place.path else ""), place.revision


def fetch(offer: Offer, output: Path | None, progress: Progress) -> Path:
    """Download to `output`, or into the cache of huggingface_hub."""
    place = _parse(offer.pinned)
    if output is None:
        paths = [_into_cache(place, file, progress) for file in (*offer.files, *offer.papers)]
        return _snapshot(place) / place.path if offer.is_folder else paths[0]
    client = _client(place.repo)
    if offer.is_folder:
        inside = f"{place.path}/" if place.path else ""
        files = [replace(file, name=file.name.removeprefix(inside)) for file in offer.files]
        download_all([*files, *offer.papers], output, client, progress)
    else:
        download(offer.files[0], output, client, progress)
    return output


def read_range(file: RemoteFile, start: int, stop: int) -> bytes:
    """Some bytes of a file."""
    repo = file.url.removeprefix(f"{_endpoint()}/").partition("/resolve/")[0]
    return _client(repo).read_range(file.url, start, stop)


def search(query: str, *, kind: str = "", family: str = "", limit: int = 20) -> list[Found]:
    """The repositories that match, the most downloaded first; their kinds and bases are what their tags say."""
    found: dict[str, Any] = {}
    if _is_offline():
        raise SdkitError("cannot be searched: Hugging Face must not be asked", "go online: unset HF_HUB_OFFLINE")
    questions = list(_questions(kind, family))
    with _searching():
        if questions:
            _knock()
        for tags in questions:
            listed = _api().list_models(
                search=query or None, filter=tags or None, sort="downloads", limit=limit, expand=_EXPANDED
            )
            found |= {info.id: info for info in listed}
    return sorted(map(_found, found.values()), key=lambda one: -one.downloads)[:limit]


def read_card(reference: str) -> str:
    """The README.md of a repository; empty where there is none."""
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    place = _writable(reference)
    with _explained(place):
        try:
            path = _api().hf_hub_download(place.repo, "README.md", cache_dir=_cache())
        except (EntryNotFoundError, RepositoryNotFoundError):
            return ""
    return Path(path).read_text(encoding="utf-8", errors="replace")


def publish(
    reference: str,
    uploads: Sequence[Upload],
    *,
    message: str,
    private: bool,
    create_pr: bool,
    progress: Progress,
) -> Published:
    """Upload all files in one commit; the repository is made if there is none.

    Raises:
        CredentialsError: there is no token, or it may not write there.
    """
    place = _writable(reference)
    if _token() is None:
        raise CredentialsError(f"{reference}: pushing needs a token", f"make one that may write at {_TOKENS}, {_LOGIN}")
    api = _api()
    from huggingface_hub import CommitOperationAdd

    operations = [
        CommitOperationAdd(check_relative(one.name), str(one.content) if isinstance(one.content, Path) else one.content)
        for one in uploads
    ]
    progress.start(f"uploading to {place.repo}", sum(operation.upload_info.size for operation in operations))
    with _explained(place):
        if not create_pr:
            api.create_repo(place.repo, private=private or None, exist_ok=True)
        commit = api.create_commit(place.repo, operations, commit_message=message, create_pr=create_pr)
    return Published(commit.pr_url or f"{_endpoint()}/{place.repo}", commit.oid)


def _writable(reference: str) -> _Place:
    place = _parse(reference)
    if place.path or place.revision or "/" not in place.repo:
        raise UsageError(f"{reference}: is no repository to push to", f"write {_PREFIX}USER/NAME")
    return place


# References


def _parse(reference: str) -> _Place:
    text, _ = split_pin(reference)
    if text.startswith(_PREFIX):
        found = _REFERENCE.fullmatch(text.removeprefix(_PREFIX))
    else:
        found = _PAGE.fullmatch(urlsplit(text).path)
    if found is None or ".." in text:
        raise UsageError(
            f"{reference}: is no reference to Hugging Face", "write hf:org/repo, hf:org/repo/file@revision"
        )
    path, revision = found["path"] or "", found["revision"] or ""
    return _Place(found["repo"], unquote(path) if text.startswith("https:") else path, unquote(revision))


def _offer(place: _Place, commit: str, files: tuple[RemoteFile, ...], is_folder: bool, names: Sequence[str]) -> Offer:
    path = place.path if is_folder else names[0]
    stem = Path(names[0]).stem
    named = place.path and not is_folder and stem not in _PLAIN_NAMES
    return Offer(
        hub="huggingface",
        reference="/".join(part for part in (f"{_PREFIX}{place.repo}", path) if part),
        revision=commit,
        name=stem if named else place.repo.rpartition("/")[2],
        files=files,
        is_folder=is_folder,
        page=f"{_endpoint()}/{place.repo}",
    )


def _file(repo: str, entry: Any, commit: str) -> RemoteFile:
    from huggingface_hub import hf_hub_url

    name = check_relative(entry.rfilename)
    url = hf_hub_url(repo, name, revision=commit, endpoint=_endpoint())
    size = entry.lfs.size if entry.lfs else entry.size
    return RemoteFile(name, url, size, entry.lfs.sha256.lower() if entry.lfs else "")


def _why(why: str, files: Sequence[RemoteFile]) -> str:
    size = sum(file.size or 0 for file in files)
    return f"{why} ({human_bytes(size)})" if why else ""


# What searching finds

_ADAPTER_TAGS = {"lora": "lora", "textual-inversion": "textual_inversion"}
# What the Hub makes of a pipeline's model_index.json. The first is SD1's and SD2's alike.
_PIPELINE, _XL_PIPELINE = "diffusers:StableDiffusionPipeline", "diffusers:StableDiffusionXLPipeline"
_EXPANDED: list[Any] = ["downloads", "likes", "tags", "author"]
_BASES = {
    "sd1": (
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "runwayml/stable-diffusion-v1-5",
        "CompVis/stable-diffusion-v1-4",
    ),
    "sd2": ("stabilityai/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1-base"),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/sdxl-turbo"),
}


def _questions(kind: str, family: str) -> Iterator[list[str]]:
    """The tags of each question that is asked: a model must have all of one, and what is looked for may have others.

    Nothing is asked for kinds that no tag tells from others.
    """
    bases = [[f"base_model:{base}"] for base in _BASES.get(family, ())] if family else [[]]
    if kind in _ADAPTER_TAGS:
        yield from ([_ADAPTER_TAGS[kind], *base] for base in bases)
    elif kind == "checkpoint":
        yield from ([_PIPELINE, *base] for base in bases if family != "sdxl")
        yield from [[_XL_PIPELINE]] if family in ("", "sdxl") else []
    elif not kind:
        yield from bases
        yield from [[_XL_PIPELINE]] if family == "sdxl" else []


@contextmanager
def _searching() -> Iterator[None]:
    logger = logging.getLogger("huggingface_hub.utils._http")  # would write a line for each of its attempts
    was, logger.disabled = logger.disabled, True
    try:
        yield
    except Exception as error:  # whatever the library's connection raises; its kinds change with its versions
        if _is_of_network(error):
            raise _unreachable("cannot be searched", error, "check the network, try again") from None
        reason = redact(str(error)).strip().splitlines() or [type(error).__name__]
        raise TransientError(f"cannot be searched: {reason[0]}", "check the network, try again") from None
    finally:
        logger.disabled = was


def _knock() -> None:
    """Ask the Hub for anything, once: the library tries for half a minute to search one that cannot be reached."""
    from huggingface_hub import get_session

    get_session().head(_endpoint(), timeout=_PATIENCE)


def _found(info: Any) -> Found:
    tags = [tag for tag in info.tags or () if isinstance(tag, str)]
    bases = [tag.removeprefix("base_model:") for tag in tags if tag.startswith("base_model:") and tag.count(":") == 1]
    return Found(
        hub="huggingface",
        reference=f"{_PREFIX}{info.id}",
        name=_text(info.id.rpartition("/")[2]),
        kind=_kind(tags),
        base=_text(", ".join(bases)),
        author=_text(info.author),
        downloads=info.downloads or 0,
        likes=info.likes or 0,
        licence=next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), ""),
        page=f"{_endpoint()}/{info.id}",
    )


def _kind(tags: Sequence[str]) -> str:
    adapter = next((kind for kind, tag in _ADAPTER_TAGS.items() if tag in tags), "")
    return adapter or ("checkpoint" if {_PIPELINE, _XL_PIPELINE} & set(tags) else "")


# What the card says


def _card_facts(card: Mapping[str, Any], tags: Sequence[str]) -> dict[str, Any]:
    """Licence, base and trigger words, from the head of a model card that anybody may have written."""
    licence = _text(card.get("license")) or next((tag[8:] for tag in tags if tag.startswith("license:")), "")
    if licence == "other":
        licence = _text(card.get("license_name")) or licence
    link = _text(card.get("license_link"))
    base = card.get("base_model")
    bases = [base] if isinstance(base, str) else base if isinstance(base, list) else []
    trigger = _text(card.get("instance_prompt"))
    return {
        "licence": f"{licence} ({link})" if licence and link else licence,
        "base_model": tuple(_text(one) for one in bases if _text(one)),
        "triggers": (trigger,) if trigger else (),
    }


def _picture(repo: str, card: Mapping[str, Any], listed: Mapping[str, Any], commit: str) -> RemoteFile | None:
    """The first picture of the repository that its card shows; None where it shows none."""
    widget = card.get("widget")
    outputs = [one.get("output") for one in (widget if isinstance(widget, list) else []) if isinstance(one, dict)]
    named = [_text(one.get("url")) for one in outputs if isinstance(one, dict)]
    with suppress(SdkitError):  # one of a strange name is done without
        return next((_file(repo, listed[name], commit) for name in named if name in listed), None)
    return None


def _text(value: object) -> str:
    return value.strip()[:500] if isinstance(value, str) else ""


# The cache of huggingface_hub


def _into_cache(place: _Place, file: RemoteFile, progress: Progress) -> Path:
    """A file of the cache: downloaded if it is not there, else checked."""
    there = below(_snapshot(place), file.name)
    if _is_offline():
        return there
    if file.sha256:
        blob = _storage(place) / "blobs" / file.sha256
        found = next((path for path in (blob, there) if path.exists()), None)
        if found is not None and not _is_whole(found, file, progress):
            blob.unlink(missing_ok=True)
            there.unlink(missing_ok=True)
            found = None
        if found is None:
            blob.parent.mkdir(parents=True, exist_ok=True)
            download(file, blob, _client(place.repo), progress)
    if not there.exists():  # a blob that lies there already is not downloaded again, only given its name
        with _explained(place):
            _api().hf_hub_download(place.repo, file.name, revision=place.revision, cache_dir=_cache())
    return there


def _is_whole(path: Path, file: RemoteFile, progress: Progress) -> bool:
    """Whether a file that somebody downloaded earlier is what the Hub has."""
    progress.start(f"checking {file.name}", path.stat().st_size)
    return digest_spans(path, [Span()], progress).sha256[0] == file.sha256


def _storage(place: _Place) -> Path:
    return Path(_cache()) / f"models--{place.repo.replace('/', '--')}"


def _snapshot(place: _Place) -> Path:
    return _storage(place) / "snapshots" / place.revision


def _offline(place: _Place) -> Offer:
    """What the cache holds of a repository; nothing is asked."""
    ref = _storage(place) / "refs" / (place.revision or "main")
    commit = ref.read_text().strip() if ref.is_file() else place.revision
    folder = _snapshot(replace(place, revision=commit or "-"))
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if not paths:
        problem = f"{_PREFIX}{place.repo}: is not in the cache, and Hugging Face must not be asked"
        raise SdkitError(problem, "go online: unset HF_HUB_OFFLINE")
    choice = choose(paths, place.path, f"{_PREFIX}{place.repo}")
    files = []
    for name in choice.names:
        blob = paths[name].resolve().name
        sha256 = blob if re.fullmatch("[0-9a-f]{64}", blob) else ""
        files.append(RemoteFile(name, f"{_endpoint()}/{place.repo}", paths[name].stat().st_size, sha256))
    offer = _offer(place, commit, tuple(files), choice.is_folder, choice.names)
    return replace(offer, why=_why(choice.why, files), notes=("offline: this is what the cache holds",))


# Asking

_LOGIN = "then run `hf auth login`, or set HF_TOKEN"


def _api() -> HfApi:
    import sdkit

    hide_queries_in_logs()
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    return HfApi(endpoint=_endpoint(), token=_token(), library_name="sdkit-studio", library_version=sdkit.__version__)


def _client(repo: str) -> Client:
    """A client that shows the token to the Hub alone, and explains the Hub's errors."""
    token = _token()
    return Client({_endpoint(): token} if token else {}, lambda response: _explain(response, repo))


def _explain(response: Response, repo: str) -> SdkitError | None:
    code, status = response.headers.get("X-Error-Code", ""), response.status_code
    if code == "GatedRepo":
        return _gated(repo)
    return _hidden(repo) if code == "RepoNotFound" or status == 401 else _forbidden(repo) if status == 403 else None


def _gated(repo: str) -> CredentialsError:
    page = f"{_endpoint()}/{repo}"
    if _token() is None:
        return CredentialsError(f"{repo}: its makers want to know who uses it", f"accept its terms at {page}, {_LOGIN}")
    return CredentialsError(
        f"{repo}: its makers have not let your account in",
        f"accept its terms at {page}; a fine-grained token also needs the right to read public gated repositories",
    )


def _hidden(repo: str) -> CredentialsError:
    """The Hub does not tell what is private from what does not exist."""
    page = f"{_endpoint()}/{repo}"
    if _token() is None:
        hint = f"check the spelling at {page}; if it is private, make a token at {_TOKENS}, {_LOGIN}"
        return CredentialsError(f"{repo}: there is no such repository, or it is private", hint)
    hint = f"check the spelling at {page}, and what your token may read at {_TOKENS}"
    return CredentialsError(f"{repo}: there is no such repository, or your token may not read it", hint)


def _forbidden(repo: str) -> CredentialsError:
    return CredentialsError(f"{repo}: your token may not do this", f"see what it may do at {_TOKENS}")


@contextmanager
def _explained(place: _Place) -> Iterator[None]:
    """Tell the errors of huggingface_hub in a person's words, without addresses that hold signatures."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise _gated(place.repo) from None
    except errors.RepositoryNotFoundError:
        raise _hidden(place.repo) from None
    except errors.RevisionNotFoundError:
        hint = f"{_endpoint()}/{place.repo}/commits/main lists them"
        raise SdkitError(f"{_PREFIX}{place.repo}: has no revision {place.revision!r}", hint) from None
    except errors.EntryNotFoundError:
        raise SdkitError(f"{_PREFIX}{place.repo}: a file of it is gone", "try again; it may just be changing") from None
    except errors.HfHubHTTPError as error:
        raise _failed(place, error) from None
    except errors.HFValidationError:
        raise UsageError(f"{_PREFIX}{place.repo}: is no name of a repository", "write hf:ORG/REPO") from None
    except SdkitError:
        raise
    except ValueError as error:  # of a model card that the Hub finds fault with
        raise SdkitError(f"{_PREFIX}{place.repo}: {redact(str(error))}") from None
    except Exception as error:  # whatever the library's connection raises; its kinds change with its versions
        hint = "check the network, or the proxy; HF_HUB_OFFLINE=1 takes what the cache already holds"
        raise _unreachable(f"{_PREFIX}{place.repo}", error, hint) from None


def _unreachable(what: str, error: Exception, hint: str) -> TransientError:
    """The error for a Hub that was asked and did not answer, in words instead of the system's numbers."""
    if not _is_of_network(error):
        return TransientError(f"{what}: {redact(str(error))}", "check the network, try again")
    server = "Hugging Face" if _endpoint() == _OFFICIAL else f"{_endpoint()} (HF_ENDPOINT)"
    return TransientError(f"{what}: {server} cannot be reached: {innermost_reason(error)}", hint)


def _is_of_network(error: BaseException | None) -> bool:
    """Whether the system's own error lies beneath: what the library wraps it in changes with its versions."""
    return error is not None and (isinstance(error, OSError) or _is_of_network(error.__cause__ or error.__context__))


def _failed(place: _Place, error: HfHubHTTPError) -> SdkitError:
    status, name = error.response.status_code, f"{_PREFIX}{place.repo}"
    if status in (401, 403):
        return _forbidden(place.repo) if status == 403 else _hidden(place.repo)
    if status == 429:
        return TransientError(f"{name}: too many requests to Hugging Face", "wait some minutes, try again")
    if status >= 500:
        return TransientError(f"{name}: Hugging Face fails with {status}", "try again later")
    return SdkitError(f"{name}: Hugging Face answers {status}: {redact(str(error)).strip().splitlines()[0]}")


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or _OFFICIAL).rstrip("/")


def _cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
