"""Whether whole weights from a file belong to a base: they bring along everything their own base had there."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.deltas.replacement import Replacement
from sdkit.core.errors import SdkitError
from sdkit.core.hashing import quick_id
from sdkit.families.family import Model
from sdkit.runtime.load import read_place
from sdkit.weights import Weights
from sdkit.weights.metadata import read_recipe

FAR = 0.25  # ‖A − W‖ / ‖W‖: training moves weights by a few per cent, another fine-tune's are further off
STRANGE = 1.0  # as far as weights of no common origin are


def doubts(artifact: Artifact, base: Weights, model: Model) -> Iterator[str]:
    """What speaks against merging whole weights into a base, with numbers; nothing where the file names this base.

    Raises:
        SdkitError: they are as far from the base's as those of another model are.
    """
    whole = {target: delta for target, delta in artifact.deltas.items() if isinstance(delta, Replacement)}
    named = _named_base(artifact)
    same = named is not None and bool(base.files) and named.get("id") == quick_id(*base.files)
    if not whole or same:
        return
    shares = []
    for target, delta in whole.items():
        weight = read_place(base, model.places[target.name]).flatten()
        shares.append(float((delta.weight.load().float().flatten() - weight).norm() / weight.norm().clamp(min=1e-12)))
    share, path = statistics.median(shares), artifact.source.path
    off = f"{path.name}: half of its {len(shares)} whole weights are {share:.0%} or more off those of {base.path.name}"
    trained_on = f"it was trained on {named.get('name')}" if named is not None else ""
    if share >= STRANGE:
        reason = trained_on or "that is how far weights of no common origin are"
        raise SdkitError(f"{off}: {reason}", "merge it into the base it was trained on")
    if named is not None and base.files:
        yield f"{off}; {trained_on}, whose attention it brings along"
    elif share > FAR:
        yield f"{off}; a few per cent are usual, so it was probably trained on another base"


def _named_base(artifact: Artifact) -> dict[str, object] | None:
    """The base that the file's recipe names."""
    parents = (read_recipe(artifact.metadata) or {}).get("parents")
    entries = parents if isinstance(parents, list) else []
    return next((entry for entry in entries if isinstance(entry, dict) and entry.get("role") == "base"), None)
