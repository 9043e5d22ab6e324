"""A folder of components with diffusers' names, configurations, scheduler and tokenizers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from sdkit.conversion.checkpoint import Checkpoint
from sdkit.conversion.plan import Plan, PlannedFile, Settings
from sdkit.conversion.rest import LEFTOVERS, Fate, as_it_is, single_to_folder, sort_rest
from sdkit.conversion.sampling import Sampling, sampling_of
from sdkit.conversion.tensors import converted
from sdkit.core.errors import SdkitError
from sdkit.families.clip import TextLayout
from sdkit.families.describe import describe_component, published_folder
from sdkit.families.parts import Part
from sdkit.families.reference import published_config
from sdkit.families.spell import spelled, spelled_alone, spellings
from sdkit.families.tokenizers import is_clip, known_tokenizer
from sdkit.streaming import Output, Read
from sdkit.streaming.checkpoint import SIDE_FILES
from sdkit.weights.folder import read_json

FOLDER = True
PROGRAMS = ("invokeai", "folder")

_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
_PIPELINES = {("sd1", "pix2pix"): "StableDiffusionInstructPix2PixPipeline"}
_PIPELINES |= {("sdxl", "pix2pix"): "StableDiffusionXLInstructPix2PixPipeline"}
_WITHOUT_PIPELINE = {"depth": "a depth estimator", "unclip": "an image encoder"}


def plan(whole: Checkpoint, chosen: Checkpoint, settings: Settings) -> Plan:
    """A pipeline's folder, or one component's."""
    parts = _parts(chosen)
    fate = _keep_folder(chosen) if chosen.is_folder else single_to_folder
    rest = sort_rest(whole, chosen, parts, fate, prune=settings.prune)
    tensors = converted(chosen.located, spellings(parts), settings.dtype)
    tensors += [Output(name, info.dtype, Read(chosen.weights, info)) for name, info in rest.positions.items()]
    tensors += [Output(info.name, info.dtype, Read(chosen.weights, info)) for info in rest.kept]
    warnings: list[str] = []
    configs = _configs(chosen, warnings)
    if chosen.is_component:
        (name,) = parts
        files = [_component_file(name, "", tensors)]
        return Plan(tuple(files), parts, rest, True, {"config.json": _json(configs[name])}, warnings=tuple(warnings))
    _check_pipeline(chosen)
    folders = dict.fromkeys(tensor.name.partition("/")[0] for tensor in tensors)
    files = [_component_file(name, f"{name}/", tensors) for name in folders]
    beside = [Read(chosen.weights, info) for info in rest.beside]
    if chosen.leftovers is not None and not settings.prune:
        beside += [Read(chosen.leftovers, info) for info in chosen.leftovers.tensors.values()]
    if beside:
        files.append(PlannedFile(LEFTOVERS, tuple(Output(read.info.name, read.dtype, read) for read in beside)))
    sampling = sampling_of(chosen, settings.prediction) if "unet" in chosen.parts else None
    side_files = dict(_side_files(chosen, configs, sampling, tuple(folders)))
    side_files |= _tokenizers(chosen, settings.configs) if sampling else {}
    prediction = sampling.prediction if sampling else None
    return Plan(tuple(files), parts, rest, True, side_files, prediction, tuple(warnings))


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


def _component_file(component: str, prefix: str, tensors: list[Output]) -> PlannedFile:
    own = tuple(
        Output(tensor.name.removeprefix(prefix), tensor.dtype, tensor.expression)
        for tensor in tensors
        if tensor.name.startswith(prefix)
    )
    return PlannedFile(f"{prefix}{_STEMS.get(component, 'model')}.safetensors", own, prefix=prefix)


def _configs(chosen: Checkpoint, warnings: list[str]) -> dict[str, Mapping[str, Any]]:
    """A configuration for each component: its own, else the family's published one fitted to the header."""
    configs: dict[str, Mapping[str, Any]] = {}
    for name, layout in chosen.layouts.items():
        if name in chosen.configs:
            configs[name] = chosen.configs[name]
            continue
        if chosen.family is None:
            raise SdkitError(
                f"{chosen.weights.path}: which family's autoencoder it is, and with that how its latents are scaled, "
                "does not follow from its tensors",
                "say it: --family sd1, sd2 or sdxl",
            )
        folder = published_folder(chosen.family, chosen.model.variant)
        sources = {encoder.component: encoder.published for encoder in chosen.family.text_encoders}
        published = published_config(folder, sources.get(name, name))
        configs[name] = describe_component(name, layout, published, chosen.family, warnings)
    return configs


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
        yield from _copied(chosen.weights.path if chosen.weights.path.is_dir() else chosen.weights.path.parent)
    for name, config in configs.items():
        yield f"{name}/config.json", _json(config)
    if sampling is None:
        return
    yield "scheduler/scheduler_config.json", _json(sampling.scheduler)
    yield "model_index.json", _json(_model_index(chosen, sampling.scheduler, folders))


