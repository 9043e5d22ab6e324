"""Say what a file is, how that is known, and what is doubtful about it, from its header alone."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.core.human import plural
from sdkit.families import FAMILIES, identify
from sdkit.families.family import Model
from sdkit.families.others import SIGNATURES
from sdkit.hubs import is_reference, load_hub
from sdkit.hubs.hub import Hub, Offer
from sdkit.hubs.remote import RemoteWeights, open_remote
from sdkit.jobs.inspect_problems import checkpoint_problems, file_notes, file_problems
from sdkit.jobs.inspection import AdapterFacts, Inspection, Share
from sdkit.registry.names import resolve
from sdkit.weights import TensorInfo, Weights, open_weights
from sdkit.weights.metadata import read_recipe

UNDO_KEY = "sdkit.undo"  # as `sdkit.merging.undo` writes it, which is too slow to import for every file
ADAPTER_CONFIG = "adapter_config"  # PEFT's, in `Weights.configs`
_CORRECTION = "tensor/"
_EMA, _OTHER = "ema", "other"
_LONGEST_LINEAGE = 20

# The parts of single files whose families have no rules yet, by the names people know.
_AREA = re.compile(
    r"(model\.diffusion_model|diffusion_model|first_stage_model|vae|cond_stage_model|text_encoders\.[^.]+)\."
)


def inspect(path: Path | str) -> Inspection:
    """Say what the file or folder at `path` is. Headers are read, and a few scalars; never the weights.

    Args:
        path: of a file or folder, or a registered name; or a reference like ``hf:org/repo``, of which only the header
            is downloaded.

    Raises:
        SdkitError: there is nothing at `path`, or it is damaged or no weight file; the message says why.
    """
    if isinstance(path, str) and not os.path.lexists(path) and is_reference(path):
        _, hub = load_hub(path)
        return inspect_offer(hub.resolve(path), hub)
    with open_weights(resolve(path)) as weights:
        return _inspect(weights)


def inspect_offer(offer: Offer, hub: Hub) -> Inspection:
    """Say what a file on a hub is, by its header, which is about a hundred kilobytes of it.

    Raises:
        SdkitError: it is a folder, a large file of another kind than safetensors, or damaged.
    """
    if offer.is_folder:
        hint = f"name a file: {', '.join(offer.others)}" if offer.others else f"sdkit pull {offer.pinned}"
        raise SdkitError(f"{offer.pinned}: is a folder, which is looked at when it is here", hint)
    file = offer.files[0]
    with open_remote(file, partial(hub.read_range, file)) as weights:
        found = _inspect(weights)
        sampled = weights.sampled if isinstance(weights, RemoteWeights) else 0
    notes = (f"only {sampled} of its scalars (alphas) were read, and are equal",) if sampled else ()
    return replace(found, path=offer.pinned, files=(file.name,), notes=(*found.notes, *notes))


def _inspect(weights: Weights) -> Inspection:
    if UNDO_KEY in weights.metadata:
        return _undo(weights)
    model = identify(weights)
    if model.places:
        return _checkpoint(weights, model)
    return _adapter_or_unread(weights, model)


def _basics(weights: Weights, model: Model, kind: str) -> Inspection:
    """What can be said of any file."""
    components = component_shares(weights, model)
    return Inspection(
        path=str(weights.path),
        kind=kind,
        family=model.family,
        family_title=_title(model.family),
        container=str(weights.container),
        size=sum(file.stat().st_size for file in weights.files),
        files=tuple(_relative(file, weights.path) for file in weights.files),
        tensors=len(weights.tensors),
        parameters=sum(share.parameters for share in components if share.name != _EMA),
        components=components,
        dtypes=dtype_shares(weights.tensors.values()),
        reasons=model.reasons,
        markers=model.markers,
        ema=len(model.ema),
        trigger_words=_trigger_words(weights.metadata),
        metadata=weights.metadata,
        lineage=tuple(_lineage(weights.metadata)),
        problems=tuple(file_problems(weights, kind)),
        notes=tuple(file_notes(weights)),
    )


def _checkpoint(weights: Weights, model: Model) -> Inspection:
    """A model, or a part of one, that the rules explain."""
    basics = _basics(weights, model, "checkpoint" if _is_whole(model) else "component")
    return replace(
        basics,
        variant=model.variant,
        prediction=model.prediction,
        naming=model.naming,
        unclaimed=model.unclaimed,
        problems=(*checkpoint_problems(weights, model, basics.components), *basics.problems),
    )


def _is_whole(model: Model) -> bool:
    return model.has_denoiser and len(model.components) > 1


def _adapter_or_unread(weights: Weights, model: Model) -> Inspection:
    """A file that is no checkpoint the rules explain: an adapter, a family not read yet, or unknown."""
    from sdkit.formats import recognise

    format, verdicts = recognise(weights)
    reasons = {name: verdict.reason for name, verdict in verdicts.items()}
    if format is not None:
        return _adapter(weights, format, reasons)
    basics = replace(_basics(weights, model, _unread_kind(weights, model)), formats=reasons)
    if ADAPTER_CONFIG in weights.configs:
        refused = AdapterFacts(unread=reasons["peft"])
        basics = replace(basics, kind="lora", format="peft", adapter=refused, components=(), reasons=())
    several = [name for name, verdict in verdicts.items() if verdict.recognised]
    return replace(basics, problems=(*_why_unread(basics, several), *basics.problems))


def _why_unread(basics: Inspection, several: list[str]) -> Iterator[str]:
    if several:
        yield f"it mixes the formats {' and '.join(several)}; split it into one file per format"
    elif basics.adapter is not None:
        yield f"this version cannot apply it: {basics.adapter.unread}"
    elif basics.family != "unknown":
        yield basics.reasons[0]


def _unread_kind(weights: Weights, model: Model) -> str:
    if model.family == "unknown":
        return "unknown"
    areas = {_area(name, model) for name in weights.tensors}
    return "checkpoint" if len(areas - {_OTHER}) > 1 else "component"


def _adapter(weights: Weights, format: str, verdicts: Mapping[str, str]) -> Inspection:
    """An adapter of a known format, even one whose kind cannot be applied yet."""
    from sdkit.jobs.inspect_adapter import describe

    facts = describe(weights, format)
    basics = _basics(weights, Model(facts.family), facts.kind)
    return replace(
        basics,
        format=format,
        formats=verdicts,
        reasons=(*facts.reasons, f"{format}: {verdicts[format]}"),
        components=(),
        adapter=facts.adapter,
        trigger_words=_unique([*basics.trigger_words, *_token_names(facts.adapter)]),
        problems=(*facts.problems, *basics.problems),
        notes=(*facts.notes, *basics.notes),
    )


def _undo(weights: Weights) -> Inspection:
    count = sum(1 for name in weights.tensors if name.startswith(_CORRECTION))
    reason = f"its metadata hold {UNDO_KEY}: `sdkit merge --undo` wrote it"
    note = f"it restores {plural(count, 'tensor')}: sdkit unmerge MERGED --undo {weights.path.name}"
    basics = _basics(weights, Model("unknown", reasons=(reason,)), "undo")
    return replace(basics, components=(), parameters=0, notes=(note, *basics.notes))


def component_shares(weights: Weights, model: Model) -> tuple[Share, ...]:
    """The tensors by the component they belong to; the EMA copy and what belongs to none come last."""
    owners = {place.key: hub.partition(".")[0] for hub, place in model.places.items()}
    copies = frozenset(model.ema)
    groups: dict[str, list[TensorInfo]] = defaultdict(list)
    for name, info in weights.tensors.items():
        owner = owners.get(name) or (_EMA if name in copies else _area(name, model))
        groups[owner].append(info)
    order = sorted(groups, key=lambda name: ((_EMA, _OTHER).index(name) + 1 if name in (_EMA, _OTHER) else 0, name))
    return tuple(_share(name, groups[name]) for name in order)


def dtype_shares(tensors: Iterable[TensorInfo]) -> tuple[Share, ...]:
    """The tensors by element type, largest first."""
    groups: dict[str, list[TensorInfo]] = defaultdict(list)
    for info in tensors:
        groups[info.dtype.name].append(info)
    return tuple(sorted((_share(*group) for group in groups.items()), key=lambda share: -share.bytes))


def _share(name: str, tensors: list[TensorInfo]) -> Share:
    return Share(
        name=name,
        tensors=len(tensors),
        parameters=sum(info.numel for info in tensors),
        bytes=sum(info.nbytes for info in tensors),
        dtypes=dict(Counter(info.dtype.name for info in tensors).most_common()),
    )


def _area(name: str, model: Model) -> str:
    """The part of a file that a tensor no rule explains lies in."""
    folder, sign, _ = name.partition("/")
    if sign:
        return folder
    match = _AREA.match(name)
    return match[1] if match and not model.places else _OTHER


def _title(family: str) -> str:
    titles = {known.name: known.title for known in FAMILIES} | {other.family: other.title for other in SIGNATURES}
    return titles.get(family, "") if family else ""


def _trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    words = metadata.get("modelspec.trigger_phrase", "").split(",")
    return _unique(word.strip() for word in words if word.strip())


def _lineage(metadata: Mapping[str, str]) -> Iterator[str]:
    """What sdkit wrote about the merge that made a file, and about the one that made its base."""
    recipe: object = read_recipe(metadata)
    for _ in range(_LONGEST_LINEAGE):
        if not isinstance(recipe, Mapping) or not isinstance(recipe.get("parents"), list):
            return
        parents = [_parent(entry) for entry in recipe["parents"] if isinstance(entry, Mapping)]
        yield f"{recipe.get('verb', 'made')}: {' + '.join(parents)}"
        recipe = recipe.get("base_recipe")


def _parent(entry: Mapping[str, object]) -> str:
    strength = entry.get("strength")
    return f"{entry.get('name')} at {strength:g}" if isinstance(strength, int | float) else str(entry.get("name"))


def _token_names(adapter: AdapterFacts) -> list[str]:
    return [token.token for token in adapter.tokens]


def _unique(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) and file != root else file.name
