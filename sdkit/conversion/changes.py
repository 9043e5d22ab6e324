"""What may be taken of a checkpoint, or put into it, before it is written."""

from __future__ import annotations

from dataclasses import replace

from sdkit.conversion.checkpoint import Checkpoint, Located, describes
from sdkit.core.errors import SdkitError, UsageError
from sdkit.families.assemble import EMA_PREFIX
from sdkit.families.clip import TextLayout
from sdkit.families.describe import encoder_like
from sdkit.families.family import Place
from sdkit.families.spell import spelled
from sdkit.families.vae import VaeLayout
from sdkit.weights import DTYPES
from sdkit.weights.memory import MemoryWeights

_ONES = {"F16": b"\x00\x3c", "BF16": b"\x80\x3f", "F32": b"\x00\x00\x80\x3f"}  # 1.0 as each type stores it


def one_component(checkpoint: Checkpoint, component: str) -> Checkpoint:
    """One component of it.

    Raises:
        UsageError: it has no such component.
    """
    if component not in checkpoint.parts:
        raise UsageError(
            f"{checkpoint.weights.path}: has no component {component!r}", f"it has {', '.join(checkpoint.parts)}"
        )
    located = {hub: where for hub, where in checkpoint.located.items() if hub.startswith(f"{component}.")}
    return replace(checkpoint, parts={component: checkpoint.parts[component]}, located=located, leftovers=None)


def with_projections(checkpoint: Checkpoint, notes: list[str]) -> Checkpoint:
    """The identity in place of a projection of the pooled text that a file of SD3 leaves out, as readers take it.

    A folder has to spell it out: what is not there, transformers fills with random numbers.
    """
    parts, located = dict(checkpoint.parts), dict(checkpoint.located)
    for encoder in checkpoint.family.text_encoders if checkpoint.family else ():
        part = parts.get(encoder.component)
        if part is None or not isinstance(part.layout, TextLayout) or part.layout.projection:
            continue
        if encoder.projects and part.naming == "hf":
            width, hub = part.layout.width, f"{encoder.component}.text_projection.weight"
            parts[encoder.component] = replace(part, layout=replace(part.layout, projection=width))
            tokens = located[f"{encoder.component}.text_model.embeddings.token_embedding.weight"]
            identity = _identity(width, tokens.weights.tensors[tokens.place.key].dtype.name)
            located[hub] = Located(identity, Place("identity", (width, width)))
            notes.append(f"its {encoder.component} has no projection: the identity is written, as programs take it")
    return replace(checkpoint, parts=parts, located=located)


def _identity(size: int, dtype: str) -> MemoryWeights:
    """The identity in the type of the weights around it, or in float32."""
    dtype = dtype if dtype in _ONES else "F32"
    one = _ONES[dtype]
    rows = (one + b"\0" * len(one) * size) * size
    return MemoryWeights("identity", {"identity": (DTYPES[dtype], (size, size), rows[: len(one) * size * size])}, {})


def with_ema(checkpoint: Checkpoint) -> Checkpoint:
    """The averaged copy of the U-Net's weights in place of the last ones.

    Raises:
        SdkitError: there is no complete copy.
    """
    tensors, located = checkpoint.weights.tensors, dict(checkpoint.located)
    if not checkpoint.model.ema:
        raise SdkitError(f"{checkpoint.weights.path}: holds no EMA copy", "leave out --ema")
    for hub, where in checkpoint.located.items():
        if not hub.startswith("unet."):
            continue
        # LitEma registers its buffers under the parameter's name without dots, and without the outermost module.
        key = EMA_PREFIX + "".join(where.place.key.split(".")[1:])
        if key not in tensors or tensors[key].shape != tensors[where.place.key].shape:
            raise SdkitError(f"{checkpoint.weights.path}: its EMA copy lacks {where.place.key}", "leave out --ema")
        located[hub] = replace(where, place=replace(where.place, key=key))
    return replace(checkpoint, located=located)


