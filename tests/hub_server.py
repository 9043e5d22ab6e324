"""A server that answers as Hugging Face's Hub does, with a second one as its storage, so that hosts really differ.

Written from what huggingface_hub sends and expects: model info, resolve with redirects and X-Linked-* headers,
preupload, LFS batch, uploads to signed addresses, verify and commit. The storage refuses requests that show a token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlencode

import yaml
from web import Answer, Request, Web, file_answer, serve

TOKEN = "hf_TestTokenTestTokenTestToken"
SIGNATURE = "Signature=dGhpcyBpcyBzZWNyZXQ"
_LFS = (".safetensors", ".bin", ".pt", ".ckpt", ".png")
_INFO = re.compile(r"/api/models/([\w.-]+/[\w.-]+|[\w.-]+)(/revision/(.+))?")
_RESOLVE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")
_PREUPLOAD = re.compile(r"/api/models/([\w.-]+/[\w.-]+)/preupload/(.+)")
_COMMIT = re.compile(r"/api/models/([\w.-]+/[\w.-]+)/commit/(.+)")
_BATCH = re.compile(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch")


@dataclass(slots=True)
class Repository:
    """Files by name, at every commit."""

    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    pulls: list[dict[str, bytes]] = field(default_factory=list)
    downloads: int = 10

    @property
    def head(self) -> str:
        return list(self.commits)[-1] if self.commits else "0" * 40

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits.get(self.head, {})

    def commit(self, files: dict[str, bytes], message: str = "") -> str:
        self.messages.append(message)
        number = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[number] = dict(files)
        return number


@dataclass(slots=True)
class Hub:
    """The running server, and what lies on it.

    `storage_answers` may change what the storage answers, to break downloads off.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)  # repositories whose terms the token's owner has accepted
    page: int = 1000  # models of an answer to a search
    busy: list[Answer] = field(default_factory=list)
    storage_answers: list[Any] = field(default_factory=list)
    web: Web = field(default_factory=lambda: Web(""))
    storage: Web = field(default_factory=lambda: Web(""))

    @property
    def url(self) -> str:
        return self.web.url

    def add(self, name: str, files: dict[str, bytes], **facts: bool) -> Repository:
        repository = self.repositories[name] = Repository(**facts)
        repository.commit(files)
        self.blobs |= {hashlib.sha256(data).hexdigest(): data for data in files.values()}
        return repository

    # The Hub

    def answer(self, request: Request) -> Answer:
        if self.busy:
            return self.busy.pop(0)
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            return _refused(401, "", "Invalid credentials in Authorization header")
        known = token == TOKEN
        if request.path == "/api/repos/create" and request.method == "POST":
            return self._create(json.loads(request.body), known)
        if request.path == "/api/models":
            return self._listed(request, known)
        if request.path == "/api/validate-yaml":
            return self._validate(json.loads(request.body))
        for pattern, method in (
            (_PREUPLOAD, self._preupload),
            (_COMMIT, self._commit),
            (_BATCH, self._batch),
            (_RESOLVE, self._resolve),
            (_INFO, self._info),
        ):
            found = pattern.fullmatch(unquote(request.path))
            if found:
                repository = self.repositories.get(found[1])
                if repository is None or (repository.private and not known):
                    return _refused(404 if known else 401, "RepoNotFound", "Repository not found")
                if pattern in (_PREUPLOAD, _COMMIT, _BATCH) and not known:
                    return _refused(401, "", "")
                return method(request, repository, *found.groups())
        return Answer(404)

    def _listed(self, request: Request, known: bool) -> Answer:
        """A search: words in the name, and all of the tags; a page at a time. What the Hub does not know it refuses."""
        strange = set(request.query) - {"search", "filter", "sort", "limit", "expand", "cursor"}
        expanded = set(request.query.get("expand", [])) - {"downloads", "likes", "tags", "author"}
        if strange or expanded or request.query.get("sort") != ["downloads"]:
            return _refused(400, "", f"Unknown: {strange} {expanded}")
        words, wanted = request.query.get("search", [""])[0], set(request.query.get("filter", []))
        found = []
        for name, repository in self.repositories.items():
            card = _card(repository.commits[self._revision(repository, "main") or ""].get("README.md", b""))
            tags = _tags(card)
            if words in name and wanted <= set(tags) and (known or not repository.private):
                count = repository.downloads
                facts = {"id": name, "tags": tags, "downloads": count, "likes": 2, "author": name.partition("/")[0]}
                found.append(facts)
        found.sort(key=lambda one: -one["downloads"])
        start = int(request.query.get("cursor", ["0"])[0])
        stop = start + min(int(request.query.get("limit", ["1000"])[0]), self.page)
        answer = _json(found[start:stop])
        if stop < len(found):
            query = urlencode({**request.query, "cursor": stop}, doseq=True)
            answer.headers["Link"] = f'<{self.url}/api/models?{query}>; rel="next"'
        return answer

    def _info(self, request: Request, repository: Repository, name: str, _: str | None, revision: str | None) -> Answer:
        commit = self._revision(repository, revision or "main")
        if commit is None:
            return _refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repository.commits.get(commit, {})
        card = _card(files.get("README.md", b""))
        tags = _tags(card)
        siblings = [self._sibling(name, data) for name, data in files.items()]
        facts = {"id": name, "modelId": name, "sha": commit, "private": repository.private, "tags": tags}
        return _json({**facts, "gated": repository.gated and "auto", "cardData": card, "siblings": siblings})

    def _sibling(self, name: str, data: bytes) -> dict[str, Any]:
        told: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": _git_sha1(data)}
        if name.endswith(_LFS):
            told["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return told

    def _resolve(self, request: Request, repository: Repository, name: str, revision: str, path: str) -> Answer:
        commit = self._revision(repository, revision)
        if commit is None:
            return _refused(404, "RevisionNotFound", "")
        if path not in repository.commits[commit]:
            return _refused(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        if repository.gated and name not in self.readers:
            known = "authorization" in request.headers
            return _refused(403 if known else 401, "GatedRepo", f"Access to model {name} is restricted")
        data, told = repository.commits[commit][path], {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not path.endswith(_LFS):
            return file_answer(request, data, etag=f'"{_git_sha1(data)}"', headers=told)
        sha256 = hashlib.sha256(data).hexdigest()
        told |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256}"', "ETag": f'"{_git_sha1(data)}"'}
        return Answer(302, b"", {**told, "Location": f"{self.storage.url}/{sha256}?{SIGNATURE}"})

    def _revision(self, repository: Repository, revision: str) -> str | None:
        return repository.head if revision == "main" else revision if revision in repository.commits else None

    def _create(self, body: dict[str, Any], known: bool) -> Answer:
        if not known:
            return _refused(401, "", "")
        name = f"{body['organization']}/{body['name']}"
        if name in self.repositories:
            return _json({"error": "You already created this model repo", "url": f"{self.url}/{name}"}, 409)
        self.repositories[name] = Repository(private=body.get("visibility") == "private" or bool(body.get("private")))
        return _json({"url": f"{self.url}/{name}", "name": name})

    def _validate(self, body: dict[str, Any]) -> Answer:
        card = _card(body["content"].encode())
        relations = (None, "adapter", "merge", "quantized", "finetune")
        errors = [] if card.get("base_model_relation") in relations else [{"message": "no such relation"}]
        return _json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _preupload(self, request: Request, repository: Repository, name: str, revision: str) -> Answer:
        files = json.loads(request.body)["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(_LFS) else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        return _json({"files": modes, "commitOid": repository.head})

    def _batch(self, request: Request, repository: Repository, name: str) -> Answer:
        objects = []
        for entry in json.loads(request.body)["objects"]:
            told = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.blobs:
                href = f"{self.storage.url}/{entry['oid']}?{SIGNATURE}"
                told["actions"] = {"upload": {"href": href}}
            objects.append(told)
        return _json({"transfer": "basic", "objects": objects})

    def _commit(self, request: Request, repository: Repository, name: str, revision: str) -> Answer:
        lines = [json.loads(line) for line in request.body.splitlines()]
        files = dict(repository.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif value["oid"] not in self.blobs:
                return _json({"error": "an LFS pointer points to nothing"}, 400)
            else:
                files[value["path"]] = self.blobs[value["oid"]]
        told = {"success": True, "commitOid": "", "commitUrl": ""}
        if request.query.get("create_pr") == ["1"]:
            repository.pulls.append(files)
            told["pullRequestUrl"] = f"{self.url}/{name}/discussions/{len(repository.pulls)}"
            return _json({**told, "commitOid": "1" * 40, "commitUrl": f"{self.url}/{name}/commit/{'1' * 40}"})
        commit = repository.commit(files, lines[0]["value"]["summary"])
        return _json({**told, "commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"})

    # Its storage

    def store(self, request: Request) -> Answer:
        oid = request.path.removeprefix("/")
        if "authorization" in request.headers or SIGNATURE.partition("=")[0] not in request.query:
            return Answer(400, b"<Error>InvalidArgument: only one auth mechanism allowed</Error>")
        if request.method == "PUT":
            if hashlib.sha256(request.body).hexdigest() != oid:
                return Answer(400)
            self.blobs[oid] = request.body
            return Answer(200)
        if oid not in self.blobs:
            return Answer(404)
        answer = file_answer(request, self.blobs[oid])
        return self.storage_answers.pop(0)(answer) if self.storage_answers else answer


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A Hub with nothing on it."""
    hub = Hub()
    with ExitStack() as stack:
        hub.storage = stack.enter_context(serve(hub.store))
        hub.web = stack.enter_context(serve(hub.answer))
        yield hub


def card(**facts: Any) -> bytes:
    """A model card with this head."""
    return f"---\n{yaml.safe_dump(facts)}---\n# A model\n".encode()


def _tags(card: dict[str, Any]) -> list[str]:
    return [*card.get("tags", []), *([f"license:{card['license']}"] if "license" in card else [])]


def _card(text: bytes) -> dict[str, Any]:
    found = re.match(rb"---\n(.*?)\n---\n", text, re.DOTALL)
    return yaml.safe_load(found[1]) if found else {}


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _refused(status: int, code: str, message: str, more: dict[str, str] | None = None) -> Answer:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(more or {})}
    return Answer(status, json.dumps({"error": message}).encode(), headers)
