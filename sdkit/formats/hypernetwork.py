"""Hypernetworks of the A1111 web UI: networks on what attention reads its keys and values from.

A pickle {width: (network for keys, network for values)} whose widths are whole numbers, each network a state dict
(``linear.0.weight``, ``linear.0.bias``, …; the oldest: ``linear1``, ``linear2``), beside settings:

    layer_structure         [1, 2, 1]: widths as multiples of the input's                   missing: 1, 2, 1
    activation_func         linear, relu, swish, …                                         missing: linear
    is_layer_norm           layer norms behind the linear layers (never called layer_norm)  missing: no
    activate_output         the activation comes last, too                                 missing: YES
    dropout_structure       [0, 0.3, 0]: one chance for each width                         missing: as the next two say
    use_dropout             0.3 behind the hidden layers                                   missing: no
    last_layer_dropout      behind the last of them, too                                   missing: no
    weight_initialization, step, name, sd_checkpoint, sd_checkpoint_name, optional_info    notes

The numbers in the tensors' names count activations, norms and dropouts, so a reader that takes a missing setting for
another builds another network, or none. Written are all of them. A safetensors file may hold the same under
``768.k.linear.0.weight`` and ``768.v.…``, each setting as JSON in its header.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.adapters.key_value import Hypernetwork, Structure, Tensors, attention_inputs
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats._write import write_pickle
from sdkit.formats.codec import Dialect, Verdict
from sdkit.weights import TensorInfo, Weights

HOLDS = ("hypernetwork",)
FAMILIES = ("sd1", "sd2", "sdxl")
DIALECTS = (Dialect(("a1111",), suffix=".pt", says="a pickle", said=("comfyui", "forge", "sd-next")),)
_KEY = re.compile(r"(\d{1,6})\.([01kv])\.linear([12]|\.\d+)\.(weight|bias)")
_SIDES = {"0": 0, "k": 0, "1": 1, "v": 1}
_CALLED = ("keys", "values")
_DROPOUT = 0.3  # where a file only says that there is some


def detect(weights: Weights) -> Verdict:
    """Recognised by names like ``768.0.linear.0.weight``."""
    count = sum(1 for name in weights.tensors if _KEY.fullmatch(name)) if weights.mentions(".linear") else 0
    if count:
        return Verdict(True, f"{count} tensors are named like 768.0.linear.0.weight")
    return Verdict(False, "no tensor is named like 768.0.linear.0.weight")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`. The networks of a width that nothing in `model` reads are left, as `Artifact.unmatched`."""
    builder = ArtifactBuilder(weights, model, "hypernetwork")
    settings = _settings(weights)
    structure = _structure(settings, weights.path)
    networks = {
        width: (_network(builder, structure, width, pair, 0), _network(builder, structure, width, pair, 1))
        for width, pair in _pairs(builder).items()
    }
    if model is not None:
        networks = _fitting(builder, networks, model)
    found = Hypernetwork(
        structure,
        networks,
        weight_init=str(settings.get("weight_initialization") or "Normal"),
        name=_text(settings.get("name")) or "",
        step=_count(settings.get("step")),
        checkpoint=_text(settings.get("sd_checkpoint")),
        checkpoint_name=_text(settings.get("sd_checkpoint_name")),
        info=_text(settings.get("optional_info")),
    )
    return replace(builder.build(), kind="hypernetwork", key_value=found)


