"""LoRA files of the first implementation for Stable Diffusion (github.com/cloneofsimo/lora), addressed by position.

A safetensors file whose metadata hold ``unet`` or ``text_encoder``: a JSON list of the class names that were searched
for layers. Tensors are ``unet:{i}:up`` and ``unet:{i}:down``; the rank is also in the metadata, there is no alpha, and
the scale is 1. Tokens lie beside them (``<s1>``, with the metadata ``<s1>`` = ``<embed>``). The older ``.pt`` is a
plain list up, down, up, down, … of one component. No program names the layers: index i is the i-th layer that the
writer met when it walked through diffusers' model *of its time* (late 2022). There the blocks came down, up, mid, and
a transformer block held attn1, ff, attn2; today's order is another, so walking through today's model is wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.adapters.computed import times
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats._write import Content, write_adapter_file
from sdkit.formats.codec import Dialect, Verdict
from sdkit.streaming.expression import Read, reshaped
from sdkit.weights import DTYPES, TensorInfo, Weights

CHANGES = ("lora",)
FAMILIES = ("sd1", "sd2")
WORDS = True
DIALECTS = (Dialect((), says="every layer it counts must be there; no alpha", said=("lora-diffusion",)),)
OWN_METADATA = re.compile(r"unet|text_encoder|(?:unet|text_encoder):\d+:rank|<[^<>]+>")
_KEY = re.compile(r"(unet|text_encoder):(0|[1-9]\d{0,3}):(up|down)")
_BLOCK = re.compile(
    r"(unet\.(down|up|mid)_blocks?(?:\.(\d+))?\.attentions\.(\d+)\.transformer_blocks\.(\d+))\.attn1\.to_q\.weight"
)
_LAYER = re.compile(r"(text_encoder\.(?:text_model\.)?encoder\.layers\.(\d+)\.self_attn)\.q_proj\.weight")
_STAGES = ("down", "up", "mid")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT_ATTENTION = ("k_proj", "v_proj", "q_proj", "out_proj")
_ATTENTION_CLASSES = frozenset(["CrossAttention", "Attention"])
_FEED_FORWARD_CLASSES = frozenset(["GEGLU"])
_TEXT_CLASSES = frozenset(["CLIPAttention", "CLIPSdpaAttention"])
_KNOWN_CLASSES = {"unet": _ATTENTION_CLASSES | _FEED_FORWARD_CLASSES, "text_encoder": _TEXT_CLASSES}
_TOKEN_FLAG = "<embed>"

Pairs = dict[int, dict[str, TensorInfo]]


def detect(weights: Weights) -> Verdict:
    """Recognised by names like ``unet:0:up``, or by a bare list of pairs of thin matrices."""
    count = sum(1 for name in weights.tensors if _KEY.fullmatch(name)) if weights.mentions(":") else 0
    if count:
        return Verdict(True, f"{count} tensors are named like unet:0:up")
    if _is_list_of_pairs(weights):
        return Verdict(True, f"it is a list of {len(weights.tensors) // 2} pairs of low-rank factors")
    return Verdict(False, "no tensor is named like unet:0:up, and it is no list of pairs of factors")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`.

    Raises:
        SdkitError: a half pair, a gap in the numbering, or not as many pairs as the model has positions.
    """
    builder = ArtifactBuilder(weights, model, "cloneofsimo")
    components: dict[str, Pairs] = {}
    if _is_list_of_pairs(weights):
        pairs = _listed(weights)
        components[_component_of(builder, pairs)] = pairs
    else:
        components = _named(builder)
    for component, pairs in components.items():
        _add_pairs(builder, component, pairs)
    return builder.build()


