"""What a merge refuses, and in which words: all of it before the first byte is written."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from sdkit.adapters.artifact import Artifact
from sdkit.core.errors import SdkitError, UsageError
from sdkit.families import identify
from sdkit.families.family import Model
from sdkit.formats import adapter_family, recognise
from sdkit.streaming import Rounding
from sdkit.weights import DType, Weights


def known_model(base: Weights) -> Model:
    """The base, recognised.

    Raises:
        SdkitError: it is an adapter, or no family's rules explain it; the message gives the evidence.
    """
    model = identify(base)
    if model.has_denoiser or (model.places and model.components):
        return model
    format, _ = recognise(base)
    if format is not None:
        raise SdkitError(
            f"{base.path}: is an adapter ({format}), not a checkpoint", "the base comes first: sdkit merge BASE ADAPTER"
        )
    reasons = "; ".join(model.reasons) or "no rule matches its keys"
    raise SdkitError(f"{base.path}: not a checkpoint sdkit can merge into: {reasons}", f"sdkit inspect {base.path}")


def check_is_adapter(weights: Weights) -> None:
    """Refuse a whole checkpoint in an adapter's place."""
    model = identify(weights)
    if model.has_denoiser:
        raise SdkitError(
            f"{weights.path}: is a checkpoint ({model.family}), not an adapter",
            "`sdkit merge` adds adapters to one checkpoint; the checkpoint comes first and alone",
        )


def check_is_not_input(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse to write over an input, under whatever name, into a folder that is one, or over one that holds one."""
    target = output.resolve()
    for path in inputs:
        source = path.resolve()
        same = output.exists() and path.exists() and output.samefile(path)
        if same or target == source:
            raise SdkitError(f"{output}: is an input", "choose another output with -o")
        if target in source.parents:
            raise SdkitError(f"{output}: holds {path}, an input", "choose another output with -o")
        if source in target.parents:
            raise SdkitError(f"{output}: lies inside {path}, an input", "choose another output with -o")


def check_not_rounded(rounding: Rounding, step: str) -> None:
    """Refuse a way of rounding where nothing is rounded."""
    if rounding.seed is not None:
        raise UsageError(f"stochastic: the step {step} writes nothing, so nothing is rounded", "give it an output")


def check_bakeable(artifact: Artifact) -> None:
    """Refuse artifacts that are no weight changes."""
    if artifact.not_bakeable:
        raise SdkitError(
            f"{artifact.source.path}: cannot be merged: a file of kind {artifact.kind} {artifact.not_bakeable}",
            _next_command(artifact),
        )
    if not artifact.scale_known:
        raise SdkitError(
            f"{artifact.source.path}: the format {artifact.format} does not store alpha, so its strength is not known",
            f"sdkit convert {shlex.quote(str(artifact.source.path))} --to kohya --network-alpha 1",
        )
    if not artifact.deltas and not artifact.unmatched:
        raise SdkitError(
            f"{artifact.source.path}: holds no weight changes ({artifact.format})",
            "load it beside the model; only weight changes can be merged",
        )


def _next_command(artifact: Artifact) -> str:
    """How to use what cannot be merged."""
    if artifact.kind == "inversion":
        inversion = shlex.quote(str(artifact.source.path))
        return f'edit the picture: sdkit generate --base BASE --inversion {inversion} --prompt "…"'
    path = artifact.source.path
    words = {"hypernetwork": f"<hypernet:{path.stem}:1.0>", "aesthetic": f"<aesthetic:{path.stem}:0.9>"}
    if artifact.kind not in words:
        return "load it beside the model; only weight changes can be merged"
    prompt = f"a cat {words[artifact.kind]}"
    return f'use it live: sdkit generate --base BASE --adapters {shlex.quote(str(path.parent))} --prompt "{prompt}"'


def family_error(weights: Weights, model: Model) -> SdkitError | None:
    """The error for an adapter made for another family; None when nothing shows that it was."""
    family, reason = adapter_family(weights)
    if family is None or family == model.family:
        return None
    return SdkitError(
        f"{weights.path}: was made for {family} ({reason}), the base is {model.family}",
        f"merge it into a {family} model",
    )


def unmatched_error(artifact: Artifact, model: Model) -> SdkitError:
    """The error for an adapter the base has only partly, or not at all, a place for."""
    count, matched = len(artifact.unmatched), len(artifact.deltas)
    examples = ", ".join(artifact.unmatched[:3]) + (", …" if count > 3 else "")
    if not matched:
        return SdkitError(
            f"{artifact.source.path}: none of its {count} modules exists in this {model.family} base ({examples})",
            f"sdkit inspect {artifact.source.path} shows what it was made for",
        )
    return SdkitError(
        f"{artifact.source.path}: {count} of {count + matched} modules have no place in the base ({examples})",
        "--allow-unmatched merges the rest",
    )


def check_requantisation(base: Weights, dtype: DType | None) -> None:
    """Refuse to change the type of scaled fp8 weights, whose scales would no longer hold."""
    scaled = any(name == "scaled_fp8" or name.endswith((".scale_weight", ".comfy_quant")) for name in base.tensors)
    if scaled and dtype is not None:
        raise SdkitError(f"{base.path}: holds scaled fp8 weights, whose type cannot change", "leave out --dtype")
    if any(name.endswith(".comfy_quant") for name in base.tensors):
        raise SdkitError(f"{base.path}: holds ComfyUI-quantised weights", "merge into the unquantised model")


def check_widening(widened: Mapping[str, int], *, undo: bool, lazy_folder: bool) -> None:
    """Refuse what supposes that every tensor keeps its shape.

    Args:
        lazy_folder: whether the base is a folder whose configurations would have to change, and nothing is written.
    """
    for key in widened:
        if undo:
            raise SdkitError(f"--undo restores tensors that keep their shape, and {key} is widened", "keep the base")
        if lazy_folder:
            raise SdkitError(
                f"{key} is widened, which the folder's configuration has to say",
                "give this step of the recipe an output",
            )
