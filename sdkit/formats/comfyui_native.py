"""LoRA files in ComfyUI's own names: modules as they lie in its models, with their dots.

Keys are ``diffusion_model.<module>.<role>``, the module as in the single file without its ``model.`` in front, and
``text_encoders.clip_l.transformer.<module>`` (SDXL's second encoder ``clip_g``, SD2's ``clip_h``, T5 ``t5xxl``), the
module as in transformers. Roles are kohya's and LyCORIS', or PEFT's ``lora_A.weight`` and ``lora_B.weight``. The scale
is alpha / rank where an ``.alpha`` stands beside the factors, else 1. Writers: ComfyUI's own training and extraction,
newer trainers, some of which have a transformer's layers in diffusers' names there; only ComfyUI and Forge read them
for the older families, diffusers for some newer ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sdkit.adapters.artifact import Artifact
from sdkit.families.family import Model
from sdkit.families.parameter import module_of
from sdkit.formats import _lycoris_write
from sdkit.formats._lycoris import KINDS, LORA, ROLES
from sdkit.formats._named import named_contents, read_named
from sdkit.formats._stacks import single_file_changes
from sdkit.formats._write import write_adapter_file
from sdkit.formats.codec import Dialect, Verdict
from sdkit.weights import Weights

CHANGES = KINDS
DIALECTS = (Dialect(("comfyui",)),)
_PEFT_ROLES = {"lora_A.weight": LORA[1], "lora_B.weight": LORA[0], "lora_A": LORA[1], "lora_B": LORA[0]}
_KEY = re.compile(
    r"(?P<module>(?:diffusion_model|text_encoders\.(?:clip_[lgh]|t5xxl)\.transformer)\..+?)"
    rf"\.(?P<role>{'|'.join(re.escape(role) for role in sorted((*ROLES, *_PEFT_ROLES), key=len, reverse=True))})"
)
_UNET = "diffusion_model."
T5_TOKENS = "shared.weight"  # only T5 calls its table of tokens so
# ComfyUI's text encoders → the component. SD2's only one is clip_h.
_ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "clip_h": "text_encoder"}
_BARE_ROLES = frozenset({"weight", "bias"})  # a checkpoint's own tensors end so, too


def detect(weights: Weights) -> Verdict:
    """Recognised by a factor of a module that lies in ComfyUI's models."""
    names = weights.tensors if weights.mentions(_UNET, "text_encoders.") else ()
    count = sum(1 for name in names if (split := _split(name)) and split[1] not in _BARE_ROLES)
    if count:
        return Verdict(True, f"{count} tensors are named like diffusion_model.….lora_down.weight")
    return Verdict(False, "no tensor is named like diffusion_model.….lora_down.weight")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`."""
    names = _hub_names(model)
    return read_named(weights, model, "comfyui-native", _split, _readable if model is None else names.get)


def write(
    artifact: Artifact, model: Model | None, path: Path, metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """See `formats.write_adapter`."""
    names = artifact.spelled if model is None else {hub: spelled for spelled, hub in _hub_names(model).items()}
    contents = named_contents(single_file_changes(artifact, model), names, model, "ComfyUI's models")
    metadata = {**metadata, **_lycoris_write.network_metadata(artifact.deltas.values())}
    write_adapter_file(path, contents, metadata, overwrite=overwrite)


def _split(name: str) -> tuple[str, str] | None:
    """(module, role in kohya's words), or None for a tensor of another kind."""
    match = _KEY.fullmatch(name)
    return (match["module"], _PEFT_ROLES.get(match["role"], match["role"])) if match else None


def _hub_names(model: Model | None) -> dict[str, str]:
    """ComfyUI's name of each module → the hub's."""
    if model is None:
        return {}
    native = model.native_modules.items()
    # Some trainers put diffusers' names of a transformer behind this prefix; the single file's come after, and count
    # where a name is written.
    rows = (name for name in model.places if name.startswith("transformer."))
    names = {f"{_UNET}{module_of(name).removeprefix('transformer.')}": module_of(name) for name in rows}
    names |= {f"{_UNET}{name}": hub for hub, name in native if hub.startswith(("unet.", "transformer."))}
    clips = {component: clip for clip, component in _ENCODERS.items() if (clip == "clip_h") == (model.family == "sd2")}
    clips |= {component: "t5xxl" for component in model.components if f"{component}.{T5_TOKENS}" in model.places}
    for hub in model.native_modules:
        component, _, module = hub.partition(".")
        if component in clips:
            names[f"text_encoders.{clips[component]}.transformer.{module}"] = hub
    return names


def _readable(spelled: str) -> str:
    """A module's name for a person where there is no model to ask."""
    if spelled.startswith(_UNET):
        return f"unet.{spelled.removeprefix(_UNET)}"
    _, clip, _, module = spelled.split(".", 3)
    return f"{_ENCODERS.get(clip, 'text_encoder_3')}.{module}"
