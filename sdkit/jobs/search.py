"""Searching the hubs that can be searched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import cast

from sdkit.core.civitai import BASE_MODELS, TYPES
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.report import Report
from sdkit.hubs import hub_module, hubs
from sdkit.hubs.searching import Found, SearchingHub


@dataclass(frozen=True, slots=True)
class KindStats:
    """What people make of one kind of model on one hub, of those that were found.

    Attributes:
        hub: the hub.
        kind: of model.
        models: how many were found.
        downloads: of all of them.
        median_downloads: of the one in the middle.
        likes: of all of them.
        approval: likes among likes and dislikes, 0 to 1; None where the hub asks for no dislikes, or nobody said.
    """

    hub: str
    kind: str
    models: int
    downloads: int
    median_downloads: float
    likes: int
    approval: float | None


@dataclass(frozen=True, slots=True)
class SearchReport(Report):
    """What was found.

    Attributes:
        models: the most downloaded first.
        stats: by hub and kind.
        notes: hubs that did not answer, and why.
    """

    models: tuple[Found, ...]
    stats: tuple[KindStats, ...]
    notes: tuple[str, ...]


def search(query: str, *, kind: str = "", family: str = "", limit: int = 20, only: Sequence[str] = ()) -> SearchReport:
    """Search all hubs.

    Args:
        query: words.
        kind: only of this kind, see `sdkit.core.civitai.TYPES`.
        family: only for this family.
        limit: of each hub at most so many.
        only: names of hubs; without any, all that can be searched.

    Raises:
        UsageError: an unknown kind, family or hub.
        SdkitError: no hub answers.
    """
    for what, given, known in (("kind", kind, TYPES), ("family", family, BASE_MODELS)):
        if given and given not in known:
            raise UsageError(f"unknown {what} {given!r}", f"there are: {', '.join(known)}")
    found: list[Found] = []
    failures: list[SdkitError] = []
    searched = searchable(only)
    for name, hub in searched.items():
        try:
            found += hub.search(query, kind=kind, family=family, limit=limit)
        except UsageError:
            raise
        except SdkitError as error:  # the others may know
            failures.append(type(error)(f"{name}: {error.message}", error.hint))
    if len(failures) == len(searched):
        raise _none_answers(failures)
    found.sort(key=lambda one: (-one.downloads, one.reference))
    return SearchReport(tuple(found), tuple(_stats(found)), tuple(error.message for error in failures))


def _none_answers(failures: Sequence[SdkitError]) -> SdkitError:
    """The error where every hub fails: why, hub by hub."""
    if len(failures) == 1:
        return failures[0]
    hints = dict.fromkeys(error.hint for error in failures if error.hint)
    return SdkitError("\n".join(["no hub answers:", *(error.message for error in failures)]), "; ".join(hints))


def searchable(only: Sequence[str] = ()) -> dict[str, SearchingHub]:
    """The hubs that can be searched, by name.

    Raises:
        UsageError: one of the names in `only` is no such hub.
    """
    modules = {name: hub_module(name) for name in hubs()}
    able = {name: cast(SearchingHub, module) for name, module in modules.items() if hasattr(module, "search")}
    unknown = next((name for name in only if name not in able), None)
    if unknown is not None:
        raise UsageError(f"{unknown!r} is no hub that can be searched", f"there are: {', '.join(able)}")
    return {name: hub for name, hub in able.items() if not only or name in only}


def _stats(found: Iterable[Found]) -> Iterable[KindStats]:
    def group(one: Found) -> tuple[str, str]:
        return one.hub, one.kind

    for (hub, kind), members in groupby(sorted(found, key=group), group):
        models = list(members)
        counts = [one.downloads for one in models]
        likes = sum(one.likes for one in models)
        dislikes = [one.dislikes for one in models if one.dislikes is not None]
        asked = sum(one.likes for one in models if one.dislikes is not None)
        votes = asked + sum(dislikes)
        approval = asked / votes if votes else None
        yield KindStats(hub, kind, len(models), sum(counts), float(median(counts)), likes, approval)
