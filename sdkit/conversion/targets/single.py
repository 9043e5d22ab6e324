"""One safetensors file with its makers' names, as web UIs and ComfyUI read it.

Its metadata hold the components' configurations too (``sdkit.config``), because names and shapes do not say how many
attention heads a model has, how its latents are scaled, or which scheduler it was published with.
"""

from __future__ import annotations

import json
from typing import Any

from sdkit.conversion.checkpoint import Checkpoint
from sdkit.conversion.plan import Plan, PlannedFile, Settings
from sdkit.conversion.rest import as_it_is, folder_to_single, sort_rest
from sdkit.conversion.sampling import markers_for, sampling_metadata, sampling_of
from sdkit.conversion.tensors import converted
from sdkit.core.errors import UsageError
from sdkit.families.clip import TextLayout
from sdkit.families.configs import CONFIG_KEY
from sdkit.families.parts import Part
from sdkit.families.sampling import FLAGS, flag_tensors
from sdkit.families.spell import spelled, spelled_alone, spellings
from sdkit.families.tokenizers import known_tokenizer
from sdkit.streaming import Output, Read
from sdkit.weights import DType

FOLDER = False
PROGRAMS = ("a1111", "automatic1111", "comfy", "comfyui", "forge", "kohya")


def plan(whole: Checkpoint, chosen: Checkpoint, settings: Settings) -> Plan:
    """One file; a single file's own tensors keep their names.

    Raises:
        UsageError: a variant, shards or a tokenizer are asked for, which a folder has.
    """
    if settings.variant or settings.shard_bytes or settings.tokenizer:
        raise UsageError(
            "variants, shards and tokenizers are a folder's", "leave out --variant, --shard-size and --tokenizer"
        )
    parts = _parts(chosen, settings)
    fate = as_it_is if chosen.is_single else folder_to_single(chosen)
    rest = sort_rest(whole, chosen, parts, fate, prune=settings.prune)
    tensors = converted(chosen.located, spellings(parts), settings.dtype)
    tensors += [Output(name, info.dtype, Read(chosen.weights, info)) for name, info in rest.positions.items()]
    tensors += [_kept(chosen, info.name, settings.dtype) for info in rest.kept]
    metadata, prediction = {}, chosen.model.prediction
    configs = _public_configs(chosen)
    if chosen.draws and not _keeps_silent(chosen, settings):
        sampling = sampling_of(chosen, settings.prediction)
        prediction = sampling.prediction
        markers = markers_for(chosen, sampling)
        tensors = [tensor for tensor in tensors if tensor.name not in FLAGS or tensor.name in markers]
        tensors += _leftovers(chosen, tensors, markers, settings)
        tensors += _flags(markers, tensors)
        metadata = sampling_metadata(chosen, sampling)
        if "scheduler" in configs:
            configs["scheduler"] = _public(sampling.scheduler)
    if configs:
        metadata[CONFIG_KEY] = json.dumps(configs, sort_keys=True, separators=(",", ":"))
    file = PlannedFile("", tuple(tensors), metadata)
    return Plan((file,), parts, rest, prediction=prediction, warnings=tuple(_warnings(chosen)))


def _parts(chosen: Checkpoint, settings: Settings) -> dict[str, Part]:
    if chosen.is_single and settings.only is None:
        return dict(chosen.parts)
    if chosen.is_component or chosen.family is None:
        return {name: spelled_alone(name, layout, "ldm") for name, layout in chosen.layouts.items()}
    return spelled(chosen.family, chosen.layouts, "ldm")


def _keeps_silent(chosen: Checkpoint, settings: Settings) -> bool:
    """Whether nothing new is said of the sampling: a single file stays one, or a component does not know it."""
    if settings.prediction is not None:
        return False
    return chosen.model.prediction is None if chosen.is_component else chosen.is_single


def _kept(chosen: Checkpoint, name: str, dtype: DType | None) -> Output:
    info = chosen.weights.tensors[name]
    is_copy = name in chosen.model.ema and len(info.shape) > 0  # of weights, not its counters
    return Output(name, dtype if dtype and is_copy and info.dtype.is_float else info.dtype, Read(chosen.weights, info))


def _leftovers(chosen: Checkpoint, tensors: list[Output], markers: tuple[str, ...], settings: Settings) -> list[Output]:
    """What an earlier conversion laid beside the folder."""
    if chosen.leftovers is None or settings.prune or settings.only:
        return []
    taken = {tensor.name for tensor in tensors}
    return [
        Output(name, info.dtype, Read(chosen.leftovers, info))
        for name, info in chosen.leftovers.tensors.items()
        if name not in taken and (name not in FLAGS or name in markers)
    ]


def _flags(markers: tuple[str, ...], tensors: list[Output]) -> list[Output]:
    taken = {tensor.name for tensor in tensors}
    flags = flag_tensors(markers)
    return [Output(name, info.dtype, Read(flags, info)) for name, info in flags.tensors.items() if name not in taken]


def _public_configs(chosen: Checkpoint) -> dict[str, dict[str, Any]]:
    """The configurations of what is written, without the places they were loaded from."""
    wanted = {*chosen.parts} | ({"model_index", "scheduler"} if chosen.draws else set())
    return {name: _public(config) for name, config in chosen.configs.items() if name in wanted}


def _public(config: Any) -> dict[str, Any]:
    kept = ("_class_name", "_diffusers_version")
    return {key: value for key, value in config.items() if not key.startswith("_") or key in kept}


def _warnings(chosen: Checkpoint) -> list[str]:
    warnings = []
    for name, layout in chosen.layouts.items():
        if isinstance(layout, TextLayout) and chosen.is_folder and known_tokenizer(layout.vocabulary) is None:
            warnings.append(f"its {name} has a tokenizer of its own, which a single file cannot carry: keep the folder")
    if str(chosen.configs.get("scheduler", {}).get("_class_name", "")).startswith("EDM"):
        warnings.append("it is sampled in the EDM way, which only sdkit's metadata say")
    return warnings
