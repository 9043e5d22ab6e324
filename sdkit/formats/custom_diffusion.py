"""Custom Diffusion: retrained key and value projections of cross-attention, and new tokens.

diffusers writes ``….attn2.processor.to_k_custom_diffusion.weight`` and keeps each token in a file of its own, a textual
inversion. (The authors' own files, which have both in one, are `custom_diffusion_delta`.) The weights are absolute:
they replace the base's own, so a difference exists only against the exact base they were trained on. arXiv:2212.04488.

diffusers wants an entry for every attention of the U-Net, an empty one where nothing was trained. In safetensors that
is a tensor without elements; without them its own files in safetensors cannot be loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.replacement import Replacement
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats._write import write_adapter_file
from sdkit.formats.codec import Dialect, Verdict
from sdkit.streaming.expression import Read
from sdkit.weights import DTYPES, TensorInfo, Weights
from sdkit.weights.memory import MemoryWeights
from sdkit.weights.reader import Container

HOLDS = ("custom-diffusion",)
CHANGES = ("replacement",)
FAMILIES = ("sd1", "sd2", "sdxl")
DIALECTS = (Dialect(("diffusers",), says="a file, words in files beside it", families={"diffusers": ("sd1",)}),)
_DIFFUSERS = re.compile(
    r"(?:unet\.)?(?P<module>.+\.attn[12])\.processor\.(?P<slot>to_(?:k|v|q|out))_custom_diffusion"
    r"(?:\.0)?\.(?P<parameter>weight|bias)"
)
_EMPTY = re.compile(r"(?:unet\.)?.+\.attn[12]\.processor")


def detect(weights: Weights) -> Verdict:
    """Recognised by ``_custom_diffusion`` in a name of a file's tensors."""
    if weights.container is not Container.FOLDER and names_weights(weights):
        return Verdict(True, "its tensors are named like ….attn2.processor.to_k_custom_diffusion.weight")
    return Verdict(False, "it is no file with a tensor named like ….to_k_custom_diffusion.weight")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`."""
    builder = ArtifactBuilder(weights, model, "custom-diffusion")
    for name, info in weights.tensors.items():
        target = _target(name)
        if target is not None:
            module = builder.resolve(target.module, parameter=target.parameter)
            builder.add(module, name, Replacement(builder.read(info)), target.parameter)
        elif not is_empty_entry(name, info):
            builder.leave(name)
    return replace(builder.build(), kind="custom-diffusion")


def write(
    artifact: Artifact, model: Model | None, path: Path, metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """See `formats.write_adapter`. Tokens have files of their own."""
    check(artifact, model)
    contents = {_name(target): _weight(target, delta) for target, delta in artifact.deltas.items()}
    modules = {name.rpartition(".processor.")[0] for name in contents}
    empty = MemoryWeights("an empty entry", {name: (DTYPES["F32"], (0,), b"") for name in _empty(modules, model)}, {})
    contents |= {name: Read(empty, info) for name, info in empty.tensors.items()}
    write_adapter_file(path, contents, metadata, overwrite=overwrite)


def check(artifact: Artifact, model: Model | None) -> None:
    """Raise SdkitError unless it is nothing but absolute weights of the U-Net's attention."""
    for target, delta in artifact.deltas.items():
        _weight(target, delta)
    if artifact.tokens or not artifact.deltas:
        raise SdkitError("custom-diffusion's format holds weights of attention alone", "write words as embeddings")


def names_weights(weights: Weights) -> bool:
    """Whether a tensor is named as diffusers names a trained one."""
    return weights.mentions("_custom_diffusion") and any(_DIFFUSERS.fullmatch(name) for name in weights.tensors)


def is_empty_entry(name: str, info: TensorInfo) -> bool:
    """Whether a tensor only says that nothing was trained at an attention."""
    return info.numel == 0 and _EMPTY.fullmatch(name) is not None


def _weight(target: Target, delta: Delta) -> Read:
    if not isinstance(delta, Replacement) or _target(_name(target)) != target:
        raise SdkitError(f"{target.name}: a {delta.kind} there has no place in custom-diffusion's format")
    return delta.weight


def _empty(trained: set[str], model: Model | None) -> Iterator[str]:
    """The entries of all attentions of the U-Net but the trained; without a model, of those beside the trained."""
    if model is None:
        found = {name.removesuffix("attn2") + "attn1" for name in trained}
    else:
        modules = (name.removeprefix("unet.") for name in model.places if name.startswith("unet."))
        found = {name.removesuffix(".to_k.weight") for name in modules if name.endswith(".to_k.weight")}
    yield from (f"{name}.processor" for name in sorted(found - trained))


def _name(target: Target) -> str:
    """diffusers' name of an attention's parameter."""
    attention, _, slot = target.module.removeprefix("unet.").removesuffix(".0").rpartition(".")
    place = ".0" if slot == "to_out" else ""
    return f"{attention}.processor.{slot}_custom_diffusion{place}.{target.parameter}"


def _target(name: str) -> Target | None:
    match = _DIFFUSERS.fullmatch(name)
    if match:
        slot = "to_out.0" if match["slot"] == "to_out" else match["slot"]
        return Target(f"unet.{match['module']}.{slot}", match["parameter"])
    return None
