"""LoRA files in the names of the Open Model Initiative, as OneTrainer writes them.

Keys are ``<component>.<module>.<role>``: ``unet`` or ``transformer`` with the module as in the single file, ``clip_l``,
``clip_g`` and ``t5`` with the module as in transformers. What is one layer in a single file and several in diffusers is
several here too, numbered from the top (``transformer.double_blocks.0.img_attn.qkv.0`` is q, number 3 of ``linear1``
the feed-forward layer), and FLUX.1's ``img_in`` is called ``img_in.proj``. Roles are kohya's. The scale is alpha /
rank; a missing alpha means alpha = rank. The header says ``ot_branch`` = ``omi_format``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.stacked import swapped
from sdkit.families.family import Model
from sdkit.formats import _lycoris_write
from sdkit.formats._lycoris import LORA, ROLES
from sdkit.formats._named import named_contents, read_named
from sdkit.formats._write import write_adapter_file
from sdkit.formats.codec import Dialect, Verdict
from sdkit.formats.comfyui_native import T5_TOKENS
from sdkit.weights import Weights

CHANGES = ("lora", "locon", "dora", "dora-in")
FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")
DIALECTS = (Dialect((), says="stacked layers apart", said=("onetrainer", "invokeai")),)
MARK = {"ot_branch": "omi_format"}
OWN_METADATA = re.compile("ot_branch")
_KEY = re.compile(
    r"(?P<module>(?:unet|transformer|clip_[lg]|t5)\..+?)"
    rf"\.(?P<role>{'|'.join(re.escape(role) for role in sorted(ROLES, key=len, reverse=True))})"
)
_CLIPS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
_COMPONENTS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}
_IMG_IN = "transformer.img_in"


def detect(weights: Weights) -> Verdict:
    """Recognised by a kohya factor of a module that is named with its dots, behind no program's prefix."""
    may_be = weights.mentions(*LORA[:2]) and weights.mentions("unet.", "transformer.", "clip_", "t5.")
    names = weights.tensors if may_be else ()
    count = sum(1 for name in names if (split := _split(name)) and split[1] in LORA[:2])
    if count:
        return Verdict(True, f"{count} tensors are named like unet.….lora_down.weight, with dots and no underscores")
    return Verdict(False, "no tensor is named like unet.….lora_down.weight or clip_l.….lora_down.weight")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`."""
    names = {} if model is None else {spelled: hub for hub, spelled in _names(model)}
    return read_named(weights, model, "omi", _split, _readable if model is None else names.get)


def write(
    artifact: Artifact, model: Model | None, path: Path, metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """See `formats.write_adapter`."""
    names = artifact.spelled if model is None else dict(_names(model))
    contents = named_contents(_single_file_rows(artifact, model), names, model, "the Open Model Initiative's names")
    metadata = {**metadata, **MARK, **_lycoris_write.network_metadata(artifact.deltas.values())}
    write_adapter_file(path, contents, metadata, overwrite=overwrite)


def _single_file_rows(artifact: Artifact, model: Model | None) -> Iterator[tuple[Target, Delta]]:
    """Every change, its rows in the order of the single file."""
    stacks = model.stacks.items() if model is not None else ()
    turned = {stack.members[0][0]: name for name, stack in stacks if stack.swapped}
    for target, delta in artifact.deltas.items():
        if target.module in turned:
            yield Target(turned[target.module], target.parameter), swapped(delta, target.name)
        else:
            yield target, delta


def _names(model: Model) -> Iterator[tuple[str, str]]:
    """Hub module, or a stack whose halves are swapped → its name here."""
    t5 = {component for component in model.components if f"{component}.{T5_TOKENS}" in model.places}
    for hub, native in model.native_modules.items():
        component = hub.partition(".")[0]
        prefix = "t5" if component in t5 else _CLIPS.get(component, component)
        name = f"{prefix}.{native}"
        stack = model.stacks.get(hub)
        if stack is not None and not stack.swapped:
            yield from ((member, f"{name}.{number}") for number, (member, _) in enumerate(stack.members))
        elif component != "vae":
            yield hub, f"{name}.proj" if name == _IMG_IN else name


def _split(name: str) -> tuple[str, str] | None:
    """(module, role), or None for a tensor of another kind."""
    match = _KEY.fullmatch(name)
    return (match["module"], match["role"]) if match else None


def _readable(spelled: str) -> str:
    """A module's name for a person where there is no model to ask."""
    head, _, rest = spelled.partition(".")
    return f"{_COMPONENTS.get(head, head)}.{rest}"
