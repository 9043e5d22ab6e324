"""Civitai on this machine: its API, and the storage it sends downloads to, with the habits that break other programs.

HEAD is refused whoever asks; programs without a name of their own are refused; downloads need a token and lead to
signed addresses that refuse one; an error may come as a page with the status of a success; a search is paged by
cursors alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from drawn import picture
from web import Answer, Request, Web, file_answer, serve

TOKEN = "civitai-secret-0123456789abcdef"
PNG = picture("PNG")


@dataclass(slots=True)
class Civitai:
    """The running servers, and what lies there.

    `storage_answers` may change what the storage answers: each is taken once.
    """

    models: dict[int, dict[str, Any]] = field(default_factory=dict)
    blobs: dict[int, bytes] = field(default_factory=dict)
    bought: set[int] = field(default_factory=set)
    early: set[int] = field(default_factory=set)
    pictures: dict[str, bytes] = field(default_factory=dict)  # path → bytes; all others are `PNG`
    busy: list[Answer] = field(default_factory=list)
    storage_answers: list[Callable[[Answer], Answer]] = field(default_factory=list)
    web: Web = field(default_factory=lambda: Web(""))
    storage: Web = field(default_factory=lambda: Web(""))

    def add(
        self, model: int, version: int, data: bytes, *, name: str = "fox.safetensors", **facts: Any
    ) -> dict[str, Any]:
        """Publish a version; `facts` are of the version. Returns it, to be changed."""
        entry = self.models.setdefault(
            model,
            {
                "id": model,
                "name": "Sly <b>Fox</b>",
                "type": "LORA",
                "tags": ["animal", "fox"],
                "creator": {"username": "vixen"},
                "allowNoCredit": False,
                "allowCommercialUse": "{Image,Rent}",
                "allowDerivatives": True,
                "allowDifferentLicense": False,
                "stats": {"downloadCount": 1000 + model, "thumbsUpCount": 90, "thumbsDownCount": 10},
                "modelVersions": [],
            },
        )
        made = {
            "id": version,
            "modelId": model,
            "name": "v2",
            "baseModel": "SDXL 1.0",
            "trainedWords": ["ohwx fox, sly", 3],
            "description": "<p>At <i>0.7</i></p>",
            "availability": "Public",
            "usageControl": "Download",
            "files": [self.file(version, data, name=name, primary=True)],
            "images": [
                {"url": f"{self.storage.url}/images/adult.png", "nsfwLevel": 8, "type": "image"},
                {"url": f"{self.storage.url}/images/1.png", "nsfwLevel": 1, "type": "image"},
            ],
            **facts,
        }
        entry["modelVersions"].insert(0, made)
        return made

    def file(self, version: int, data: bytes, *, name: str, primary: bool = False, **facts: Any) -> dict[str, Any]:
        """A file of a version, whose bytes the storage has from now on."""
        number = len(self.blobs) + 1
        self.blobs[number] = data
        return {
            "id": number,
            "name": name,
            "type": "Model",
            "sizeKB": len(data) / 1024,
            "metadata": {"format": "SafeTensor", "size": "pruned", "fp": "fp16"},
            "hashes": {
                "SHA256": hashlib.sha256(data).hexdigest().upper(),
                "AutoV2": hashlib.sha256(data).hexdigest()[:10].upper(),
            },
            "downloadUrl": f"{self.web.url}/api/download/models/{version}?file={number}",
            **({"primary": True} if primary else {}),
            **facts,
        }

    def answer(self, request: Request) -> Answer:
        if not request.headers.get("user-agent", "").startswith("sdkit"):
            return Answer(403, b"<html>Just a moment...</html>", {"Content-Type": "text/html"})
        if request.method == "HEAD":
            return Answer(401)
        if self.busy:
            return self.busy.pop(0)
        path = request.path
        if found := re.fullmatch(r"/api/download/models/(\d+)", path):
            return self._download(request, int(found[1]))
        if path == "/api/v1/model-versions/by-hash":
            return _json(self._by_hashes(json.loads(request.body)))
        if found := re.fullmatch(r"/api/v1/model-versions/by-hash/(\w+)", path):
            versions = self._by_hashes([found[1]])
            return _json(versions[0]) if versions else _missing()
        if found := re.fullmatch(r"/api/v1/model-versions/(\d+)", path):
            return next((_json(one) for one in self._versions() if one["id"] == int(found[1])), _missing())
        if found := re.fullmatch(r"/api/v1/models/(\d+)", path):
            return _json(self.models[int(found[1])]) if int(found[1]) in self.models else _missing()
        return self._search(request) if path == "/api/v1/models" else _missing()

    def _versions(self) -> Iterator[dict[str, Any]]:
        """Versions asked for by themselves tell little of their models."""
        for model in self.models.values():
            for version in model["modelVersions"]:
                yield {**version, "model": {"name": model["name"], "type": model["type"], "nsfw": False}}

    def _by_hashes(self, hashes: list[str]) -> list[dict[str, Any]]:
        assert len(hashes) <= 100
        return [
            one for one in self._versions() if any(set(file["hashes"].values()) & set(hashes) for file in one["files"])
        ]

    def _download(self, request: Request, version: int) -> Answer:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _json(
                {"error": "Unauthorized", "message": "The creator of this asset requires you to be logged in"}, 401
            )
        if version in self.early and version not in self.bought:
            return _json({"error": "Early Access", "message": "This asset is in Early Access."}, 403)
        number = request.query["file"][0]
        return Answer(307, b"", {"Location": f"{self.storage.url}/bucket/{number}?X-Amz-Signature=s3cr3t"})

    def _search(self, request: Request) -> Answer:
        query = {name: values[0] for name, values in request.query.items()}
        if "query" in query and "page" in query:
            return _json({"error": "Cannot use page param with query search. Use cursor-based pagination."}, 400)
        if int(query.get("limit", 100)) > 100:
            return _json({"error": {"issues": []}}, 400)
        types, bases = set(request.query.get("types", [])), set(request.query.get("baseModels", []))
        found = [
            model
            for _, model in sorted(self.models.items())
            if (not types or model["type"] in types)
            and (not bases or any(one["baseModel"] in bases for one in model["modelVersions"]))
        ]
        start, count = int(query.get("cursor", 0)), int(query.get("limit", 100))
        more = {"nextCursor": start + count} if start + count < len(found) else {}
        return _json({"items": found[start : start + count], "metadata": more})

    def store(self, request: Request) -> Answer:
        if "authorization" in request.headers:
            return Answer(400, b"<Error><Code>InvalidArgument</Code></Error>", {"Content-Type": "application/xml"})
        if request.path.startswith("/images/"):
            return Answer(200, self.pictures.get(request.path, PNG), {"Content-Type": "image/png"})
        answer = file_answer(request, self.blobs[int(request.path.rpartition("/")[2])])
        return self.storage_answers.pop(0)(answer) if self.storage_answers else answer


def _json(value: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _missing() -> Answer:
    return _json({"error": "No model with id"}, 404)


@contextmanager
def serve_civitai() -> Iterator[Civitai]:
    """Answer as Civitai does while the context lasts."""
    civitai = Civitai()
    with serve(civitai.answer) as civitai.web, serve(civitai.store) as civitai.storage:
        yield civitai
