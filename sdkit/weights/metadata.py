"""The metadata a model file carries about itself: which of it survives a merge, and what sdkit adds.

    modelspec.*   what the model is, for catalogues (https://github.com/Stability-AI/ModelSpec)
    ss_*, sshs_*  how kohya's scripts trained it, and two hashes web UIs trust without checking
    sdkit.*       how sdkit made it: `sdkit.recipe` and `sdkit.version`
    sd_merge_*    the same for AUTOMATIC1111's web UI and what reads its files

Nothing written here depends on the clock, the machine or a path, so the same recipe gives the same file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

import sdkit

RECIPE_KEY = "sdkit.recipe"
VERSION_KEY = "sdkit.version"
TRIGGERS_KEY = "sdkit.trigger_words"
MERGED_FROM_KEY = "modelspec.merged_from"
UI_RECIPE_KEY, UI_MODELS_KEY = "sd_merge_recipe", "sd_merge_models"

# Hashes of the tensors before they changed. Web UIs believe them unseen, so a stale one mislabels the file.
STALE_KEYS = frozenset({"modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"})

# What training programs write about the pictures, the captions and the disk they came from.
PRIVATE_KEYS = (
    "ss_dataset_dirs",
    "ss_datasets",
    "ss_reg_dataset_dirs",
    "ss_tag_frequency",
    "ss_sample_prompts",
    "ot_config",
    "training_info",
    "config",
)
# An absolute path on somebody's disk, of any system.
_PATH = re.compile(
    r"(?:^|[\s\"'=:,\[(])(?:/(?:home|Users|mnt|media|root|workspace|content|data|tmp|var|opt)/|[A-Za-z]:[\\/]"
    r"|\\\\\w|~/|file://)"
)


def parent(path: PurePath | str, quick_id: str, **facts: object) -> dict[str, object]:
    """A parent as recipes name it: the file's name without its folder, its quick id, and `facts` (``strength``, …)."""
    name = PurePath(path).name.encode(errors="replace").decode()  # a name may hold bytes that are not Unicode
    return {"name": name, "id": quick_id, **facts}


def merged_metadata(
    base: Mapping[str, str], recipe: Mapping[str, object], *, checkpoint: bool = False
) -> dict[str, str]:
    """The metadata of a checkpoint made from a base whose metadata are `base`.

    Everything the base says is kept, except hashes that hold no more. `sdkit.recipe` becomes `recipe` as compact JSON
    with sorted keys; a recipe that the base itself carried moves into it as ``base_recipe``, so the lineage goes on.
    Where the base has ModelSpec metadata, ``modelspec.merged_from`` lists the names of the recipe's ``parents``.

    Args:
        base: metadata of the base.
        recipe: JSON values only; ``parents`` is a list of what `parent` returns; ``steps`` holds, by name, the recipes
            of the steps that a parent may be.
        checkpoint: whether the result is a checkpoint, which web UIs look for merge recipes of their own in.
    """
    metadata = {key: value for key, value in base.items() if key not in STALE_KEYS}
    earlier = read_recipe(base)
    metadata[RECIPE_KEY] = _compact({**recipe, "base_recipe": earlier} if earlier else recipe)
    metadata[VERSION_KEY] = sdkit.__version__
    names = list(dict.fromkeys(str(entry["name"]) for entry in source_files(recipe) if "name" in entry))
    if names and any(key.startswith("modelspec.") for key in base):
        metadata[MERGED_FROM_KEY] = ", ".join(names)
    if checkpoint:
        metadata.update(_for_web_uis(base, recipe))
    return metadata


def public_metadata(metadata: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """What of a file's metadata anybody may see, and the keys of the rest: captions, folders, paths."""
    private = [key for key, text in metadata.items() if key in PRIVATE_KEYS or _PATH.search(text)]
    return {key: text for key, text in metadata.items() if key not in private}, tuple(private)


def converted_metadata(own: Mapping[str, str], recipe: Mapping[str, object]) -> dict[str, str]:
    """The metadata of a file that says the same as another in another way; see `merged_metadata`."""
    metadata = merged_metadata(own, recipe)
    metadata.pop(MERGED_FROM_KEY, None)  # nothing was merged here
    return {**metadata, MERGED_FROM_KEY: own[MERGED_FROM_KEY]} if MERGED_FROM_KEY in own else metadata


def source_files(recipe: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The parents that are files, those of earlier steps included, in order; one may come several times."""
    steps = recipe.get("steps")
    known = dict(steps) if isinstance(steps, Mapping) else {}
    return list(_source_files(recipe, known))


def _source_files(recipe: Mapping[str, object], steps: dict[str, object]) -> Iterator[Mapping[str, object]]:
    parents = recipe.get("parents", ())
    for entry in parents if isinstance(parents, Sequence) else ():
        if not isinstance(entry, Mapping):
            continue
        if "step" not in entry:
            yield entry
            continue
        step = steps.pop(str(entry["step"]), None)  # each once, which also ends what refers to itself
        if isinstance(step, Mapping):
            yield from _source_files(step, steps)


def _for_web_uis(base: Mapping[str, str], recipe: Mapping[str, object]) -> dict[str, str]:
    """AUTOMATIC1111's two keys: the recipe, and by sha256 the models it names; both JSON in text.

    Hashing gigabytes is not worth the second key, so it names the models whose sha256 is known already.
    """
    told = {"type": "sdkit", **recipe}
    before = _json_table(base.get(UI_RECIPE_KEY, ""))
    earlier = before.get("earlier_recipe") if before.get("type") == "sdkit" else before
    if earlier:
        told["earlier_recipe"] = earlier
    models = _json_table(base.get(UI_MODELS_KEY, ""))
    for entry in source_files(recipe):
        if "sha256" in entry:
            models[str(entry["sha256"])] = {"name": entry.get("name"), "legacy_hash": "", "sd_merge_recipe": None}
    return {UI_RECIPE_KEY: _compact(told), UI_MODELS_KEY: _compact(models)}


def read_recipe(metadata: Mapping[str, str]) -> dict[str, object] | None:
    """The recipe sdkit wrote into a file; None where there is none, or something else stands in its place."""
    return _json_table(metadata.get(RECIPE_KEY, "")) or None


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """The words that sdkit wrote into a file as those that call up what it was taught."""
    try:
        words = json.loads(metadata.get(TRIGGERS_KEY, ""))
    except (ValueError, RecursionError):
        return []
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []


def _json_table(text: str) -> dict[str, object]:
    """A JSON object; empty where the text is something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
