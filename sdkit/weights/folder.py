"""Folders as weights: diffusers pipelines, single components, sharded sets and PEFT adapters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from sdkit.core.errors import SdkitError
from sdkit.weights.header import DamagedFileError, TensorInfo
from sdkit.weights.reader import Container, Weights, open_file

MAX_CONFIG_BYTES = 10_000_000
# The names diffusers and transformers save a component's weights under, the preferred one first.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ADAPTER_STEMS = ("adapter_model", "pytorch_lora_weights")
# Each with a PEFT adapter of its own.
ADAPTER_COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer")
CONCEPT_STEM = "pytorch_custom_diffusion_weights"  # Custom Diffusion's, with a file ``<word>`` for each word beside
VARIANTS = ("", ".fp16", ".bf16", ".non_ema")
SUFFIXES = ("safetensors", "bin")
_WORD_FILE = re.compile(r"<[^<>]+>\.(?:bin|safetensors)")


def open_folder(path: Path) -> Weights:
    """Open a folder of weights, or a shard index (``*.index.json``).

    A pipeline folder (``model_index.json``) gives names like ``unet/conv_in.weight``, and so does a folder of PEFT
    adapters, one folder for each component; a component, shard or adapter folder gives the names of its files.

    Raises:
        SdkitError: nothing in the folder can be read as weights; the message lists what was looked for.
    """
    if path.is_file():
        files = _shards(path)
        return _join(path, {"": files}, _configs(path.parent, ("",)))
    if (path / "model_index.json").is_file():
        return _open_pipeline(path)
    for stem in (*ADAPTER_STEMS, *STEMS):
        files = _files_of(path, stem)
        if files:
            return _join(path, {"": files}, _configs(path, ("",)))
    concept = _files_of(path, CONCEPT_STEM)
    if concept:
        words = sorted(file for file in path.iterdir() if _WORD_FILE.fullmatch(file.name))
        return _join(path, {"": concept, **{file.stem: [file] for file in words}}, {})  # safetensors before a pickle
    adapters = {name: files for name in ADAPTER_COMPONENTS if (files := _files_of(path / name, ADAPTER_STEMS[0]))}
    if adapters:
        configs = {name: _configs(path / name, ("",)) for name in adapters}
        return _join(path, adapters, {f"{name}/{key}": found[key] for name, found in configs.items() for key in found})
    raise SdkitError(
        f"{path}: no weights in this folder",
        f"looked for model_index.json, {', '.join(f'{stem}.safetensors' for stem in (*STEMS, *ADAPTER_STEMS))} and "
        "their sharded forms; name a single file instead",
    )


def _open_pipeline(path: Path) -> Weights:
    index = read_json(path / "model_index.json")
    names = [name for name, value in index.items() if isinstance(value, list) and _is_plain_name(name)]
    components = {}
    for name in sorted(names):
        files = next((files for stem in STEMS if (files := _files_of(path / name, stem))), [])
        if files:
            components[name] = files
    if not components:
        raise SdkitError(f"{path}: model_index.json names no component with weights here", "download it again")
    return _join(path, components, _configs(path, ("model_index", *sorted(names))))


def _is_plain_name(name: str) -> bool:
    # Component names come from a downloaded file: they must not lead out of the folder.
    return name.isidentifier()


def _files_of(folder: Path, stem: str) -> list[Path]:
    """The file or the shards saved under `stem`: safetensors before pickles, full precision before other variants."""
    for suffix, variant in product(SUFFIXES, VARIANTS):
        for index in (f"{stem}{variant}.{suffix}.index.json", f"{stem}.{suffix}.index{variant}.json"):
            if (folder / index).is_file():
                return _shards(folder / index)
        single = folder / f"{stem}{variant}.{suffix}"
        if single.is_file():
            return [single]
    return []


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise DamagedFileError(index, "weight_map is not a table of file names")
    if not weight_map:
        raise DamagedFileError(index, "weight_map names no file")
    files = []
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or "\\" in name:
            raise DamagedFileError(index, f"the shard {name[:80]!r} lies outside the folder")
        if not name.endswith((".safetensors", ".bin")) or not name.isprintable():
            raise DamagedFileError(index, f"the shard {name[:80]!r} is no weight file")
        if not (index.parent / name).is_file():
            raise SdkitError(f"{index.parent / name}: this shard is missing", "download the folder again")
        files.append(index.parent / name)
    return files


def _join(path: Path, components: dict[str, list[Path]], configs: dict[str, dict[str, Any]]) -> Weights:
    """One `Weights` over all files; the component is put before each name, when there is one."""
    files: list[Path] = []
    prefixes: list[str] = []
    metadata: list[dict[str, str]] = []
    tensors: dict[str, TensorInfo] = {}
    for component, paths in components.items():
        for file in paths:
            with open_file(file) as part:
                prefixes.append(f"{component}/" if component else "")
                for info in _renamed(part, prefixes[-1], len(files)):
                    if info.name in tensors:
                        raise DamagedFileError(path, f"two shards hold the tensor {info.name!r}")
                    tensors[info.name] = info
                files.append(file)
                metadata.append(part.metadata)
    common = dict(set.intersection(*(set(entries.items()) for entries in metadata)))
    return Weights(
        path, Container.FOLDER, files, tensors, common, prefixes=prefixes, file_metadata=metadata, configs=configs
    )


def _renamed(part: Weights, prefix: str, file: int) -> Iterator[TensorInfo]:
    for info in part.tensors.values():
        if info.strides is not None:
            raise SdkitError(f"{part.path}: {info.name} is stored transposed", "save the folder as safetensors first")
        yield replace(info, name=prefix + info.name, file=file)


def _configs(folder: Path, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The JSON configurations of the components called `names` that exist; ``""`` stands for the folder itself."""
    configs = {}
    for name in names:
        for key, file in _config_files(folder, name):
            if file.is_file():
                configs[key] = read_json(file)
    return configs


def _config_files(folder: Path, name: str) -> list[tuple[str, Path]]:
    if name == "":
        return [("config", folder / "config.json"), ("adapter_config", folder / "adapter_config.json")]
    if name == "model_index":
        return [(name, folder / "model_index.json")]
    return [(name, folder / name / "config.json"), (name, folder / name / "scheduler_config.json")]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file somebody else made.

    Raises:
        DamagedFileError: it is too large, no JSON, or no object.
    """
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise DamagedFileError(path, f"{path.stat().st_size:,} bytes of JSON is no configuration")
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise DamagedFileError(path, "not a JSON object")
    return fields
