"""Aesthetic embeddings: the mean CLIP image vector of pictures one likes.

A pickled file that is one bare tensor, [768] for CLIP ViT-L/14, F16 or F32. The vector lies in the image space, not
among the tokens, so it is never an embedding for the tokenizer. Used by the web UI's aesthetic gradients, which steer
the text encoder with it for every picture. arXiv:2209.12330.
"""

from __future__ import annotations

from dataclasses import replace

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.families.family import Model
from sdkit.formats.codec import Verdict
from sdkit.weights import Weights

HOLDS = ("aesthetic",)
FAMILIES = ("sd1",)
SAID = ("a1111",)
BARE = frozenset(["", "tensor", "data", "value"])  # what a tensor without a name may be called
_WIDTHS = (512, 768, 1024, 1280)


def detect(weights: Weights) -> Verdict:
    """Recognised by a single tensor without a name that is a CLIP image vector."""
    if len(weights.tensors) != 1:
        return Verdict(False, f"it holds {len(weights.tensors)} tensors, an aesthetic embedding is one")
    ((name, info),) = weights.tensors.items()
    if name not in BARE or info.numel not in _WIDTHS or info.numel != info.shape[-1]:
        return Verdict(False, f"{name} {list(info.shape)} is no nameless CLIP vector")
    return Verdict(True, f"its only tensor is a nameless vector of {info.numel} numbers")


def read(weights: Weights, model: Model | None) -> Artifact:
    """An artifact with a steering vector. `model` is not needed."""
    builder = ArtifactBuilder(weights, model, "aesthetic")
    (info,) = weights.tensors.values()
    return replace(builder.build(), kind="aesthetic", steering=builder.read(info))