def _tokenizers(chosen: Checkpoint, configs: Path | None) -> dict[str, bytes]:
    """A tokenizer for each text encoder: the one of `configs`, the folder's own, or the known one of its size."""
    files: dict[str, bytes] = {}
    for component, layout in chosen.layouts.items():
        folder = component.replace("text_encoder", "tokenizer")
        if not isinstance(layout, TextLayout):
            continue
        if configs is not None and (configs / folder).is_dir():
            files |= {f"{folder}/{name}": data for name, data in _copied(configs / folder)}
        elif not chosen.is_folder or not (chosen.weights.path / folder).is_dir():
            files |= _known_tokenizer(chosen, component, layout)
    return files


def _copied(root: Path) -> Iterator[tuple[str, bytes]]:
    """What the folder holds beside weights and the shards' indices."""
    for file in sorted(root.rglob("*")):
        relative = file.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if file.is_file() and file.suffix in SIDE_FILES and not hidden and ".index." not in file.name:
            yield relative.as_posix(), file.read_bytes()


def _model_index(chosen: Checkpoint, scheduler: Mapping[str, Any], folders: tuple[str, ...]) -> dict[str, Any]:
    """The index of a pipeline of the components that are written; what is not there is null."""
    assert chosen.family is not None
    family, variant = chosen.family.name, chosen.model.variant
    stated = chosen.configs.get("model_index")
    index = dict(stated or json.loads(_asset(published_folder(chosen.family, variant), "model_index.json")))
    if (family, variant) in _PIPELINES and not stated:
        index["_class_name"] = _PIPELINES[family, variant]
    for encoder in chosen.family.text_encoders:
        kind = ["transformers", "CLIPTextModelWithProjection" if encoder.projects else "CLIPTextModel"]
        if encoder.component in chosen.parts:
            _move(index, encoder.published, encoder.component, kind)
            tokenizers = [name.replace("text_encoder", "tokenizer") for name in (encoder.published, encoder.component)]
            _move(index, tokenizers[0], tokenizers[1], ["transformers", "CLIPTokenizer"])
    index["scheduler"] = ["diffusers", scheduler.get("_class_name", "DDIMScheduler")]
    return {name: _entry(name, value, chosen, folders) for name, value in index.items()}


def _move(index: dict[str, Any], source: str, name: str, kind: list[str]) -> None:
    """Call a component by its name among all; one that is there already keeps its class."""
    moved = index.pop(source, None) if source != name else None
    index.setdefault(name, moved or kind)


def _entry(name: str, value: Any, chosen: Checkpoint, folders: tuple[str, ...]) -> Any:
    if name == "requires_safety_checker":
        return value if "safety_checker" in folders else False
    if not isinstance(value, list):
        return value
    here = name in folders or name == "scheduler" or name.startswith("tokenizer")
    if chosen.is_folder:
        here = here or (chosen.weights.path / name).is_dir()
    return value if here else [None, None]


def _known_tokenizer(chosen: Checkpoint, component: str, layout: TextLayout) -> dict[str, bytes]:
    """A vocabulary that comes with sdkit; CLIP's with the marks of the family's published tokenizer."""
    known = known_tokenizer(layout.vocabulary)
    if known is None:
        raise SdkitError(
            f"{chosen.weights.path}: its {component} knows {layout.vocabulary} tokens, and no tokenizer sdkit has does",
            "--configs FOLDER takes tokenizers from a folder that has them",
        )
    folder = component.replace("text_encoder", "tokenizer")
    files = {f"{folder}/{name}": data for name, data in _copied(known)}
    if not is_clip(known):
        return files
    assert chosen.family is not None
    encoder = next(encoder for encoder in chosen.family.text_encoders if encoder.component == component)
    source = encoder.published.replace("text_encoder", "tokenizer")
    published = published_folder(chosen.family, chosen.model.variant)
    marks = ("special_tokens_map.json", "tokenizer_config.json")
    return files | {f"{folder}/{name}": _asset(published, f"{source}/{name}") for name in marks}


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
