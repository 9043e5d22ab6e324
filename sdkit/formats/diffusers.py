"""LoRA files of diffusers (pytorch_lora_weights.safetensors), in its new spelling and its older ones.

New: ``unet.<module>.lora_A.weight``, ``text_encoder.<module>.lora_A.weight``, a DoRA's ``….lora_magnitude_vector`` and
a ``….lora_B.bias`` beside them, with PEFT's ranks and alphas as JSON in the header's ``lora_adapter_metadata`` (keys
prefixed by the component); some writers leak PEFT's adapter name (``.lora_A.default.weight``) or torch.compile's
``_orig_mod.``. Control LoRAs of FLUX.1 also hold whole norms (``transformer.….attn.norm_q.weight``), which take the
places of the transformer's own. Older: ``<module>.lora.down.weight``,
``<module>.lora_linear_layer.down.weight``, ``….attn1.processor.to_q_lora.down.weight``; the oldest have no ``unet.``.
Without metadata and without a ``.alpha`` beside the factors the scale is 1, as in diffusers.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.adapters.deltas.replacement import Replacement
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats._lycoris import refuse
from sdkit.formats._peft_write import component_files
from sdkit.formats._write import Content, write_adapter_file
from sdkit.formats.codec import Dialect, Verdict
from sdkit.formats.peft import CONFIG, LoraSettings, add_pair, by_component, candidates, not_held
from sdkit.weights import TensorInfo, Weights

CHANGES = ("lora", "locon", "dora", "bias", "replacement")
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
_LENGTHS = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.[A-Za-z]\w*)??(?:\.weight)?")
# Of FLUX.1's transformer alone diffusers takes whole norms from a LoRA's file.
_NORM = re.compile(r"(?P<module>transformer\.(?:single_)?transformer_blocks\.\d+\.attn\.norm_(?:added_)?[qk])\.weight")

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
        SdkitError: also when the header's JSON is broken, or a DoRA lacks its magnitudes.
    """
    builder = ArtifactBuilder(weights, model, "diffusers")
    settings = _settings(weights)
    doras = {component for component, config in settings.items() if config.dora}
    pairs, alphas, norms = _sorted_out(builder)
    for module, info in norms.items():
        builder.add(builder.resolve(module), module, Replacement(builder.read(info)))
    for spelled, parts in pairs.items():
        component, _, module = spelled.partition(".")
        chosen = settings.get(component) or LoraSettings.parse({}, weights.path)
        alpha = weights.scalar(alphas[spelled].name) if spelled in alphas else None
        if component in doras and "lengths" not in parts:
            raise SdkitError(f"{weights.path}: {spelled} is incomplete: lora_magnitude_vector missing")
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
    contents, settings = _contents(artifact, model)
    header = json.dumps(settings, sort_keys=True)
    write_adapter_file(path, contents, {**metadata, HEADER_KEY: header}, overwrite=overwrite)


def check(artifact: Artifact, model: Model | None) -> None:
    """Refuse what diffusers' format has no place for, and what diffusers would leave aside without a word: T5."""
    t5 = next((target.name for target in artifact.deltas if _T5.match(target.module)), None)
    if t5 is not None:
        raise SdkitError(f"{t5}: diffusers loads no LoRA of T5", "write it as kohya's or comfyui-native")
    _contents(artifact, model)


def _contents(artifact: Artifact, model: Model | None) -> tuple[dict[str, Content], dict[str, object]]:
    """The tensors, and PEFT's settings with the component in front."""
    contents: dict[str, Content] = {}
    settings: dict[str, object] = {}
    norms = {target: delta for target, delta in artifact.deltas.items() if isinstance(delta, Replacement)}
    for target, norm in norms.items():
        if not _NORM.fullmatch(target.name) or (model is not None and model.family != "flux"):
            raise not_held(target.name, norm, "diffusers")
        contents[target.name] = norm.weight
    pairs = {target: delta for target, delta in artifact.deltas.items() if target not in norms}
    for component, (modules, biases) in by_component(replace(artifact, deltas=pairs), model, "diffusers").items():
        shapes = {name: delta.shape for name, delta in modules.items()}
        tensors, config = component_files(modules, shapes, biases)
        if config["peft_type"] != "LORA":
            raise not_held(*next(iter(modules.items())), "diffusers")
        settings |= {f"{component}.{key}": value for key, value in config.items()}
        contents |= {name.replace("base_model.model", component, 1): part for name, part in tensors.items()}
    return contents, settings


def _sorted_out(builder: ArtifactBuilder) -> tuple[dict[str, Parts], Parts, Parts]:
    """The file's tensors as module → parts, module → alpha, and module → whole norm."""
    pairs: dict[str, Parts] = defaultdict(dict)
    alphas: Parts = {}
    norms: Parts = {}
    for name, info in builder.weights.tensors.items():
        factor, alpha = _factor(name), _ALPHA.fullmatch(_cleaned(name))
        if factor is not None:
            module, part = factor
            if part in pairs[module]:
                raise SdkitError(f"{builder.weights.path}: {pairs[module][part].name} and {name} are the same factor")
            pairs[module][part] = info
        elif alpha is not None:
            alphas[_module(alpha)] = info
        elif (norm := _NORM.fullmatch(name)) is not None:
            norms[norm["module"]] = info
        elif "dora_scale" in name:
            raise refuse(builder.weights, name, "LyCORIS' DoRA among diffusers' names")
        else:
            builder.leave(name)
    return pairs, alphas, norms


def _factor(name: str) -> tuple[str, str] | None:
    """(module with its component, part) of a factor: ``A``, ``B``, ``bias`` or ``lengths``; None for anything else."""
    cleaned = _cleaned(name)
    if not cleaned.startswith(_UNET_START) and not _COMPONENT.match(cleaned):
        return None
    match = _PEFT.fullmatch(cleaned)
    if match is not None:
        if match["part"] == "bias" and match["side"] == "A":
            return None
        return _module(match), match["side"] if match["part"] == "weight" else "bias"
    match = _LENGTHS.fullmatch(cleaned)
    if match is not None:
        return _module(match), "lengths"
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
    return {component: LoraSettings.parse(config, weights.path) for component, config in grouped.items()}
