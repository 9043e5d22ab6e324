"""The one place where verbs tell the registry what they have done. A verb never fails because this does."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from sdkit.core.errors import SdkitError
from sdkit.families.bases import TINY
from sdkit.registry.database import RepairedError
from sdkit.registry.facts import look_at, stamp_of
from sdkit.registry.registry import Registry, is_on, open_registry
from sdkit.streaming.lazy import leaves
from sdkit.weights import Weights

T = TypeVar("T")


_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Jobs in this context register nothing: what they make is only on the way to something else."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def recorded(report: T, inputs: Iterable[Any] = ()) -> T:
    """Register the output of a job, and its inputs where they lie; the output's own metadata tell how it was made.

    Args:
        report: the job's report: `output`, perhaps `saved`, and `dry_run` or `finished` where nothing was written.
        inputs: what the job was given: paths, opened weights, or pairs of either with a strength.

    Returns:
        The report; with a note in it, if the registry could not be written.
    """
    if _SILENT.get() or not is_on() or getattr(report, "dry_run", False) or not getattr(report, "finished", True):
        return report
    given = list(inputs)
    try:
        try:
            notes = _record(report, given)
        except RepairedError as repaired:
            notes = [repaired.message, *_record(report, given)]
    except Exception as error:  # whatever it is, the work is done and must not look as if it were not
        notes = [f"the registry does not know of it: {error}"]
    return _with_notes(report, notes)


def _record(report: Any, inputs: Iterable[Any]) -> list[str]:
    """Register the files; returns what a person should know of those that could not be."""
    notes: list[str] = []
    outputs = [Path(report.output), *map(Path, getattr(report, "saved", ()))]
    with open_registry() as registry:
        for path in [*_paths(inputs), *outputs]:
            try:
                _register(registry, path, is_made=path == outputs[0])
            except (SdkitError, OSError) as error:
                notes.append(f"not in the registry: {error}")
    return notes


def _register(registry: Registry, path: Path, *, is_made: bool) -> None:
    """Register one file, unless it is known as it is."""
    if not is_made and registry.stamp(path.absolute()) == stamp_of(path):
        return
    facts = look_at(path)
    artifact = registry.observe(facts)
    if is_made and facts.made is not None:
        registry.finish_activity(artifact, facts.made, time.time())


def _paths(inputs: Iterable[Any]) -> list[Path]:
    """The files behind the inputs. (What comes with sdkit is everybody's, and no model of this person.)"""
    found: list[Path] = []
    for given in inputs:
        source = given[0] if isinstance(given, tuple) else given
        if isinstance(source, Weights):
            found += [weights.path for weights in leaves([source]) if weights.path.exists()]
        elif source is not None and source != TINY:
            found.append(Path(source))
    return found


def _with_notes(report: T, notes: list[str]) -> T:
    if not notes or not dataclasses.is_dataclass(report):
        return report
    fields = {field.name for field in dataclasses.fields(report)}
    name = next((name for name in ("notes", "warnings") if name in fields), None)
    if name is None:
        return report
    return dataclasses.replace(report, **{name: (*getattr(report, name), *notes)})  # type: ignore[type-var]
