"""LoRA files of diffusers (pytorch_lora_weights.safetensors), in its new spelling and its older ones.

New: ``unet.<module>.lora_A.weight``, ``text_encoder.<module>.lora_A.weight``, with PEFT's ranks and alphas as JSON in
the header's ``lora_adapter_metadata`` (keys prefixed by the component); some writers leak PEFT's adapter name
(``.lora_A.default.weight``) or torch.compile's ``_orig_mod.``. Older: ``<module>.lora.down.weight``,
``<module>.lora_linear_layer.down.weight``, ``….attn1.processor.to_q_lora.down.weight``; the oldest have no ``unet.``.
Without metadata and without a ``.alpha`` beside the factors the scale is 1, as in diffusers.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats._lycoris import refuse
from sdkit.formats._peft_write import component_files
from sdkit.formats._write import Content, write_adapter_file
from sdkit.formats.codec import Dialect, Verdict
from sdkit.formats.peft import CONFIG, LoraSettings, add_pair, by_component, candidates, not_held
from sdkit.weights import TensorInfo, Weights

CHANGES = ("lora", "locon")
DIALECTS = (Dialect(("diffusers",)),)
HEADER_KEY = "lora_adapter_metadata"
OWN_METADATA = re.compile(HEADER_KEY)
_PEFT = re.compile(r"(?P<module>.+)\.lora_(?P<side>A|B)(?:\.[A-Za-z]\w*)??\.(?P<part>weight|bias)")
_OLD = re.compile(
    r"(?P<module>.+?)(?:\.processor)?\.(?:(?P<slot>to_(?:q|k|v|out))_lora|lora|lora_linear_layer)"
    r"\.(?P<side>down|up)(?:\.[A-Za-z]\w*)??\.weight"
)
_ALPHA = re.compile(
    r"(?P<module>.+?)(?:\.processor)?(?:\.(?P<slot>to_(?:q|k|v|out))_lora|\.lora|\.lora_linear_layer)?\.alpha"
)
# One of these is in every factor's name, as it stands in a file: the last two are taken out of it.
_FACTORS = (".lora_A.", ".lora_B.", "_lora.", ".lora.", ".lora_linear_layer.", "_orig_mod.", "base_model.model.")
_SIDES = {"down": "A", "up": "B"}
_TEXT_SLOTS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_COMPONENT = re.compile(r"(?:unet|text_encoder(?:_\d)?|transformer(?:_\d)?|prior|controlnet)\.")
_UNET_START = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in.", "conv_out.", "time_embedding.", "add_embedding.")
_T5 = re.compile(r"text_encoder_\d\.encoder\.block\.")
_DORA = ("lora_magnitude_vector", "dora_scale")

Parts = dict[str, TensorInfo]


def detect(weights: Weights) -> Verdict:
    """Recognised by factors named after diffusers' modules. A folder of PEFT's is left to its own codec."""
    if CONFIG in weights.configs:
        return Verdict(False, "adapter_config.json makes it a folder of PEFT's")
    names = weights.tensors if weights.mentions(*_FACTORS) else ()
    count = sum(1 for name in names if _factor(name) is not None)
    if count:
        return Verdict(True, f"{count} tensors are named like unet.….lora_A.weight or unet.….to_q_lora.down.weight")
    return Verdict(False, "no tensor is named like unet.….lora_A.weight or unet.….to_q_lora.down.weight")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`.

    Raises:
        SdkitError: also when the header's JSON is broken, or the file holds DoRA magnitudes.
    """
    builder = ArtifactBuilder(weights, model, "diffusers")
    settings = _settings(weights)
    pairs, alphas = _sorted_out(builder)
    for spelled, parts in pairs.items():
        component, _, module = spelled.partition(".")
        chosen = settings.get(component) or LoraSettings.parse({}, weights.path)
        alpha = weights.scalar(alphas[spelled].name) if spelled in alphas else None
        stated = alpha is not None or component in settings
        if not stated:
            builder.note("a module has neither alpha nor metadata: scale 1 is used, as in diffusers")
        add_pair(builder, candidates(component, module), spelled, parts, chosen, alpha, stated=stated)
    for spelled in sorted(set(alphas) - set(pairs)):
        raise SdkitError(f"{weights.path}: {spelled} has an alpha and nothing that it scales")
    return builder.build()


