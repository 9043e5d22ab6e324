"""Custom Diffusion as its authors save it: whole weights of cross-attention and the words, in one pickle.

``delta.bin`` is that of their code over diffusers, ``delta_epoch=….ckpt`` that of their code over LDM; `_concepts` has
both grammars. LDM's does not name its words, so their names stand in ``modifier_token`` beside, where that code looks
for nothing. arXiv:2212.04488.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.adapters.deltas.replacement import Replacement
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats._concepts import (
    LDM,
    ROWS,
    TOKENS,
    looks_so,
    read_words,
    single_file_names,
    stored,
    vector,
    written_words,
)
from sdkit.formats._write import write_pickle
from sdkit.formats.codec import Dialect, Verdict
from sdkit.weights import Weights

HOLDS = ("custom-diffusion",)
CHANGES = ("replacement",)
WORDS = True
FAMILIES = ("sd1", "sd2", "sdxl")
DIALECTS = (
    Dialect((), name="delta", suffix=".bin", says="a pickle, as the authors' code over diffusers reads it"),
    Dialect((), name="ldm", suffix=".ckpt", says="a pickle, as the authors' code over LDM reads it"),
)


def detect(weights: Weights) -> Verdict:
    """Recognised when it holds whole weights of attention, and nothing beside but words."""
    if looks_so(weights, factors=False):
        return Verdict(True, "it holds weights of attention like unet.….attn2.to_k.weight, and words alone beside")
    return Verdict(False, "it holds more, or something else, than ….attn2.to_k.weight and words")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`."""
    builder, names = ArtifactBuilder(weights, model, "custom-diffusion-delta"), single_file_names(model)
    for name, info in weights.tensors.items():
        entry = stored(name)
        if entry is not None:
            module = builder.resolve(entry.hub(names), parameter=entry.parameter)
            builder.add(module, name, Replacement(builder.read(info)), entry.parameter)
    read_words(builder, weights)
    return replace(builder.build(), kind="custom-diffusion")


def write(
    artifact: Artifact,
    model: Model | None,
    path: Path,
    metadata: Mapping[str, str],
    *,
    dialect: str = "",
    overwrite: bool = False,
) -> None:
    """See `formats.write_adapter`."""
    check(artifact, model)
    dialect = dialect or ("ldm" if path.suffix == ".ckpt" else "delta")
    weights = {}
    for target, delta in artifact.deltas.items():
        assert isinstance(delta, Replacement)
        weights[target.name] = delta.weight.load().clone()
    words = {word: [vector(part).load().clone() for part in rows] for word, rows in written_words(artifact).items()}
    contents = _ldm(weights, words, model, path) if dialect == "ldm" else _delta(weights, words)
    nbytes = sum(tensor.nbytes for tensor in weights.values())
    write_pickle(path, {**metadata, **contents}, nbytes, overwrite=overwrite)


def check(artifact: Artifact, model: Model | None) -> None:
    """Raise SdkitError unless it is nothing but absolute weights of the U-Net's attention, and words."""
    for target, delta in artifact.deltas.items():
        if not isinstance(delta, Replacement) or stored(target.name) is None:
            raise SdkitError(f"{target.name}: a {delta.kind} there has no place in a Custom Diffusion's delta")
    if not artifact.deltas:
        raise SdkitError("a Custom Diffusion's delta needs weights of attention", "write words as embeddings")


def _delta(weights: Mapping[str, Any], words: Mapping[str, list[Any]]) -> dict[str, Any]:
    named = {name.removeprefix("unet."): weight for name, weight in weights.items()}
    tokens = {word: vectors[0] if len(vectors) == 1 else vectors for word, vectors in words.items()}
    return {"unet": named, **({TOKENS: tokens} if tokens else {})}


def _ldm(weights: Mapping[str, Any], words: Mapping[str, list[Any]], model: Model | None, path: Path) -> dict[str, Any]:
    import torch

    if model is None or any(len(vectors) != 1 for vectors in words.values()):
        raise SdkitError(f"{path}: LDM's delta is for models of one text encoder whose names are known", "--to delta")
    native = {hub: name for name, hub in single_file_names(model).items()}
    named = {}
    for name, weight in weights.items():
        module, _, parameter = name.rpartition(".")
        named[f"{LDM}.{native[module]}.{parameter}"] = weight
    if not words:
        return {"state_dict": named}
    rows = torch.stack([vectors[0] for vectors in words.values()])
    return {"state_dict": {**named, ROWS: rows}, TOKENS: "+".join(words)}