def with_vae(checkpoint: Checkpoint, vae: Checkpoint) -> Checkpoint:
    """Another model's autoencoder in place of its own.

    Raises:
        SdkitError: it has none, or one for latents of other channels.
    """
    part = vae.parts.get("vae")
    if part is None or not isinstance(part.layout, VaeLayout):
        raise SdkitError(f"{vae.weights.path}: holds no autoencoder", "--bake-vae takes a file or folder with one")
    channels = _latent_channels(checkpoint)
    if part.layout.latent_channels != channels:
        raise SdkitError(f"{vae.weights.path}: its latents have {part.layout.latent_channels} channels, not {channels}")
    return _with(checkpoint, "vae", vae, "vae")


def _latent_channels(checkpoint: Checkpoint) -> int:
    """Of the latents that the model is made for."""
    own = checkpoint.parts.get("vae")
    if own is not None and isinstance(own.layout, VaeLayout):
        return own.layout.latent_channels
    return 16 if checkpoint.family is not None and checkpoint.family.flow else 4


def with_part(checkpoint: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, str]:
    """The one component of another file in place of its own, or where it has none; and which component that is.

    So the files that ComfyUI keeps apart (a transformer, `clip_l`, `t5xxl`, an autoencoder) become one model.

    Raises:
        SdkitError: the file holds several components, or one this model has no place for.
    """
    path = other.weights.path
    if not other.is_component:
        raise SdkitError(
            f"{path}: holds {', '.join(other.parts)}, and --part takes a file with one component",
            "--bake-vae takes the autoencoder out of a whole model",
        )
    if checkpoint.family is None or not checkpoint.draws:
        raise SdkitError(f"{checkpoint.weights.path}: has nothing that draws, so no parts can be put to it")
    ((theirs, part),) = other.parts.items()
    if theirs == "vae":
        return with_vae(checkpoint, other), "vae"
    name = encoder_like(checkpoint.family, part.layout) if theirs.startswith("text_encoder") else None
    if name is None:
        raise SdkitError(f"{path}: its {theirs} is none of {checkpoint.family.title}", f"`sdkit inspect {path}`")
    own = checkpoint.parts.get(name)
    widths = [getattr(entry.layout, "width", 0) for entry in (part, own or part)]
    if widths[0] != widths[1]:
        raise SdkitError(f"{path}: is {widths[0]} wide, and the {name} it would replace {widths[1]}")
    return _with(checkpoint, name, other, theirs), name


def _with(checkpoint: Checkpoint, name: str, other: Checkpoint, theirs: str) -> Checkpoint:
    """The component called `theirs` of another checkpoint as the component called `name`."""
    assert checkpoint.family is not None or name in checkpoint.parts
    part, own = other.parts[theirs], checkpoint.parts.get(name)
    located = {hub: where for hub, where in checkpoint.located.items() if not hub.startswith(f"{name}.")}
    for hub, where in other.located.items():
        if hub.startswith(f"{theirs}."):
            located[f"{name}.{hub.removeprefix(theirs + '.')}"] = where
    configs = {key: config for key, config in checkpoint.configs.items() if key != name}
    before = checkpoint.configs.get(name)
    if theirs in other.configs:
        configs[name] = other.configs[theirs]
    elif before is not None and describes(name, before, part.layout):
        configs[name] = before
    parts = {**checkpoint.parts, name: replace(own, layout=part.layout) if own else part}
    if own is None and checkpoint.family is not None:  # named as those of a whole model are
        layouts = {key: entry.layout for key, entry in parts.items()}
        named = spelled(checkpoint.family, layouts, "ldm" if checkpoint.is_single else "diffusers")
        parts = named if checkpoint.is_component else {**parts, name: named[name]}
    return replace(checkpoint, parts=dict(sorted(parts.items())), located=located, configs=configs)
