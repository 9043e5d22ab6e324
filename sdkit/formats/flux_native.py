"""LoRA files of FLUX.1 and FLUX.2 in the names of their makers' own code: Black Forest Labs', fal's and x-labs'.

``double_blocks.0.img_attn.qkv.lora_A.weight`` is a module as it lies in the single file, with PEFT's roles; fal puts
``base_model.model.`` in front. x-labs names its attention processors: of a double block ``processor.qkv_lora1`` and
``proj_lora1`` for the picture, ``…lora2`` for the text, each with ``.down.weight`` and ``.up.weight``; of a single
block ``processor.qkv_lora``, which leaves out the rows of the feed-forward layer, and ``proj_lora``. None states a
scale: it is 1. The control LoRAs of Black Forest Labs also set the norms of q and k and widen the first layer; that is
no change of weights, so they are refused by name.
"""

from __future__ import annotations

import re
from collections import defaultdict

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.rows import rows_of_change
from sdkit.families.family import Model
from sdkit.formats._lycoris import LORA, changes, refuse
from sdkit.formats.codec import Verdict
from sdkit.weights import TensorInfo, Weights

CHANGES = ("lora",)
FAMILIES = ("flux", "flux2")
PROGRAMS = ("diffusers",)
_START = (
    r"(?:(?:double|single)_blocks\.\d+|(?:time|vector|guidance)_in\.(?:in|out)_layer|(?:img|txt)_in|final_layer"
    r"|double_stream_modulation_(?:img|txt)|single_stream_modulation)"
)
_PEFT = re.compile(
    rf"(?:base_model\.model\.)?(?P<module>{_START}(?:\..+?)?)\.lora_(?P<side>A|B)(?:\.default)?\.(?P<part>weight|bias)"
)
_PROCESSOR = re.compile(
    r"(?:diffusion_model\.)?(?P<block>(?P<kind>double|single)_blocks\.\d+)\.processor\."
    r"(?P<what>qkv|proj)_lora(?P<stream>[12]?)\.(?P<side>down|up)\.weight"
)
_SET = re.compile(rf"{_START}.*\.norm\.(?:query|key)_norm\.scale")
_ROLES = {"A": LORA[1], "B": LORA[0], "down": LORA[1], "up": LORA[0]}
_STREAMS = {"1": "img_attn", "2": "txt_attn"}
_LIKE = "double_blocks.0.img_attn.qkv.lora_A.weight or double_blocks.0.processor.qkv_lora1.down.weight"
_SINGLE_QKV = ("to_q", "to_k", "to_v")


def detect(weights: Weights) -> Verdict:
    """Recognised by a factor of a module of FLUX.1 as its makers name it, with no program's prefix."""
    names = weights.tensors if weights.mentions(".lora_A.", ".lora_B.", ".processor.") else ()
    count = sum(1 for name in names if _split(name) is not None)
    if count:
        return Verdict(True, f"{count} tensors are named like {_LIKE}")
    return Verdict(False, f"no tensor is named like {_LIKE}")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`.

    Raises:
        SdkitError: also for a control LoRA, which sets weights and does not only change them.
    """
    builder = ArtifactBuilder(weights, model, "flux-native")
    modules: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in weights.tensors.items():
        split = _split(name)
        if split is not None:
            modules[split[0]][split[1]] = info
        elif _SET.fullmatch(name):
            raise refuse(weights, name, "a control LoRA that sets the norms of q and k")
        else:
            builder.leave(name)
    names = {} if model is None else {name: hub for hub, name in model.native_modules.items()}
    for spelled, parts in modules.items():
        _add(builder, names.get(spelled, f"transformer.{spelled}" if model is None else None), spelled, parts)
    builder.note("the format states no scale: 1 is used, as in every program that reads it")
    return builder.build()


def _add(builder: ArtifactBuilder, module: str | None, spelled: str, parts: dict[str, TensorInfo]) -> None:
    bias = parts.pop("bias", None)
    for parameter, delta in changes(builder, spelled, parts, lambda rank: 1.0, hub=module):
        block, is_single, _ = spelled.partition(".attn.qkv")
        if not is_single or builder.model is None:
            builder.add(module, spelled, delta, parameter, stated=False)
            continue
        rows = delta.shape[0] // len(_SINGLE_QKV)
        hub = f"transformer.{block.replace('single_blocks', 'single_transformer_blocks')}.attn"
        for number, name in enumerate(_SINGLE_QKV):
            found = builder.resolve(f"{hub}.{name}")
            part = rows_of_change(delta, number * rows, (number + 1) * rows)
            builder.add(found, spelled, part, parameter, stated=False)
    if bias is not None:
        builder.add(module, spelled, Full(builder.read(bias)), "bias")


def _split(name: str) -> tuple[str, str] | None:
    """(module as in the single file, role), or None for a tensor of another kind.

    The attention's rows of a single block's first layer are called ``….attn.qkv``, which no file has.
    """
    match = _PEFT.fullmatch(name)
    if match is not None:
        if match["part"] == "bias":
            return (match["module"], "bias") if match["side"] == "B" else None
        return match["module"], _ROLES[match["side"]]
    match = _PROCESSOR.fullmatch(name)
    if match is None or (match["kind"] == "double") != bool(match["stream"]):
        return None
    if match["kind"] == "double":
        module = f"{_STREAMS[match['stream']]}.{match['what']}"
    else:
        module = "attn.qkv" if match["what"] == "qkv" else "linear2"
    return f"{match['block']}.{module}", _ROLES[match["side"]]