def write(
    artifact: Artifact, model: Model | None, path: Path, metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """See `formats.write_adapter`. The metadata stand among the settings, where A1111 leaves them alone."""
    hypernetwork = artifact.key_value
    if hypernetwork is None:
        raise SdkitError(f"{path}: a {artifact.kind} is no hypernetwork, so it cannot be written as one")
    networks = {
        width: tuple({name: read.load().clone() for name, read in network.items()} for network in pair)
        for width, pair in hypernetwork.networks.items()
    }
    contents: dict[Any, Any] = {**networks, **metadata, **_written_settings(hypernetwork)}
    nbytes = sum(tensor.nbytes for pair in networks.values() for network in pair for tensor in network.values())
    write_pickle(path, contents, nbytes, overwrite=overwrite)


def _settings(weights: Weights) -> Mapping[str, Any]:
    """What stands beside the tensors: a pickle's own values, or the JSON values of a safetensors header."""
    return weights.extra or {key: _json(text) for key, text in weights.metadata.items()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _structure(settings: Mapping[str, Any], path: Path) -> Structure:
    factors = _numbers(settings, "layer_structure", path) or (1, 2, 1)
    dropout = _numbers(settings, "dropout_structure", path)
    if dropout is None and settings.get("use_dropout"):
        last = _DROPOUT if settings.get("last_layer_dropout") else 0
        dropout = (0, *[_DROPOUT] * (len(factors) - 3), last, 0)[: len(factors)]
    try:
        return Structure(
            factors,
            str(settings.get("activation_func") or "linear").lower(),
            layer_norm=bool(settings.get("is_layer_norm", False)),
            activate_output=bool(settings.get("activate_output", True)),
            dropout=dropout if dropout is not None and any(dropout) else (),
        )
    except ValueError as error:
        raise SdkitError(f"{path}: no such hypernetwork can be built: {error}") from None


def _numbers(settings: Mapping[str, Any], key: str, path: Path) -> tuple[float, ...] | None:
    values = settings.get(key)
    if values is None:
        return None
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise SdkitError(f"{path}: its {key} is no list of numbers")
    return tuple(values)


def _pairs(builder: ArtifactBuilder) -> dict[int, tuple[dict[str, TensorInfo], dict[str, TensorInfo]]]:
    """Width → the tensors for keys and for values, by today's names."""
    pairs: dict[int, tuple[dict[str, TensorInfo], dict[str, TensorInfo]]] = {}
    for stored, info in builder.weights.tensors.items():
        match = _KEY.fullmatch(stored)
        if match is None:
            builder.leave(stored)
            continue
        number = match[3].removeprefix(".") if match[3].startswith(".") else str(int(match[3]) - 1)
        network = pairs.setdefault(int(match[1]), ({}, {}))[_SIDES[match[2]]]
        if network.setdefault(f"linear.{number}.{match[4]}", info) is not info:
            raise SdkitError(f"{builder.weights.path}: {stored} is in the file twice, under an old name and today's")
    return pairs


def _network(
    builder: ArtifactBuilder,
    structure: Structure,
    width: int,
    pair: tuple[dict[str, TensorInfo], dict[str, TensorInfo]],
    side: int,
) -> Tensors:
    """One network, which must have the tensors its structure calls for, and no others."""
    wanted, found = structure.shapes(width), pair[side]
    where = f"{builder.weights.path}: the network for the {_CALLED[side]} of width {width}"
    if not found:
        raise SdkitError(f"{where} is missing", "the file is only half there; get it again")
    for name in [*wanted, *found]:
        if name not in found:
            raise SdkitError(f"{where} lacks {name}, which its structure ({structure}) calls for")
        if name not in wanted:
            raise SdkitError(f"{where} has {name}, for which its structure ({structure}) has no place")
        if found[name].shape != wanted[name] or not found[name].dtype.is_float:
            raise SdkitError(
                f"{where}: {name} is {found[name].dtype.name} {list(found[name].shape)}, "
                f"its structure ({structure}) calls for {list(wanted[name])}"
            )
    return {name: builder.read(found[name]) for name in wanted}


def _fitting(
    builder: ArtifactBuilder, networks: Mapping[int, tuple[Tensors, Tensors]], model: Model
) -> dict[int, tuple[Tensors, Tensors]]:
    """The networks whose width some attention of the model reads. People may train some widths only."""
    inputs = attention_inputs(model)
    for width in networks:
        if width not in inputs:
            builder.leave(f"the networks of width {width}")
    for width, modules in sorted(inputs.items()):
        if width not in networks:
            builder.note(f"it has no networks of width {width}; {len(modules)} keys and values stay the base's own")
    return {width: pair for width, pair in networks.items() if width in inputs}


def _written_settings(hypernetwork: Hypernetwork) -> dict[str, Any]:
    """Every setting, so that no reader has to guess one."""
    structure = hypernetwork.structure
    dropout = list(structure.dropout or [0] * len(structure.layer_structure))
    return {
        "step": hypernetwork.step,
        "name": hypernetwork.name,
        "layer_structure": list(structure.layer_structure),
        "activation_func": structure.activation,
        "is_layer_norm": structure.layer_norm,
        "weight_initialization": hypernetwork.weight_init,
        "sd_checkpoint": hypernetwork.checkpoint,
        "sd_checkpoint_name": hypernetwork.checkpoint_name,
        "activate_output": structure.activate_output,
        "use_dropout": any(dropout),
        "dropout_structure": dropout,
        "last_layer_dropout": dropout[-2] != 0,
        "optional_info": hypernetwork.info,
    }


def _count(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
