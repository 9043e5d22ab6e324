"""The registry as one JSON file, to look at, to keep, or to take to another machine.

Models are told by the names of their contents, so what is imported meets what is registered there. The importing side
never believes the file about paths: a model has files where they are found.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.registry.changes import USER
from sdkit.registry.facts import unique
from sdkit.registry.recipes import Input, Made
from sdkit.registry.registry import Registry
from sdkit.registry.rows import Model, Publication, Source

SCHEMA = "sdkit.models/1"
_SCHEMES = ("content", "sha256", "quick")


def exported(registry: Registry, artifacts: Iterable[int]) -> dict[str, Any]:
    """Models with their lineage, as plain data."""
    return {"schema": SCHEMA, "models": [_model(registry, registry.model(artifact)) for artifact in artifacts]}


def _model(registry: Registry, model: Model) -> dict[str, Any]:
    entry = model.entry
    return {
        "name": entry.name,
        "named": model.named,
        "kind": entry.kind,
        "family": entry.family,
        "format": entry.format,
        "size": entry.size,
        "identities": [list(pair) for pair in model.identities],
        "files": [{"path": file.path, "sha256": file.sha256, "missing": file.missing} for file in model.files],
        "triggers": list(entry.triggers),
        "tags": list(entry.tags),
        "notes": list(model.notes),
        "licences": list(model.licences),
        "sources": [
            {"hub": source.hub, "reference": source.reference, "revision": source.revision, "url": source.url}
            for source in model.sources
        ],
        "published": [asdict(one) for one in model.published],
        "facts": dict(model.details),
        "made": [
            {
                "verb": activity.verb,
                "recipe": dict(activity.recipe),
                "inputs": [_input(registry, *given) for given in activity.inputs],
            }
            for activity in registry.made(entry.id)
        ],
    }


def _input(registry: Registry, artifact: int, role: str, strength: float | None) -> dict[str, Any]:
    model = registry.model(artifact)
    ids = dict(reversed(model.identities))
    scheme = next(scheme for scheme in ("quick", "sha256", "content") if scheme in ids)
    return {"name": model.entry.name, "scheme": scheme, "id": ids[scheme], "role": role, "strength": strength}


def import_json(registry: Registry, path: Path) -> tuple[int, int]:
    """Take over what another registry knows; returns how many models were known here, and how many were not.

    Raises:
        SdkitError: it is no export of a registry.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SdkitError(f"{path}: no JSON: {error}", "`sdkit models export` writes what is read here") from None
    if not isinstance(table, dict) or table.get("schema") != SCHEMA or not isinstance(table.get("models"), list):
        raise SdkitError(
            f"{path}: no export of a registry ({SCHEMA})", "`sdkit models export` writes what is read here"
        )
    known = unknown = 0
    with registry.writing():
        for given in table["models"]:
            if isinstance(given, dict) and (made := _take(registry, given)) is not None:
                known, unknown = known + made, unknown + (not made)
    return known, unknown


def _take(registry: Registry, given: Mapping[str, Any]) -> bool | None:
    """Register one; returns whether its content was known here, None where it has no identity."""
    pairs = [tuple(pair) for pair in _list(given, "identities") if isinstance(pair, list) and len(pair) == 2]
    identities = [(scheme, value) for scheme, value in pairs if scheme in _SCHEMES and isinstance(value, str)]
    if not identities:
        return None
    artifact = registry.learn(identities, str(given.get("name", "")))
    if given.get("named") is True and not registry.model(artifact.id).named:
        with contextlib.suppress(UsageError):  # what cannot be a name is none
            registry.rename(artifact.id, str(given.get("name", "")))
    for table in ("triggers", "tags", "notes", "licences"):
        words = [word for word in _list(given, table) if isinstance(word, str)]
        registry.add_words(table, artifact.id, words if table == "notes" else unique(words), USER)
    for source in _list(given, "sources"):
        if isinstance(source, dict) and source.get("hub") and source.get("reference"):
            fields = (str(source.get(key, "")) for key in ("hub", "reference", "revision", "url"))
            registry.add_source(artifact.id, Source(*fields))
    for told in _list(given, "published"):
        if isinstance(told, dict) and told.get("reference"):
            place = {key: str(told.get(key, "")) for key in ("reference", "revision", "url")}
            told_files = tuple(map(str, _list(told, "files")))
            registry.add_publication(artifact.id, Publication(**place, files=told_files))
    for made in _list(given, "made"):
        if isinstance(made, dict) and isinstance(made.get("verb"), str):
            registry.add_activity(artifact.id, _made(made))
    return bool(artifact.path)


def _made(given: Mapping[str, Any]) -> Made:
    recipe = given.get("recipe")
    inputs = [entry for entry in _list(given, "inputs") if isinstance(entry, dict) and entry.get("scheme") in _SCHEMES]
    return Made(
        given["verb"],
        json.dumps(recipe if isinstance(recipe, dict) else {}, sort_keys=True),
        tuple(
            Input(
                entry["scheme"],
                str(entry.get("id", "")),
                str(entry.get("name", "")),
                str(entry.get("role", "input")),
                float(entry["strength"]) if isinstance(entry.get("strength"), (int, float)) else None,
            )
            for entry in inputs
        ),
    )


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key)
    return value if isinstance(value, list) else []
