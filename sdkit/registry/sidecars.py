"""The files other programs keep beside a model: what they know of it, and its preview.

    NAME.civitai.info   a model version as Civitai's API gives it (Civitai Helper)
    NAME.json           a person's notes in A1111's web UI (modules/ui_extra_networks_user_metadata.py)
    NAME.preview.png    its picture; also NAME.png and other suffixes

They come from strangers: every value is checked, none is believed about the file's content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdkit.core.civitai import BASE_MODELS, TYPES, page, plain_text, terms, trained_words
from sdkit.registry.changes import SIDECAR
from sdkit.registry.facts import unique
from sdkit.registry.previews import kept_previews
from sdkit.registry.registry import Registry
from sdkit.registry.rows import Model, Source

INFO, NOTES, PREVIEW = ".civitai.info", ".json", ".preview.png"
_PREVIEWS = (".preview.png", ".preview.jpg", ".preview.jpeg", ".preview.webp", ".png", ".jpg", ".jpeg", ".webp")
_LARGEST = 4 << 20  # bytes; a real one is a few hundred kilobytes
_WEBUI_FAMILIES = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
_CIVITAI = re.compile(r"civitai:(\d+)(/.+)?")


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What lies beside a model.

    Attributes:
        triggers: words that call it up.
        notes: descriptions and a person's notes.
        sources: where it was downloaded.
        licence: what its maker allows, as Civitai words it.
        files: which files told.
    """

    triggers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    licence: str = ""
    files: tuple[Path, ...] = field(default=())


def read_sidecars(path: Path) -> Sidecar | None:
    """What lies beside the model at `path`; None where nothing readable does."""
    info, notes = _table(beside(path, INFO)), _table(beside(path, NOTES))
    if not _is_civitai(info):
        info = {}
    if not notes.keys() & {"activation text", "description", "notes", "sd version", "preferred weight"}:
        notes = {}
    if not (info or notes):
        return None
    told = [plain_text(info.get("description")), plain_text(notes.get("description")), plain_text(notes.get("notes"))]
    return Sidecar(
        unique([*trained_words(info), *plain_text(notes.get("activation text")).split(",")]),
        tuple(dict.fromkeys(text for text in told if text)),
        _sources(info),
        terms(info, info.get("model")),
        tuple(beside(path, suffix) for suffix, table in ((INFO, info), (NOTES, notes)) if table),
    )


def take_sidecars(registry: Registry, artifact: int, path: Path) -> bool:
    """Register what lies beside a model; returns whether anything did."""
    sidecar = read_sidecars(path)
    if sidecar is None:
        return False
    with registry.writing():
        registry.renew_words("triggers", artifact, sidecar.triggers, SIDECAR)
        registry.renew_words("notes", artifact, sidecar.notes, SIDECAR)
        registry.renew_words("licences", artifact, [sidecar.licence] if sidecar.licence else [], SIDECAR)
        for source in sidecar.sources:
            registry.add_source(artifact, source, SIDECAR)
    return True


def sidecar_texts(model: Model, path: Path) -> dict[Path, str]:
    """The sidecars that tell other programs what is known of a model: path → text."""
    entry = model.entry
    numbers = ((source, _CIVITAI.fullmatch(source.reference)) for source in model.sources if source.hub == "civitai")
    civitai, number = next((pair for pair in numbers if pair[1]), (Source("", ""), None))
    sha256 = next((file.sha256 for file in model.files if file.path == str(path)), None)
    info: dict[str, Any] = {
        "name": model.details.get("title") or entry.name,
        "model": {"name": entry.name, "type": TYPES.get(entry.kind, ("Other",))[0]},
        "baseModel": BASE_MODELS.get(entry.family, ("Other",))[0],
        "trainedWords": list(entry.triggers),
        "description": "\n\n".join(model.notes),
        "files": [
            {
                "name": path.name,
                "sizeKB": entry.size / 1024,
                "primary": True,
                "hashes": {"SHA256": sha256.upper()} if sha256 else {},
            }
        ],
    }
    if number and civitai.revision.isdecimal():
        info |= {"id": int(civitai.revision), "modelId": int(number[1])}
    notes = {
        "description": str(model.details.get("title", "")),
        "sd version": _WEBUI_FAMILIES.get(entry.family, "Unknown"),
        "activation text": ", ".join(entry.triggers),
        "notes": "\n\n".join(model.notes),
    }
    return {beside(path, INFO): _json(info), beside(path, NOTES): _json(notes)}


def find_previews(path: Path, sha256: str | None = None) -> list[Path]:
    """Pictures of the model at `path`: those beside it, else the last its training run has drawn, else a hub's."""
    found = [picture for suffix in _PREVIEWS if (picture := beside(path, suffix)).is_file()]
    found = found or sorted((path.parent / "samples").glob("*.png"))[-1:]
    return found or kept_previews(sha256)


def beside(path: Path, suffix: str) -> Path:
    """The file beside a model that ends in `suffix`."""
    return path.with_name(f"{path.name if path.is_dir() else path.stem}{suffix}")


def _sources(info: Mapping[str, Any]) -> tuple[Source, ...]:
    model, version = info.get("modelId"), info.get("id")
    if type(model) is not int or type(version) is not int:
        return ()
    return (Source("civitai", f"civitai:{model}", str(version), page(model, version)),)


def _is_civitai(info: Mapping[str, Any]) -> bool:
    return bool(info.keys() & {"modelId", "trainedWords", "baseModel"})


def _table(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            return {}
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