def write(
    artifact: Artifact, model: Model | None, path: Path, metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """See `formats.write_adapter`. There is no place for a scale, so it goes into ``up``, which is float32 then.

    Raises:
        SdkitError: also when the layers changed are not those the first implementation counts.
    """
    contents: dict[str, Content] = {}
    said: dict[str, str] = {}
    for component, (classes, modules) in _written(artifact, model).items():
        if classes:  # else the metadata of the file that was read say it
            said[component] = json.dumps(sorted(classes - {"CLIPSdpaAttention"}))
        for index, delta in enumerate(modules):
            up = delta.up
            if delta.scale != 1.0:
                up = times(up, delta.scale, f"{component}:{index}", DTYPES["F32"])
            contents |= {f"{component}:{index}:up": _matrix(up), f"{component}:{index}:down": _matrix(delta.down)}
            said[f"{component}:{index}:rank"] = str(delta.rank)
    for rows in artifact.tokens:
        contents[rows.token] = Read(rows.weights, rows.info)
        said[rows.token] = _TOKEN_FLAG
    write_adapter_file(path, contents, {**metadata, **said}, overwrite=overwrite)


def check(artifact: Artifact, model: Model | None) -> None:
    """See `formats.check_writable`."""
    _written(artifact, model)


def _written(artifact: Artifact, model: Model | None) -> dict[str, tuple[frozenset[str], list[LowRank]]]:
    """Component → the classes of its layers, and its changes in the order of the positions.

    Raises:
        SdkitError: the format has no number for a module, or one of its numbers has no change.
    """
    changed = {target.module: delta for target, delta in artifact.deltas.items() if target.parameter == "weight"}
    found: dict[str, tuple[frozenset[str], list[LowRank]]] = {}
    for component in dict.fromkeys(target.component for target in artifact.deltas):
        own = {module for module in changed if module.startswith(f"{component}.")}
        orders = _orders(model, component, len(own))
        classes = next((classes for classes, order in orders.items() if set(order) == own), None)
        if classes is None:
            raise SdkitError(
                f"{component}: the first implementation's files number all attention layers (with ff.net.0.proj), "
                f"here are {len(own)} modules, which are not those",
                "write it in kohya's format, which names its modules",
            )
        found[component] = classes, [_plain(module, changed[module]) for module in orders[classes]]
    return found


def _orders(model: Model | None, component: str, count: int) -> dict[frozenset[str], list[str]]:
    """The classes that may have been searched → the modules in order; without a model those keep their numbers."""
    if model is None:
        return {frozenset(): [f"{component}.{index}" for index in range(count)]}
    whole = _KNOWN_CLASSES.get(component, frozenset())
    return {
        classes: positions(model, component, classes) for classes in (whole, whole - _FEED_FORWARD_CLASSES) if classes
    }


def _plain(module: str, delta: Delta) -> LowRank:
    if not isinstance(delta, LowRank) or delta.mid is not None or math.prod(delta.shape[2:]) != 1:
        raise SdkitError(
            f"{module}: a change of the kind {delta.kind} has no place in the first implementation's files"
        )
    return delta


def _matrix(read: Read) -> Read:
    return reshaped(read, read.shape[:2]) if len(read.shape) > 2 else read


def positions(model: Model, component: str, classes: frozenset[str]) -> list[str]:
    """The hub modules of `component` in the order in which the first implementation numbered them.

    Args:
        component: ``unet`` or ``text_encoder``.
        classes: the class names it searched.
    """
    if component == "text_encoder":
        layers = sorted((int(match[2]), match[1]) for match in map(_LAYER.fullmatch, model.places) if match)
        return [f"{layer}.{slot}" for _, layer in layers for slot in _TEXT_ATTENTION]
    found = sorted(
        (_STAGES.index(match[2]), int(match[3] or 0), int(match[4]), int(match[5]), match[1])
        for match in map(_BLOCK.fullmatch, model.places)
        if match
    )
    slots = _block_slots(classes)
    return [f"{block}.{slot}" for *_, block in found for slot in slots]


def _block_slots(classes: frozenset[str]) -> list[str]:
    attention = bool(classes & _ATTENTION_CLASSES)
    slots = [f"attn1.{slot}" for slot in _ATTENTION] if attention else []
    slots += ["ff.net.0.proj"] if classes & _FEED_FORWARD_CLASSES else []
    return slots + ([f"attn2.{slot}" for slot in _ATTENTION] if attention else [])


def _named(builder: ArtifactBuilder) -> dict[str, Pairs]:
    components: dict[str, Pairs] = defaultdict(lambda: defaultdict(dict))
    for name, info in builder.weights.tensors.items():
        match = _KEY.fullmatch(name)
        if match:
            components[match[1]][int(match[2])][match[3]] = info
        elif builder.weights.metadata.get(name) == _TOKEN_FLAG:
            builder.add_tokens(name, "text_encoder", info)
        else:
            builder.leave(name)
    return components


def _add_pairs(builder: ArtifactBuilder, component: str, pairs: Pairs) -> None:
    where = f"{builder.weights.path}: {component}"
    modules: list[str | None] = [f"{component}.{index}" for index in range(len(pairs))]
    if builder.model is not None:
        modules = [*positions(builder.model, component, _classes(builder.weights, component))]
        if not modules:
            modules = [None] * len(pairs)
    if sorted(pairs) != list(range(len(modules))):
        raise SdkitError(
            f"{where}: the file numbers {len(pairs)} pairs, the model has {len(modules)} positions for them",
            "a file in this format fits only the layout of the model it was trained on",
        )
    for index, module in enumerate(modules):
        if set(pairs[index]) != {"up", "down"}:
            raise SdkitError(f"{where}:{index} is incomplete: it has {' and '.join(pairs[index])} only")
        delta = LowRank(builder.read(pairs[index]["up"]), builder.read(pairs[index]["down"]), 1.0)
        builder.add(module, f"{component}:{index}", delta)


def _classes(weights: Weights, component: str) -> frozenset[str]:
    """The class names the writer searched, from the metadata; its defaults where there are none.

    Raises:
        SdkitError: a class whose layers are not among the known positions was searched too.
    """
    text = weights.metadata.get(component)
    if text is None:
        return _KNOWN_CLASSES[component]
    try:
        names = frozenset(str(name) for name in json.loads(text))
    except (ValueError, TypeError, RecursionError):
        raise SdkitError(f"{weights.path}: the metadata {component} is no JSON list of class names") from None
    unknown = sorted(names - _KNOWN_CLASSES[component])
    if unknown:
        raise SdkitError(
            f"{weights.path}: the file counts layers of {', '.join(unknown)[:200]}, whose positions are not known",
            "save it again with the program that trained it, in a format that names its layers",
        )
    return names


def _is_list_of_pairs(weights: Weights) -> bool:
    count = len(weights.tensors)
    if "0" not in weights.tensors or count % 2 or weights.tensors.keys() != {str(index) for index in range(count)}:
        return False
    shapes = ((pair["up"].shape, pair["down"].shape) for pair in _listed(weights).values())
    return all(len(up) == 2 == len(down) and up[1] == down[0] for up, down in shapes)


def _listed(weights: Weights) -> Pairs:
    # By name: the tensors stand in file order, which need not be the list's.
    tensors = weights.tensors
    return {i: {"up": tensors[str(2 * i)], "down": tensors[str(2 * i + 1)]} for i in range(len(tensors) // 2)}


def _component_of(builder: ArtifactBuilder, pairs: Pairs) -> str:
    """Which component a bare list belongs to: a U-Net has layers that are not square, a text encoder's all are."""
    square = all(pair["up"].shape[0] == pair["down"].shape[1] for pair in pairs.values())
    component = "text_encoder" if square else "unet"
    builder.note(f"the file does not say which component it changes; its shapes are those of the {component}")
    return component
