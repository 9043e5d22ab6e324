"""DoRAs as programs draw them, which is not what they were trained to be (see `sdkit.adapters.deltas.dora`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.dora import Dora, Drawn
from sdkit.core.errors import UsageError


def drawn_as(artifacts: Iterable[Artifact], program: Drawn) -> list[Artifact]:
    """The adapters with their DoRAs as a program draws them.

    Raises:
        UsageError: no rule of that name is known, or it makes of all of them what they were trained to be.
    """
    if program not in get_args(Drawn):
        raise UsageError(f"dora={program}: not a way to draw a DoRA", f"one of {', '.join(get_args(Drawn))}")
    found = list(artifacts)
    if program == "exact":
        return found
    if not any(_differs(delta) for artifact in found for delta in artifact.deltas.values()):
        raise UsageError(f"dora={program}: no adapter holds a DoRA of output features", "leave it out")
    return [_drawn_as(artifact, program) for artifact in found]


def _drawn_as(artifact: Artifact, program: Drawn) -> Artifact:
    deltas = {target: _of(delta, program) for target, delta in artifact.deltas.items()}
    return replace(artifact, deltas=deltas)


def _of(delta: Delta, program: Drawn) -> Delta:
    return replace(delta, drawn=program) if isinstance(delta, Dora) and _differs(delta) else delta


def _differs(delta: Delta) -> bool:
    """Whether programs differ in what they make of a change."""
    return isinstance(delta, Dora) and not delta.by_input
