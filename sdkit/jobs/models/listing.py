"""Listing the registered models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdkit.core.report import Report
from sdkit.registry.registry import open_registry
from sdkit.registry.rows import Entry


@dataclass(frozen=True, slots=True)
class ModelList(Report):
    """The models that were asked for, the newest first, and how many match."""

    models: tuple[Entry, ...]
    total: int


def list_models(
    words: Sequence[str] = (),
    *,
    kind: str = "",
    family: str = "",
    tag: str = "",
    missing: bool = False,
    everything: bool = False,
    limit: int | None = None,
) -> ModelList:
    """The registered models that match, see `Registry.entries`."""
    filters: dict[str, Any] = {"kind": kind, "family": family, "tag": tag, "missing": missing, "everything": everything}
    with open_registry() as registry:
        models = registry.entries(words, **filters, limit=limit)
        cut = limit is not None and len(models) == limit
        return ModelList(tuple(models), registry.count(words, **filters) if cut else len(models))
