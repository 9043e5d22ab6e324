"""A folder of components with diffusers' names, configurations, scheduler and tokenizers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from sdkit.conversion.changes import with_projections
from sdkit.conversion.checkpoint import Checkpoint
from sdkit.conversion.configurations import configurations
from sdkit.conversion.plan import Plan, PlannedFile, Settings
from sdkit.conversion.rest import LEFTOVERS, Fate, Rest, as_it_is, single_to_folder, sort_rest
from sdkit.conversion.sampling import Sampling, sampling_of
from sdkit.conversion.shards import component_files
from sdkit.conversion.tensors import converted
from sdkit.conversion.tokenizers import copied, tokenizer_files, tokenizer_of
from sdkit.core.errors import SdkitError, UsageError
from sdkit.families.describe import published_folder
from sdkit.families.parts import Part
from sdkit.families.rules import TextEncoder
from sdkit.families.spell import spelled, spelled_alone, spellings
from sdkit.streaming import Output, Read
from sdkit.weights.folder import read_json

FOLDER = True
PROGRAMS = ("invokeai", "folder")

_PIPELINES = {
    ("sd1", "pix2pix"): "StableDiffusionInstructPix2PixPipeline",
    ("sdxl", "pix2pix"): "StableDiffusionXLInstructPix2PixPipeline",
    ("flux", "fill"): "FluxFillPipeline",
    ("flux", "control"): "FluxControlPipeline",
}
_WITHOUT_PIPELINE = {"depth": "a depth estimator", "unclip": "an image encoder"}


def plan(whole: Checkpoint, chosen: Checkpoint, settings: Settings) -> Plan:
    """A pipeline's folder, or one component's."""
    warnings: list[str] = []
    chosen = with_projections(chosen, warnings) if chosen.is_single else chosen
    parts = _parts(chosen)
    fate = _keep_folder(chosen) if chosen.is_folder else single_to_folder
    rest = sort_rest(whole, chosen, parts, fate, prune=settings.prune)
    tensors = converted(chosen.located, spellings(parts), settings.dtype)
    tensors += [Output(name, info.dtype, Read(chosen.weights, info)) for name, info in rest.positions.items()]
    tensors += [Output(info.name, info.dtype, Read(chosen.weights, info)) for info in rest.kept]
    configs = configurations(chosen, warnings)
    naming: dict[str, Any] = {"variant": settings.variant, "shard_bytes": settings.shard_bytes}
    if chosen.is_component:
        if settings.tokenizer:
            raise UsageError("--tokenizer is for a whole pipeline, and this is one component", "leave it out")
        (name,) = parts
        files, side_files = component_files(name, "", tensors, **naming)
        files += _beside(chosen, rest, settings)
        side_files["config.json"] = _json(configs[name])
        return Plan(tuple(files), parts, rest, True, side_files, warnings=tuple(warnings))
    _check_pipeline(chosen)
    folders = dict.fromkeys(tensor.name.partition("/")[0] for tensor in tensors)
    files, side_files = [], {}
    for name in folders:
        shards, index = component_files(name, f"{name}/", tensors, **naming)
        files += shards
        side_files |= index
    files += _beside(chosen, rest, settings)
    sampling = sampling_of(chosen, settings.prediction) if chosen.draws else None
    if any(name.startswith("edm_") for name in chosen.model.markers):
        warnings.append(f"the noise levels it was trained with (edm_vpred) are in no scheduler, only in {LEFTOVERS}")
    side_files |= _side_files(chosen, configs, sampling, tuple(folders))
    side_files |= tokenizer_files(chosen, settings.tokenizer, settings.configs) if sampling else {}
    prediction = sampling.prediction if sampling else None
    return Plan(tuple(files), parts, rest, True, side_files, prediction, tuple(warnings))


def _beside(chosen: Checkpoint, rest: Rest, settings: Settings) -> list[PlannedFile]:
    """The file that only the way back reads, where there is anything for it."""
    beside = [Read(chosen.weights, info) for info in rest.beside]
    if chosen.leftovers is not None and not settings.prune:
        beside += [Read(chosen.leftovers, info) for info in chosen.leftovers.tensors.values()]
    outputs = tuple(Output(read.info.name, read.dtype, read) for read in beside)
    return [PlannedFile(LEFTOVERS, outputs)] if outputs else []


def _parts(chosen: Checkpoint) -> dict[str, Part]:
    if chosen.is_component or chosen.family is None:
        return {name: spelled_alone(name, layout, "diffusers") for name, layout in chosen.layouts.items()}
    return spelled(chosen.family, chosen.layouts, "diffusers")


def _keep_folder(chosen: Checkpoint) -> Any:
    """Whole components the rules do not know (a safety checker) stay; a stray tensor in a known one is an error."""
    folders = {key.partition("/")[0] for key in chosen.used}

    def fate(name: str) -> Fate:
        return as_it_is(name) if "/" in name and name.partition("/")[0] not in folders else single_to_folder(name)

    return fate


def _check_pipeline(chosen: Checkpoint) -> None:
    missing = _WITHOUT_PIPELINE.get(chosen.model.variant)
    if missing and "model_index" not in chosen.configs:
        raise SdkitError(
            f"{chosen.weights.path}: a pipeline of {chosen.title()} needs {missing}, which the file does not hold",
            "--only unet, --only vae or --only text_encoder converts a component",
        )


def _side_files(
    chosen: Checkpoint, configs: Mapping[str, Mapping[str, Any]], sampling: Sampling | None, folders: tuple[str, ...]
) -> Iterator[tuple[str, bytes]]:
    if chosen.is_folder:
        yield from copied(chosen.weights.path if chosen.weights.path.is_dir() else chosen.weights.path.parent)
    for name, config in configs.items():
        yield f"{name}/config.json", _json(config)
    if sampling is None:
        return
    yield "scheduler/scheduler_config.json", _json(sampling.scheduler)
    yield "model_index.json", _json(_model_index(chosen, sampling.scheduler, folders))


def _model_index(chosen: Checkpoint, scheduler: Mapping[str, Any], folders: tuple[str, ...]) -> dict[str, Any]:
    """The index of a pipeline of the components that are written; what is not there is null."""
    assert chosen.family is not None
    family, variant = chosen.family.name, chosen.model.variant
    stated = chosen.configs.get("model_index")
    index = dict(stated or json.loads(_asset(published_folder(chosen.family, variant), "model_index.json")))
    if (family, variant) in _PIPELINES and not stated:
        index["_class_name"] = _PIPELINES[family, variant]
    for encoder in chosen.family.text_encoders:
        if encoder.component in chosen.parts:
            kind, tokenizer = _classes(encoder)
            _move(index, encoder.published, encoder.component, kind)
            _move(index, tokenizer_of(encoder.published), tokenizer_of(encoder.component), tokenizer)
    index["scheduler"] = ["diffusers", scheduler.get("_class_name", "DDIMScheduler")]
    return {name: _entry(name, value, chosen, folders) for name, value in index.items()}


def _classes(encoder: TextEncoder) -> tuple[list[str], list[str]]:
    """The classes of a text encoder and of its tokenizer."""
    if encoder.style == "t5":
        return ["transformers", "T5EncoderModel"], ["transformers", "T5TokenizerFast"]
    kind = "CLIPTextModelWithProjection" if encoder.projects else "CLIPTextModel"
    return ["transformers", kind], ["transformers", "CLIPTokenizer"]


def _move(index: dict[str, Any], source: str, name: str, kind: list[str]) -> None:
    """Call a component by its name among all; one that is there already keeps its class."""
    moved = index.pop(source, None) if source != name else None
    index.setdefault(name, moved or kind)


def _entry(name: str, value: Any, chosen: Checkpoint, folders: tuple[str, ...]) -> Any:
    if name == "requires_safety_checker":
        return value if "safety_checker" in folders else False
    if not isinstance(value, list):
        return value
    here = name in folders or name == "scheduler" or name in map(tokenizer_of, chosen.parts)
    if chosen.is_folder:
        here = here or (chosen.weights.path / name).is_dir()
    return value if here else [None, None]


def _asset(folder: str, name: str) -> bytes:
    return resources.files("sdkit").joinpath("assets", "families", *folder.split("/"), *name.split("/")).read_bytes()


def _json(config: Mapping[str, Any]) -> bytes:
    return json.dumps(config, indent=2).encode() + b"\n"


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The configurations of a diffusers folder, its weights unseen.

    Raises:
        SdkitError: there is none.
    """
    found = {
        file.parent.name: read_json(file)
        for pattern in ("*/config.json", "*/scheduler_config.json")
        for file in sorted(folder.glob(pattern))
    }
    if not found:
        raise SdkitError(
            f"{folder}: holds no configurations", "name a diffusers folder, with unet/config.json and so on"
        )
    if (folder / "model_index.json").is_file():
        found["model_index"] = read_json(folder / "model_index.json")
    return found
