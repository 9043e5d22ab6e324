"""The metadata a model file carries about itself: which of it survives a merge, and what sdkit adds.

    modelspec.*   what the model is, for catalogues (https://github.com/Stability-AI/ModelSpec)
    ss_*, sshs_*  how kohya's scripts trained it, and two hashes web UIs trust without checking
    sdkit.*       how sdkit made it: `sdkit.recipe` and `sdkit.version`

Nothing written here depends on the clock, the machine or a path, so the same recipe gives the same file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath

import sdkit

RECIPE_KEY = "sdkit.recipe"
VERSION_KEY = "sdkit.version"
MERGED_FROM_KEY = "modelspec.merged_from"

# Hashes of the tensors before they changed. Web UIs believe them unseen, so a stale one mislabels the file.
STALE_KEYS = frozenset({"modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"})


def parent(path: PurePath | str, quick_id: str, **facts: object) -> dict[str, object]:
    """A parent as recipes name it: the file's name without its folder, its quick id, and `facts` (``strength``, …)."""
    name = PurePath(path).name.encode(errors="replace").decode()  # a name may hold bytes that are not Unicode
    return {"name": name, "id": quick_id, **facts}


def merged_metadata(base: Mapping[str, str], recipe: Mapping[str, object]) -> dict[str, str]:
    """The metadata of a checkpoint made from a base whose metadata are `base`.

    Everything the base says is kept, except hashes that hold no more. `sdkit.recipe` becomes `recipe` as compact JSON
    with sorted keys; a recipe that the base itself carried moves into it as ``base_recipe``, so the lineage goes on.
    Where the base has ModelSpec metadata, ``modelspec.merged_from`` lists the names of the recipe's ``parents``.

    Args:
        base: metadata of the base.
        recipe: JSON values only; ``parents`` is a list of what `parent` returns.
    """
    metadata = {key: value for key, value in base.items() if key not in STALE_KEYS}
    earlier = read_recipe(base)
    metadata[RECIPE_KEY] = _compact({**recipe, "base_recipe": earlier} if earlier else recipe)
    metadata[VERSION_KEY] = sdkit.__version__
    names = _parent_names(recipe)
    if names and any(key.startswith("modelspec.") for key in base):
        metadata[MERGED_FROM_KEY] = ", ".join(names)
    return metadata


def read_recipe(metadata: Mapping[str, str]) -> dict[str, object] | None:
    """The recipe sdkit wrote into a file; None where there is none, or something else stands in its place."""
    try:
        recipe = json.loads(metadata.get(RECIPE_KEY, "null"))
    except (ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) else None


def _parent_names(recipe: Mapping[str, object]) -> list[str]:
    parents = recipe.get("parents", ())
    if not isinstance(parents, Sequence):
        return []
    return [str(entry["name"]) for entry in parents if isinstance(entry, Mapping) and "name" in entry]


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
