"""Textual inversion embeddings: one or more rows of a text encoder's token table.

Written by A1111 (pickle: ``string_to_param`` → ``*`` → [n, d], with the trigger in ``name``), by diffusers (token →
[d] or [n, d]), by kohya's scripts (``emb_params``) and for SDXL (``clip_l`` and ``clip_g``, one per text encoder;
OneTrainer adds ``clip_l_out`` and ``clip_g_out``). Where the file does not name its token, its own name is the token.
arXiv:2208.01618.
"""

from __future__ import annotations

from dataclasses import replace

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.families.family import Model
from sdkit.formats.aesthetic import BARE
from sdkit.formats.codec import Verdict
from sdkit.weights import TensorInfo, Weights

_BY_KEY = {
    "clip_l": "text_encoder",
    "clip_l_out": "text_encoder",
    "clip_g": "text_encoder_2",
    "clip_g_out": "text_encoder_2",
    "t5": "text_encoder_3",
    "t5xxl": "text_encoder_3",
}
_BY_WIDTH = {768: "text_encoder", 1024: "text_encoder", 1280: "text_encoder_2", 4096: "text_encoder_3"}
_NAMELESS = {"emb_params", "*", *_BY_KEY}
_MAX_TOKENS = 64  # a file with more tensors is something else
_A1111 = "string_to_param"


def encoder_of(key: str, info: TensorInfo) -> str:
    """The text encoder whose token table `info` extends: named by the key, else told by the width."""
    return _BY_KEY.get(key) or _BY_WIDTH.get(info.shape[-1] if info.shape else 0, "text_encoder")


def detect(weights: Weights) -> Verdict:
    """Recognised when every tensor is a vector, or a few rows, as wide as a text encoder's tokens."""
    tensors = weights.tensors
    if any(name.startswith(_A1111) for name in tensors):
        return Verdict(True, "it holds string_to_param, as A1111's embeddings do")
    if not tensors or len(tensors) > _MAX_TOKENS:
        return Verdict(False, f"{len(tensors)} tensors are too many, or too few, for an embedding")
    strange = next((name for name, info in tensors.items() if not _is_embedding(name, info)), None)
    if strange is not None:
        return Verdict(False, f"{strange} is no row of a token table")
    return Verdict(True, f"its {len(tensors)} tensors are rows of a token table")


def read(weights: Weights, model: Model | None) -> Artifact:
    """An artifact of tokens. `model` is not needed: nothing refers to a module."""
    builder = ArtifactBuilder(weights, model, "textual-inversion")
    for name, info in weights.tensors.items():
        if name.startswith(_A1111) or _is_embedding(name, info):
            builder.add_tokens(_token(weights, name), encoder_of(name, info), info)
        else:
            builder.leave(name)
    return replace(builder.build(), kind="textual-inversion")


def _is_embedding(name: str, info: TensorInfo) -> bool:
    shape = info.shape
    known = name in _NAMELESS or (name.startswith("<") and name.endswith(">")) or "." not in name
    rows = 1 <= len(shape) <= 2 and (len(shape) == 1 or 1 <= shape[0] <= 1024)
    return name not in BARE and not name.isdigit() and known and rows and shape[-1] in _BY_WIDTH and info.dtype.is_float


def _token(weights: Weights, name: str) -> str:
    if name.startswith(_A1111):
        named = weights.extra.get("name") or weights.metadata.get("name")
        return str(named) if named else weights.path.stem
    return weights.path.stem if name in _NAMELESS else name