def write(
    artifact: Artifact, model: Model | None, path: Path, metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """See `formats.write_adapter`. The new spelling; ranks and alphas go into the header, as diffusers reads them.

    Raises:
        SdkitError: also when a change is no plain LoRA.
    """
    check(artifact, model)
    contents: dict[str, Content] = {}
    settings: dict[str, object] = {}
    for component, modules in by_component(artifact, "diffusers").items():
        tensors, config = component_files(modules, {name: delta.shape for name, delta in modules.items()})
        if config["peft_type"] != "LORA" or "use_dora" in config:
            raise not_held(*next(iter(modules.items())), "diffusers")
        settings |= {f"{component}.{key}": value for key, value in config.items()}
        contents |= {name.replace("base_model.model", component, 1): part for name, part in tensors.items()}
    header = json.dumps(settings, sort_keys=True)
    write_adapter_file(path, contents, {**metadata, HEADER_KEY: header}, overwrite=overwrite)


def check(artifact: Artifact, model: Model | None) -> None:
    """Refuse what diffusers would leave aside without a word: changes of T5."""
    t5 = next((target.name for target in artifact.deltas if _T5.match(target.module)), None)
    if t5 is not None:
        raise SdkitError(f"{t5}: diffusers loads no LoRA of T5", "write it as kohya's or comfyui-native")


def _sorted_out(builder: ArtifactBuilder) -> tuple[dict[str, Parts], Parts]:
    """The file's tensors as module → parts, and module → alpha."""
    pairs: dict[str, Parts] = defaultdict(dict)
    alphas: Parts = {}
    for name, info in builder.weights.tensors.items():
        if any(part in name for part in _DORA):
            raise refuse(builder.weights, name, "DoRA")
        factor, alpha = _factor(name), _ALPHA.fullmatch(_cleaned(name))
        if factor is not None:
            module, part = factor
            if part in pairs[module]:
                raise SdkitError(f"{builder.weights.path}: {pairs[module][part].name} and {name} are the same factor")
            pairs[module][part] = info
        elif alpha is not None:
            alphas[_module(alpha)] = info
        else:
            builder.leave(name)
    return pairs, alphas


@lru_cache(maxsize=1 << 15)  # a folder's files have the same names over and over
def _factor(name: str) -> tuple[str, str] | None:
    """(module with its component, part) of a factor: part is ``A``, ``B`` or ``bias``; None for anything else."""
    cleaned = _cleaned(name)
    if not cleaned.startswith(_UNET_START) and not _COMPONENT.match(cleaned):
        return None
    match = _PEFT.fullmatch(cleaned)
    if match is not None:
        if match["part"] == "bias" and match["side"] == "A":
            return None
        return _module(match), match["side"] if match["part"] == "weight" else "bias"
    match = _OLD.fullmatch(cleaned)
    return (_module(match), _SIDES[match["side"]]) if match is not None else None


def _cleaned(name: str) -> str:
    return name.replace("_orig_mod.", "").replace("base_model.model.", "")


def _module(match: re.Match[str]) -> str:
    """The module of a matched key, with its component, in diffusers' own spelling."""
    module = match["module"]
    if not _COMPONENT.match(module):  # the oldest files hold the U-Net alone
        module = f"unet.{module}"
    slot = match.groupdict().get("slot")
    if slot is None:
        return module
    if module.startswith("text_encoder"):
        return f"{module}.{_TEXT_SLOTS[slot]}"
    return f"{module}.to_out.0" if slot == "to_out" else f"{module}.{slot}"


def _settings(weights: Weights) -> dict[str, LoraSettings]:
    """Component → PEFT's settings, from the header.

    Raises:
        SdkitError: the JSON is broken, or names a kind that is not supported.
    """
    text = weights.metadata.get(HEADER_KEY)
    if text is None:
        return {}
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise SdkitError(f"{weights.path}: the header's {HEADER_KEY} is no JSON table", "save the file again")
    grouped: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in table.items():
        component, _, setting = str(key).partition(".")
        grouped[component][setting] = value
    for component, config in grouped.items():
        if config.get("use_dora"):
            raise refuse(weights, f"{HEADER_KEY}, {component}", "DoRA")
    return {component: LoraSettings.parse(config, weights.path) for component, config in grouped.items()}
