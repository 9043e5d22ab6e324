"""Custom Diffusion: retrained key and value projections of cross-attention, and new tokens.

The repository's files hold ``unet`` → ``….attn2.to_k.weight`` and ``modifier_token`` → ``<new1>`` → vector; diffusers
writes ``….attn2.processor.to_k_custom_diffusion.weight``. The weights are absolute: they replace the base's own, so a
difference exists only against the exact base they were trained on. arXiv:2212.04488.
"""

from __future__ import annotations

import re
from dataclasses import replace

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.families.family import Model
from sdkit.formats.codec import Verdict
from sdkit.formats.textual_inversion import encoder_of
from sdkit.streaming.expression import Read
from sdkit.weights import Weights

HOLDS = ("custom-diffusion",)
PROGRAMS = ("diffusers",)
_REPOSITORY = re.compile(r"unet\.(?P<module>.+\.attn[12]\.to_(?:k|v|q|out\.0))\.(?P<parameter>weight|bias)")
_DIFFUSERS = re.compile(
    r"(?:unet\.)?(?P<module>.+\.attn[12])\.processor\.(?P<slot>to_(?:k|v|q|out))_custom_diffusion"
    r"(?:\.0)?\.(?P<parameter>weight|bias)"
)
_TOKEN = "modifier_token."


def detect(weights: Weights) -> Verdict:
    """Recognised by ``_custom_diffusion`` in a name, or by new tokens beside absolute attention weights."""
    names = weights.tensors
    if any(_DIFFUSERS.fullmatch(name) for name in names):
        return Verdict(True, "its tensors are named like ….attn2.processor.to_k_custom_diffusion.weight")
    if any(name.startswith(_TOKEN) for name in names) and any(_REPOSITORY.fullmatch(name) for name in names):
        return Verdict(True, "it holds modifier_token beside unet.….attn2.to_k.weight")
    return Verdict(False, "no tensor is named like ….to_k_custom_diffusion.weight, and there is no modifier_token")


def read(weights: Weights, model: Model | None) -> Artifact:
    """An artifact of absolute weights and tokens; every weight is kept, whether or not `model` has a place for it."""
    builder = ArtifactBuilder(weights, model, "custom-diffusion")
    replaced: dict[Target, Read] = {}
    for name, info in weights.tensors.items():
        target = _target(name)
        if name.startswith(_TOKEN):
            builder.add_tokens(name.removeprefix(_TOKEN), encoder_of("", info), info)
        elif target is not None:
            replaced[target] = builder.read(info)
        else:
            builder.leave(name)
    return replace(builder.build(), kind="custom-diffusion", replaced=replaced)


def _target(name: str) -> Target | None:
    match = _REPOSITORY.fullmatch(name)
    if match:
        return Target(f"unet.{match['module']}", match["parameter"])
    match = _DIFFUSERS.fullmatch(name)
    if match:
        slot = "to_out.0" if match["slot"] == "to_out" else match["slot"]
        return Target(f"unet.{match['module']}.{slot}", match["parameter"])
    return None
