"""Aesthetic embeddings: the mean CLIP image vector of pictures one likes.

The web UI's file is a pickled bare tensor, [1, 768] or [768] for CLIP ViT-L/14, F16 or F32. The vector lies in the
space that CLIP's pictures and texts share, not among the tokens, so it is never an embedding for the tokenizer.

sdkit's own is a safetensors file with ``TEXT_ENCODER.aesthetic`` [1, d] for each text encoder, and beside it
``TEXT_ENCODER.text_projection`` [d, width], which leads from the text encoder into that space: checkpoints lack it.
arXiv:2209.12330.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sdkit.adapters.artifact import Artifact, Steering
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats._write import write_adapter_file, write_pickle
from sdkit.formats.codec import Dialect, Verdict
from sdkit.streaming.expression import Read
from sdkit.weights import TensorInfo, Weights
from sdkit.weights.reader import Container

HOLDS = ("aesthetic",)
FAMILIES = ("sd1", "sdxl")
DIALECTS = (
    Dialect((), name="a1111", suffix=".pt", says="the bare vector, a pickle", said=("a1111",)),
    Dialect((), name="projected", says="with the text's projection; sdkit's own"),
)
SUFFIXES = {dialect.name: dialect.suffix for dialect in DIALECTS}
BARE = frozenset(["", "tensor", "data", "value"])  # what a tensor without a name may be called
VECTOR, PROJECTION = ".aesthetic", ".text_projection"
_WIDTHS = (512, 768, 1024, 1280)
_SECOND = 1280  # of CLIP bigG, the second text encoder of SDXL


def detect(weights: Weights) -> Verdict:
    """Recognised by a single tensor without a name that is a CLIP image vector, or by the names of sdkit's own."""
    if weights.tensors and all(name.endswith((VECTOR, PROJECTION)) for name in weights.tensors):
        return Verdict(True, "it holds vectors called aesthetic")
    if len(weights.tensors) != 1:
        return Verdict(False, f"it holds {len(weights.tensors)} tensors, an aesthetic embedding is one")
    ((name, info),) = weights.tensors.items()
    pickled = weights.container is Container.PICKLE
    vector = info.numel > 1 and info.numel == info.shape[-1] and (pickled or info.numel in _WIDTHS)
    if name not in BARE or not vector:
        return Verdict(False, f"{name} {list(info.shape)} is no nameless CLIP vector")
    return Verdict(True, f"its only tensor is a nameless vector of {info.numel} numbers")


def read(weights: Weights, model: Model | None) -> Artifact:
    """An artifact with steering vectors. `model` is not needed.

    Raises:
        SdkitError: a projection does not lead to its vector, or has none.
    """
    builder = ArtifactBuilder(weights, model, "aesthetic")
    tensors = dict(weights.tensors)
    if len(tensors) == 1 and next(iter(tensors)) in BARE:
        (info,) = tensors.values()
        component = "text_encoder_2" if info.numel == _SECOND else "text_encoder"
        steering = [Steering(component, builder.read(info))]
    else:
        names = [name.removesuffix(VECTOR) for name in tensors if name.endswith(VECTOR)]
        steering = [
            Steering(
                name,
                builder.read(tensors.pop(f"{name}{VECTOR}")),
                builder.read(tensors.pop(f"{name}{PROJECTION}")) if f"{name}{PROJECTION}" in tensors else None,
            )
            for name in names
        ]
        if tensors:
            raise SdkitError(f"{weights.path}: {next(iter(tensors))} has no vector beside it", "the file is damaged")
    for part in steering:
        _check(part, weights.path)
    return replace(builder.build(), kind="aesthetic", steering=tuple(steering))


def write(
    artifact: Artifact,
    model: Model | None,
    path: Path,
    metadata: Mapping[str, str],
    *,
    dialect: str = "",
    overwrite: bool = False,
) -> None:
    """See `formats.write_adapter`.

    Args:
        dialect: ``a1111`` or ``projected``; by default what the file's suffix calls for.

    Raises:
        SdkitError: the adapter is no aesthetic embedding, or the web UI's file cannot hold it.
    """
    if not artifact.steering:
        raise SdkitError(f"{path}: this {artifact.kind} is no aesthetic embedding, so it cannot be written as one")
    if (dialect or {".pt": "a1111"}.get(path.suffix)) != "a1111":
        write_adapter_file(path, _named(artifact.steering), metadata, overwrite=overwrite)
        return
    if len(artifact.steering) > 1:
        raise SdkitError(
            f"{path}: the web UI's file holds one vector, here is one for each of "
            f"{' and '.join(part.component for part in artifact.steering)}",
            f"write {path.with_suffix('.safetensors').name}",
        )
    vector = artifact.steering[0].vector
    write_pickle(path, vector.load().reshape(1, -1).clone(), vector.info.nbytes, overwrite=overwrite)


def _named(steering: tuple[Steering, ...]) -> dict[str, Read]:
    contents = {f"{part.component}{VECTOR}": part.vector for part in steering}
    return contents | {
        f"{part.component}{PROJECTION}": part.projection for part in steering if part.projection is not None
    }


def _check(part: Steering, path: Path) -> None:
    infos: list[TensorInfo] = [part.vector.info, *([part.projection.info] if part.projection else [])]
    if not all(info.dtype.is_float for info in infos) or (part.width,) != part.vector.info.shape[-1:]:
        raise SdkitError(f"{path}: {part.vector.info.name} is no vector of a CLIP", "the file is damaged")
    if part.projection and (len(part.projection.shape) != 2 or part.projection.shape[0] != part.width):
        raise SdkitError(
            f"{path}: the projection {list(part.projection.shape)} does not lead to a vector of {part.width}",
            "the file is damaged",
        )
