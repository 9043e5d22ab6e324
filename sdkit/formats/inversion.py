"""Null-text inversions: a picture's noise, and what stands for the empty prompt at every step of its way out of it.

    latents    [1, c, h, w]                 the noise
    uncond     [steps, 1, tokens, width]    the noisiest step first; a single row where it holds for all steps
    pooled     [steps, 1, width]            SDXL's pooled text beside it

``sdkit.inversion`` in the metadata says in JSON how it was made (`sdkit.adapters.trajectory.About`). diffusers'
community pipeline pickles `uncond` alone, as one tensor without a name; the noise has to be found again from the
picture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.adapters.trajectory import About, Trajectory
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats._write import write_adapter_file
from sdkit.formats.aesthetic import BARE
from sdkit.formats.codec import Dialect, Verdict
from sdkit.weights import TensorInfo, Weights

HOLDS = ("inversion",)
FAMILIES = ("sd1", "sd2", "sdxl")
DIALECTS = (Dialect(()),)
KEY = "sdkit.inversion"
OWN_METADATA = re.compile(re.escape(KEY))
_DIMENSIONS = {"uncond": 4, "latents": 4, "pooled": 3}
_LEAST_TOKENS = 8  # a bare tensor with fewer is something else


def detect(weights: Weights) -> Verdict:
    """Recognised by a tensor called `uncond` beside `latents`, or by one nameless tensor of such a shape."""
    tensors = weights.tensors
    if "uncond" in tensors and "latents" in tensors:
        latents, uncond = list(tensors["latents"].shape), list(tensors["uncond"].shape)
        return Verdict(True, f"it holds latents {latents} and uncond {uncond}")
    if len(tensors) == 1:
        ((name, info),) = tensors.items()
        shape = info.shape
        if name in BARE and len(shape) == 4 and shape[1] == 1 and shape[2] >= _LEAST_TOKENS and shape[3] > shape[2]:
            return Verdict(True, f"its only tensor has no name and the shape {list(shape)}: steps, 1, tokens, width")
    return Verdict(False, "it does not hold the tensors uncond and latents")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`. `model` is not needed: whether it is the base is asked by content when it is used."""
    builder = ArtifactBuilder(weights, model, "inversion")
    found = dict(weights.tensors)
    if not set(found) & set(_DIMENSIONS):
        found = {"uncond": next(iter(found.values()))}
    for name in found.keys() - set(_DIMENSIONS):
        builder.leave(name)
    for name, count in _DIMENSIONS.items():
        if name in found:
            _check(weights.path, name, found[name], count)
    about = _about(weights)
    if about is None:
        builder.note("it does not say which base, prompt and picture it is of")
    elif found["uncond"].shape[0] not in (1, about.steps):
        rows = found["uncond"].shape[0]
        raise SdkitError(f"{weights.path}: it has {rows} rows for {about.steps} steps", "the file is damaged")
    reads = {name: builder.read(found[name]) for name in _DIMENSIONS if name in found}
    return replace(builder.build(), kind="inversion", trajectory=Trajectory(**reads, about=about))


def write(
    artifact: Artifact, model: Model | None, path: Path, metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """See `formats.write_adapter`."""
    trajectory = artifact.trajectory
    if trajectory is None:
        raise SdkitError(f"{path}: a {artifact.kind} is no inversion, so it cannot be written as one")
    tensors = {name: getattr(trajectory, name) for name in _DIMENSIONS}
    about = {KEY: json.dumps(asdict(trajectory.about), sort_keys=True)} if trajectory.about else {}
    contents = {name: read for name, read in tensors.items() if read is not None}
    write_adapter_file(path, contents, {**metadata, **about}, overwrite=overwrite)


def _check(path: Path, name: str, info: TensorInfo, dimensions: int) -> None:
    single = info.shape[:1] == (1,) if name == "latents" else info.shape[1:2] == (1,)
    if len(info.shape) != dimensions or not single or not info.dtype.is_float or 0 in info.shape:
        raise SdkitError(f"{path}: {name} is {info.dtype.name} {list(info.shape)}, which is no inversion's")


def _about(weights: Weights) -> About | None:
    """How it was made.

    Raises:
        SdkitError: the metadata are not what they should be.
    """
    text = weights.metadata.get(KEY)
    if text is None:
        return None
    try:
        values: Any = json.loads(text)
        kinds = {entry.name: type(getattr(_EXAMPLE, entry.name)) for entry in fields(About)}
        return About(**{name: kind(values[name]) for name, kind in kinds.items()})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SdkitError(f"{weights.path}: its {KEY} cannot be read: {error}", "invert the picture again") from None


_EXAMPLE = About("", "", "", "", 1, 1.0, "", "", 0.0, 0.0)  # gives the types of the fields
