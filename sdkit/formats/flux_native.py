"""LoRA files of FLUX.1 and FLUX.2 in the names of their makers' own code: Black Forest Labs', fal's and x-labs'.

``double_blocks.0.img_attn.qkv.lora_A.weight`` is a module as it lies in the single file, with PEFT's roles, perhaps
with ``lora_B.bias`` beside them; fal puts ``base_model.model.`` in front. The control LoRAs of Black Forest Labs
(depth, canny) also hold whole norms of q and k (``….norm.query_norm.scale``), which take the places of the base's own,
and their ``img_in`` reads more than the plain model's: the latent and a picture beside it. x-labs names its attention
processors: of a double block ``processor.qkv_lora1`` and ``proj_lora1`` for the picture, ``…lora2`` for the text, each
with ``.down.weight`` and ``.up.weight``; of a single block ``processor.qkv_lora``, which leaves out the rows of the
feed-forward layer, and ``proj_lora``. None states a scale: it is 1.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.adapters.computed import times
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.adapters.deltas.replacement import Replacement
from sdkit.adapters.deltas.rows import rows_of_change
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats._lycoris import LORA, changes
from sdkit.formats._stacks import single_file_changes
from sdkit.formats._write import Content, write_adapter_file
from sdkit.formats.codec import Dialect, Verdict
from sdkit.streaming.expression import Read
from sdkit.weights import DTYPES, TensorInfo, Weights

CHANGES = ("lora", "bias", "replacement")
FAMILIES = ("flux", "flux2")
DIALECTS = (
    Dialect(
        ("comfyui", "diffusers"),
        says="of FLUX.1 control LoRAs, every layer in them",
        families={"comfyui": ("flux",)},
    ),
)
_START = (
    r"(?:(?:double|single)_blocks\.\d+|(?:time|vector|guidance)_in\.(?:in|out)_layer|(?:img|txt)_in|final_layer"
    r"|double_stream_modulation_(?:img|txt)|single_stream_modulation)"
)
_FAL = "base_model.model."
_PEFT = re.compile(
    rf"(?:base_model\.model\.)?(?P<module>{_START}(?:\..+?)?)\.lora_(?P<side>A|B)(?:\.default)?\.(?P<part>weight|bias)"
)
_PROCESSOR = re.compile(
    r"(?:diffusion_model\.)?(?P<block>(?P<kind>double|single)_blocks\.\d+)\.processor\."
    r"(?P<what>qkv|proj)_lora(?P<stream>[12]?)\.(?P<side>down|up)\.weight"
)
_NORM = re.compile(rf"(?:base_model\.model\.)?(?P<module>{_START}.*\.norm\.(?:query|key)_norm)\.scale")
_ROLES = {"A": LORA[1], "B": LORA[0], "down": LORA[1], "up": LORA[0]}
_STREAMS = {"1": "img_attn", "2": "txt_attn"}
_LIKE = "double_blocks.0.img_attn.qkv.lora_A.weight or double_blocks.0.processor.qkv_lora1.down.weight"
_SINGLE_QKV = ("to_q", "to_k", "to_v")
_BIAS, _WHOLE = "bias", "scale"
_NORMS = (".norm.query_norm", ".norm.key_norm")
_ELSEWHERE = "write it as diffusers or comfyui-native"


def detect(weights: Weights) -> Verdict:
    """Recognised by a factor of a module of FLUX.1 as its makers name it, with no program's prefix."""
    names = weights.tensors if weights.mentions("_blocks.", "_in.", "final_layer.") else ()
    count = sum(1 for name in names if (split := _split(name)) is not None and split[1] != _WHOLE)
    if count:
        return Verdict(True, f"{count} tensors are named like {_LIKE}")
    return Verdict(False, f"no tensor is named like {_LIKE}")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`."""
    builder = ArtifactBuilder(weights, model, "flux-native")
    modules: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in weights.tensors.items():
        split = _split(name)
        if split is None:
            builder.leave(name)
        else:
            modules[split[0]][split[1]] = info
    names = {} if model is None else {name: hub for hub, name in model.native_modules.items()}
    for spelled, parts in modules.items():
        _add(builder, names.get(spelled, f"transformer.{spelled}" if model is None else None), spelled, parts)
    builder.note("the format states no scale: 1 is used, as in every program that reads it")
    return builder.build()


def _add(builder: ArtifactBuilder, module: str | None, spelled: str, parts: dict[str, TensorInfo]) -> None:
    if _WHOLE in parts:
        builder.add(module, spelled, Replacement(builder.read(parts[_WHOLE])))
        return
    bias = parts.pop(_BIAS, None)
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


def write(
    artifact: Artifact, model: Model | None, path: Path, metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """See `formats.write_adapter`. Of FLUX.1 control LoRAs, of FLUX.2 what fal writes.

    There is no place for a scale, so it goes into ``lora_B``, which is float32 then.

    Raises:
        SdkitError: also for a FLUX.1 file that no program would take.
    """
    write_adapter_file(path, _contents(artifact, model), metadata, overwrite=overwrite)


def check(artifact: Artifact, model: Model | None) -> None:
    """See `formats.check_writable`."""
    _contents(artifact, model)


def _contents(artifact: Artifact, model: Model | None) -> dict[str, Content]:
    names = artifact.spelled if model is None else model.native_modules
    changes = dict(single_file_changes(artifact, model))
    is_control = any(isinstance(delta, Replacement) for delta in changes.values())
    if model is not None and model.family == "flux":
        _check_whole(changes, model, is_control=is_control)
    contents: dict[str, Content] = {}
    for target, delta in changes.items():
        spelled = names.get(target.module, "")
        if target.component != "transformer" or not spelled or ".attn.qkv" in spelled:
            raise SdkitError(f"{target.name}: has no name in flux-native's format", _ELSEWHERE)
        pair = changes.get(Target(target.module))
        for role, read in _tensors(target, delta, spelled, has_pair=isinstance(pair, LowRank)).items():
            contents[f"{'' if is_control else _FAL}{spelled}.{role}"] = read
    return contents


def _tensors(target: Target, delta: Delta, spelled: str, *, has_pair: bool) -> dict[str, Read]:
    """Role → tensor of one change; a bias stands beside a pair."""
    if isinstance(delta, Replacement) and spelled.endswith(_NORMS):
        return {_WHOLE: delta.weight}
    if isinstance(delta, Full) and target.parameter == "bias" and delta.scale == 1.0 and has_pair:
        return {"lora_B.bias": delta.diff}
    if isinstance(delta, LowRank) and delta.mid is None:
        up = delta.up if delta.scale == 1.0 else times(delta.up, delta.scale, target.name, DTYPES["F32"])
        return {"lora_A.weight": delta.down, "lora_B.weight": up}
    raise SdkitError(f"{target.name}: a {delta.kind} there has no place in flux-native's format", _ELSEWHERE)


def _check_whole(changes: Mapping[Target, Delta], model: Model, *, is_control: bool) -> None:
    """Refuse what diffusers does not take: it looks for every layer and norm of a control LoRA of FLUX.1."""
    if not is_control:
        raise SdkitError("flux-native: of FLUX.1 only control LoRAs are written, which replace norms", _ELSEWHERE)
    wanted = [module for module in model.native_modules if module.startswith("transformer.")]
    missing = [module for module in wanted if Target(module) not in changes]
    if missing:
        raise SdkitError(
            f"flux-native: a control LoRA has a change of every layer, and {len(missing)} lack one ({missing[0]})",
            _ELSEWHERE,
        )


def _split(name: str) -> tuple[str, str] | None:
    """(module as in the single file, role), or None for a tensor of another kind.

    The attention's rows of a single block's first layer are called ``….attn.qkv``, which no file has.
    """
    match = _NORM.fullmatch(name)
    if match is not None:
        return match["module"], _WHOLE
    match = _PEFT.fullmatch(name)
    if match is not None:
        if match["part"] == "bias":
            return (match["module"], _BIAS) if match["side"] == "B" else None
        return match["module"], _ROLES[match["side"]]
    match = _PROCESSOR.fullmatch(name)
    if match is None or (match["kind"] == "double") != bool(match["stream"]):
        return None
    if match["kind"] == "double":
        module = f"{_STREAMS[match['stream']]}.{match['what']}"
    else:
        module = "attn.qkv" if match["what"] == "qkv" else "linear2"
    return f"{match['block']}.{module}", _ROLES[match["side"]]
